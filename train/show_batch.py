"""The tokens of a training batch as text: the segments of each row, and which tokens are in the loss."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from data.loader import Batch, BatchFunction
from data.tokenizer import Tokenizer, load_tokenizer
from train.console import visible
from train.corpus.opened import open_corpus
from train.corpus.stores import token_stores
from train.finetuning.rows import encode_rows, read_task
from train.settings import Settings

# The longest UTF-8 character has this many bytes, hence tokens.
_CHARACTER_TOKENS = 4
_BACKGROUNDS = ("on grey11", "on grey23")


@dataclasses.dataclass(frozen=True)
class Shown:
    """A batch and what is needed to print it.

    Attributes:
        batch: t -> batch t.
        tokenizer: the tokenizer of its tokens.
        classes: names of integer targets or of the entries of target vectors; None: targets are tokens.
        places: see `BatchFunction.places`; None: the rows have one source.
    """

    batch: Callable[[int], Batch]
    tokenizer: Tokenizer
    classes: Sequence[str] | None = None
    places: Callable[[int], dict[str, list[Any]]] | None = None


@dataclasses.dataclass(frozen=True)
class _Token:
    """A token to print; `target` is its target as text where that is not simply the next token."""

    text: str
    special: bool
    in_loss: bool
    target: str


def pretraining_batches(settings: Settings, scratch: Path) -> Shown:
    """Returns the batches that `pretrain` trains on; tokenizes text into `scratch` if necessary."""
    corpus = open_corpus(token_stores(settings, scratch, None), settings)
    batches = BatchFunction(corpus.rows, settings.batch_size, settings.seed)
    return Shown(batches, corpus.tokenizer, places=batches.places)


def finetuning_batches(settings: Settings, foundation: Path) -> Shown:
    """Returns the batches that `finetune` trains on."""
    tokenizer = load_tokenizer(foundation / "tokenizer")
    task, splits = read_task(settings)
    part = encode_rows(task, splits.train, tokenizer, settings.sequence_length, settings.seed)
    classes = task.target_names or None
    return Shown(BatchFunction(part.rows, settings.batch_size, settings.seed), tokenizer, classes)


def show(shown: Shown, step: int, rows: int, console: Console) -> None:
    """Prints the first `rows` rows of batch `step` and a legend."""
    batch, sources = shown.batch(step), shown.places(step).get("sources") if shown.places else None
    colored = console.color_system is not None and not console.no_color
    for row in range(min(rows, len(batch["tokens"]))):
        arrays = {name: values[row] for name, values in batch.items()}
        segments = _segments(arrays["segment_ids"])
        of_source = f" of {sources[row]}" if sources else ""
        filled = sum(place.stop - place.start for place in segments)
        console.print(
            f"batch {step}, row {row}{of_source}: segments {len(segments)}, tokens {filled} of "
            f"{len(arrays['tokens'])}, targets {(arrays['weights'] > 0).sum()}",
            style="bold",
        )
        for number, place in enumerate(segments, 1):
            tokens = _tokens({name: values[place] for name, values in arrays.items()}, shown)
            console.print(_line(tokens, number, colored))
        console.print()
    console.print(_legend(colored))


def _segments(segment_ids: np.ndarray) -> list[slice]:
    """Returns the slices of a row's segments, without padding."""
    edges = [0, *(np.flatnonzero(np.diff(segment_ids)) + 1).tolist(), len(segment_ids)]
    places = [slice(first, last) for first, last in itertools.pairwise(edges)]
    return [place for place in places if segment_ids[place.start] > 0]


def _tokens(segment: Batch, shown: Shown) -> Iterator[_Token]:
    """Yields the tokens of a segment; a token is in the loss if it is the target of the token before it."""
    ids, targets, weights = (segment[name] for name in ("tokens", "targets", "weights"))
    as_tokens = shown.classes is None and targets.ndim == 1 and np.issubdtype(targets.dtype, np.integer)
    is_next = np.zeros(len(ids), bool)
    if as_tokens:
        is_next[:-1] = (weights[:-1] > 0) & (targets[:-1] == ids[1:])
    special = set(shown.tokenizer.special_tokens.values())
    for place, text in enumerate(token_texts(ids.tolist(), shown.tokenizer)):
        target = ""
        if weights[place] > 0 and not is_next[place]:
            target = _meaning(targets[place], shown) + (f" x{weights[place]:g}" if weights[place] != 1 else "")
        in_loss = place > 0 and bool(is_next[place - 1])
        yield _Token(text, int(ids[place]) in special, in_loss, target)


def _meaning(target: np.ndarray, shown: Shown) -> str:
    """Returns a target as text: the names of classes, a number, or a token."""
    if target.ndim and shown.classes is not None:
        return ", ".join(name for name, value in zip(shown.classes, target, strict=True) if value) or "none"
    if target.ndim or np.issubdtype(target.dtype, np.floating):
        return np.array2string(target, precision=4)
    if shown.classes is not None:
        return shown.classes[int(target)]
    return visible(token_texts([int(target)], shown.tokenizer)[0])


def token_texts(ids: list[int], tokenizer: Tokenizer) -> list[str]:
    """Returns the text that each token adds; special tokens give their names.

    A character of several tokens is the text of the last of them; the others are empty.
    """
    names = {index: name for name, index in tokenizer.special_tokens.items()}
    texts = []
    # Decoding from `context` is enough to decode a token as it appears in the text.
    context = start = 0
    for place, index in enumerate(ids):
        if index in names:
            texts.append(names[index])
            context = start = place + 1
            continue
        text = tokenizer.decode(ids[context : place + 1])
        last = place + 1 == len(ids) or ids[place + 1] in names or place - start + 1 == _CHARACTER_TOKENS
        if text.endswith("\N{REPLACEMENT CHARACTER}") and not last:
            texts.append("")
            continue
        texts.append(text[len(tokenizer.decode(ids[context:start])) :])
        context, start = start, place + 1
    return texts


def _line(tokens: Iterator[_Token], number: int, colored: bool) -> Text:
    """Returns a segment: colored, or with brackets around tokens in the loss."""
    background = _BACKGROUNDS[number % 2]
    line = Text.assemble((f"{number} ", "bold cyan"))
    for place, token in enumerate(tokens):
        text = visible(token.text)
        if not colored:
            text = f"⟨{text}⟩" if token.special else text
            line.append(f"[{text}]" if token.in_loss and text else text)
            line.append(f"{{→ {token.target}}}" if token.target else "")
        else:
            # Two shades alternate to show where a token ends.
            shade = ("green", "bright_green")[place % 2] if token.in_loss else ("grey82", "grey58")[place % 2]
            line.append(text, f"{shade} {background}{' italic' if token.special else ''}")
            line.append(f" → {token.target} " if token.target else "", "bold black on yellow")
        if token.text.endswith("\n"):
            line.append("\n")
    return line


def _legend(colored: bool) -> Text:
    if not colored:
        names = "[token in the loss]  {→ other target}  ⟨special token⟩  ⏎ line feed"
        return Text(f"legend: {names}; segments are numbered")
    legend = Text("legend: ")
    for text, style in (
        ("token in the loss", "green on grey11"),
        ("not in the loss", "grey82 on grey11"),
        ("→ other target", "bold black on yellow"),
        ("special", "grey82 on grey11 italic"),
        ("segments alternate", "grey82 on grey23"),
    ):
        legend.append(text, style).append("  ")
    return legend.append("⏎ line feed")
