"""Log-likelihoods of continuations of contexts: the choices of a question, or the text that should follow a prompt.

Contexts of similar length are scored in one batch, and contexts that begin alike share what is computed for these
tokens (`model/continuations.py`). Lengths are rounded up to few widths, because each shape is compiled.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from model.continuations import Contexts, Continuations, continuation_scores
from train.distributed.placement import replicate, row_parts, to_host
from train.distributed.watchdog import tick
from train.evaluation.likelihood import chunk_size
from train.generation.language_model import LanguageModel
from train.trees import round_up

_TOKENS_PER_BATCH = 4096
_COLUMNS_PER_BATCH = 8192  # of the KV cache, in which each context has its own copy of the common tokens
_COMMON_MULTIPLE = 64
_SHORTEST_WIDTH = 32
# Fewer contexts with common tokens, or of a width, are not worth the programs that would be compiled for them.
_LEAST_TOGETHER = 8


class Score(NamedTuple):
    """What is known of a continuation.

    Attributes:
        nats: its log-likelihood.
        greedy: whether greedy decoding would write it.
    """

    nats: float
    greedy: bool


class Batch(NamedTuple):
    """Contexts to be scored together.

    Attributes:
        numbers: their indices.
        common: number of tokens that all begin with.
        width: number of last tokens that are computed for each of them.
    """

    numbers: list[int]
    common: int
    width: int


def continuation_likelihoods(
    language_model: LanguageModel, contexts: Sequence[list[int]], continuations: Sequence[Sequence[list[int]]]
) -> list[list[Score]]:
    """Returns the score of each continuation of each context.

    Args:
        language_model: the model.
        contexts: tokens, at least one each.
        continuations: tokens of the continuations of each context, at least one each; with its context, each must fit
            the model's.
    """
    found: list[list[Score]] = [[] for _ in contexts]
    for batch in _batches(contexts, continuations, language_model.mesh):
        for number, scores in zip(batch.numbers, _scored(language_model, contexts, continuations, batch), strict=True):
            found[number] = scores
        tick("a batch of evaluation")
    return found


def _batches(
    contexts: Sequence[list[int]], continuations: Sequence[Sequence[list[int]]], mesh: Mesh
) -> Iterator[Batch]:
    """Yields batches of contexts with similar lengths, and similar numbers and lengths of continuations."""
    kinds: dict[tuple[int, int], list[int]] = {}
    for number, several in enumerate(continuations):
        sizes = len(several).bit_length(), max(map(len, several)).bit_length()
        kinds.setdefault(sizes, []).append(number)
    multiple = mesh.shape["context"]
    for numbers in kinds.values():
        for common, members in _that_begin_alike(contexts, numbers, multiple):
            for width, same in _of_one_width(contexts, members, common, multiple):
                rows = max(min(_TOKENS_PER_BATCH // width, _COLUMNS_PER_BATCH // (common + width)), 1)
                # Batches of equal size, so that one program is compiled and no row is surplus.
                size = -(-len(same) // -(-len(same) // rows))
                yield from (Batch(same[start : start + size], common, width) for start in range(0, len(same), size))


def _that_begin_alike(
    contexts: Sequence[list[int]], numbers: list[int], multiple: int
) -> Iterator[tuple[int, list[int]]]:
    """Yields (number of common tokens, indices of the contexts that begin with them); 0 for those that are left."""
    left: list[int] = []
    # In this order, contexts that begin alike are neighbors.
    ordered = sorted(numbers, key=contexts.__getitem__)
    start = 0
    while start < len(ordered):
        first = contexts[ordered[start]]
        shared = (_common_tokens(first, contexts[number]) for number in ordered[start:])
        common = list(itertools.takewhile(bool, shared)) or [0]
        members = ordered[start : start + len(common)]
        start += len(common)
        if len(members) < _LEAST_TOGETHER:
            left += members
            continue
        sharing = [n for n in members if _is_as_long(contexts[n], _width(contexts[n], min(common), multiple))]
        left += sorted(set(members).difference(sharing))
        if sharing:
            yield min(common), sharing
    if left:
        yield 0, left


def _common_tokens(first: list[int], second: list[int]) -> int:
    """Returns the number of tokens that both begin with, rounded down; the last token of a context is its own."""
    pairs = zip(first[:-1], second[:-1], strict=False)
    common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return common // _COMMON_MULTIPLE * _COMMON_MULTIPLE


def _of_one_width(
    contexts: Sequence[list[int]], numbers: list[int], common: int, multiple: int
) -> Iterator[tuple[int, list[int]]]:
    """Yields (width, indices of the contexts), shortest first; few contexts of a width join the next wider ones."""
    widths: dict[int, list[int]] = {}
    for number in sorted(numbers, key=lambda number: len(contexts[number])):
        widths.setdefault(_width(contexts[number], common, multiple), []).append(number)
    waiting: list[int] = []
    for width, members in widths.items():
        if waiting and common and not _is_as_long(contexts[waiting[0]], width):
            yield _width(contexts[waiting[-1]], common, multiple), waiting
            waiting = []
        waiting += members
        if len(waiting) >= _LEAST_TOGETHER or width == max(widths):
            yield width, waiting
            waiting = []


def _width(context: list[int], common: int, multiple: int) -> int:
    """Returns the width for a context's own tokens: a power of two, or three quarters of it."""
    length = len(context) - common
    power = 1 << (length - 1).bit_length()
    width = power if length > power * 3 // 4 else power * 3 // 4
    return round_up(max(width, _SHORTEST_WIDTH), multiple)


