"""A language model asked in words, without training for the task: it writes an answer or chooses one by likelihood."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.sampling import Sampling, generate, score_choices
from model.transformer import Params
from train.mesh import replicated

# Between an answered example and the next question.
BETWEEN = "\n\n"
_PROMPTS_AT_ONCE = 32
# Prompts are padded to a multiple, so that a session of many prompts compiles few shapes.
_WIDTH_MULTIPLE = 64


def few_shot_prompt(shots: Sequence[tuple[str, str]], prompt: str, tokenizer: Tokenizer, room: int) -> list[int]:
    """Returns the tokens of answered examples and a question, of as many examples as fit.

    Args:
        shots: (prompt, answer) of each example.
        prompt: the question.
        tokenizer: of the model.
        room: tokens at most; a question that is longer loses its start.
    """
    asked = tokenizer.encode(prompt)[-(room - 1) :]
    shown = [tokenizer.encode(f"{question} {answer}{BETWEEN}") for question, answer in shots]
    while shown and sum(map(len, shown)) + len(asked) + 1 > room:
        shown.pop()
    return [tokenizer.bos_id, *(token for example in shown for token in example), *asked]


def complete(
    config: ModelConfig,
    params: Params,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    tokenizer: Tokenizer,
    mesh: Mesh,
    stop: str = "",
    eos_id: int | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    seed: int = 0,
) -> list[str]:
    """Returns a continuation of each prompt: by default the most likely one, token by token (greedy).

    Args:
        config: the model.
        params: `{"backbone", "head"}` of a language model.
        prompts: tokens, with bos.
        max_new_tokens: tokens a continuation at most.
        tokenizer: of the model.
        mesh: where it runs.
        stop: text that ends a continuation where it occurs after other text; it is left out. "": none.
        eos_id: token that ends a continuation; the tokenizer's unless told.
        sampling: how tokens are drawn.
        seed: of the samples.
    """
    end = tokenizer.eos_id if eos_id is None else eos_id
    texts: dict[int, str] = {}
    for batch, (numbers, prompts_BP, lengths_B) in enumerate(_batches(prompts, tokenizer.pad_id, mesh)):
        tokens_BM = generate(
            config,
            params,
            *_everywhere((prompts_BP, lengths_B), mesh),
            jax.random.fold_in(jax.random.key(seed), batch),
            sampling,
            max_new_tokens=max_new_tokens,
            eos_id=end,
        )
        for number, tokens in zip(numbers, _whole(tokens_BM, mesh), strict=False):
            text = tokenizer.decode([int(token) for token in tokens if token != end])
            blank = text[: len(text) - len(text.lstrip())]
            texts[number] = blank + text[len(blank) :].partition(stop)[0] if stop else text
    return [texts[number] for number in range(len(prompts))]


def choose(
    config: ModelConfig,
    params: Params,
    prompts: Sequence[list[int]],
    choices: Sequence[list[int]],
    tokenizer: Tokenizer,
    mesh: Mesh,
) -> np.ndarray:
    """Returns float32 (prompts, choices): the log-likelihood a token of each choice after each prompt, in nats."""
    # Each device of the `context` axis takes an equal part of a row.
    width = _round_up(max(map(len, choices)), mesh.shape["context"])
    choices_CM = np.full((len(choices), width), tokenizer.pad_id, np.int32)
    weights_CM = np.zeros((len(choices), width), np.float32)
    for row, tokens in enumerate(choices):
        choices_CM[row, : len(tokens)] = tokens
        weights_CM[row, : len(tokens)] = 1.0
    scores = np.zeros((len(prompts), len(choices)), np.float32)
    for numbers, prompts_BP, lengths_B in _batches(prompts, tokenizer.pad_id, mesh):
        arrays = _everywhere((prompts_BP, lengths_B, choices_CM, weights_CM), mesh)
        scores[numbers] = _whole(score_choices(config, params, *arrays), mesh)[: len(numbers)]
    return scores


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _batches(
    prompts: Sequence[list[int]], pad_id: int, mesh: Mesh
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """Yields (numbers, prompts_BP, lengths_B) of prompts of about one length, each at the end of its row.

    All batches have the same number of rows, which the mesh divides; the surplus repeats a batch's first prompt.
    """
    # A session of many prompts compiles few shapes: a batch of one, and full ones.
    size = _round_up(_PROMPTS_AT_ONCE if len(prompts) > 1 else 1, mesh.size)
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    for start in range(0, len(order), size):
        numbers = order[start : start + size]
        rows = [prompts[number] for number in numbers]
        rows += [rows[0]] * (size - len(rows))
        yield numbers, *padded_prompts(rows, pad_id)


def padded_prompts(prompts: Sequence[list[int]], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns prompts_BP, each at the end of its row, and lengths_B; P is a multiple of 64."""
    width = _round_up(max(map(len, prompts)), _WIDTH_MULTIPLE)
    prompts_BP = np.full((len(prompts), width), pad_id, np.int32)
    for row, tokens in zip(prompts_BP, prompts, strict=True):
        row[width - len(tokens) :] = tokens
    return prompts_BP, np.array([len(tokens) for tokens in prompts], np.int32)


def _everywhere(arrays: tuple[np.ndarray, ...], mesh: Mesh) -> tuple[jax.Array, ...]:
    """Returns the arrays whole on every device of the mesh; all processes have the same."""
    return tuple(jax.make_array_from_callback(a.shape, replicated(mesh), a.__getitem__) for a in arrays)


def _whole(x: jax.Array, mesh: Mesh) -> np.ndarray:
    """Returns an array that may be laid out over several processes."""
    return np.asarray(jax.device_put(x, replicated(mesh)))