def _is_as_long(context: list[int], width: int) -> bool:
    """Returns whether a context fills a width: after common tokens, there is no place for padding."""
    return len(context) >= width


def _scored(
    language_model: LanguageModel,
    contexts: Sequence[list[int]],
    continuations: Sequence[Sequence[list[int]]],
    batch: Batch,
) -> list[list[Score]]:
    mesh, pad_id = language_model.mesh, language_model.tokenizer.pad_id
    # All devices need equal parts of a batch; surplus rows repeat the first one.
    count = round_up(len(batch.numbers), row_parts(mesh))
    rows = batch.numbers + batch.numbers[:1] * (count - len(batch.numbers))
    last_BS = np.full((len(rows), batch.width), pad_id, np.int32)
    for row, number in zip(last_BS, rows, strict=True):
        tokens = contexts[number][-batch.width :]
        row[batch.width - len(tokens) :] = tokens
    lengths_B = np.array([len(contexts[number]) for number in rows], np.int32)
    common_P = np.array(contexts[rows[0]][: batch.common], np.int32)
    given = _padded([continuations[number] for number in rows], pad_id, mesh.shape["context"])
    nats_BC, greedy_BC = continuation_scores(
        language_model.model,
        language_model.params,
        Contexts(*replicate((common_P, last_BS, lengths_B), mesh)),
        Continuations(*replicate(given, mesh)),
        chunk_size(len(rows), given[0].shape[2] // mesh.shape["context"]),
    )
    nats, greedy = to_host(nats_BC, mesh).tolist(), to_host(greedy_BC, mesh).tolist()
    return [
        [Score(*pair) for pair in zip(nats[row], greedy[row], strict=True)][: len(continuations[number])]
        for row, number in enumerate(batch.numbers)
    ]


def _padded(continuations: Sequence[Sequence[list[int]]], pad_id: int, multiple: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens_BCM and weights_BCM: 1 for the tokens of a continuation, 0 for padding."""
    longest = max(len(tokens) for several in continuations for tokens in several)
    # All tokens but the last are read: none, or a power of two.
    read = 1 << (longest - 2).bit_length() if longest > 1 else 0
    shape = (len(continuations), max(map(len, continuations)), round_up(read + 1, multiple))
    tokens_BCM, weights_BCM = np.full(shape, pad_id, np.int32), np.zeros(shape, np.float32)
    for b, several in enumerate(continuations):
        for c, tokens in enumerate(several):
            tokens_BCM[b, c, : len(tokens)] = tokens
            weights_BCM[b, c, : len(tokens)] = 1.0
    return tokens_BCM, weights_BCM
