"""Perplexity and bits per byte of texts, source by source, each token seen once in a window that slides."""

import dataclasses
import math
from collections.abc import Iterator

from configs.errors import UserError
from data.examples import Segment, sliding_windows
from data.readers import read_documents
from data.sources import split_sources
from train.console import say
from train.evaluation.likelihood import likelihoods
from train.generation.language_model import Writer

# Segments are scored in parts of about so many tokens, so that a large corpus needs little memory.
_TOKENS_A_PART = 1 << 21


@dataclasses.dataclass(frozen=True)
class Sums:
    """What one source comes to.

    Attributes:
        nats: negative log-likelihood.
        tokens: targets.
        size: UTF-8 bytes of the text.
        documents: how many.
    """

    nats: float = 0.0
    tokens: int = 0
    size: int = 0
    documents: int = 0

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def figures(self) -> dict[str, float]:
        """Returns nats_per_token, perplexity (per token), bits_per_byte, tokens, bytes and documents."""
        mean = self.nats / max(self.tokens, 1)
        return {
            "nats_per_token": mean,
            "perplexity": math.exp(min(mean, 700.0)),
            "bits_per_byte": self.nats / math.log(2) / max(self.size, 1),
            "tokens": self.tokens,
            "bytes": self.size,
            "documents": self.documents,
        }


def perplexity(writer: Writer, pattern: str, text_field: str, window: int, stride: int) -> dict[str, Sums]:
    """Returns {source: its sums}: each document between bos and eos, which is a token too.

    Args:
        writer: the model.
        pattern: files, globs, hf:NAME; each file is a source.
        text_field: column of rows.
        window: tokens a prediction sees at most.
        stride: new tokens a window; `window` cuts texts into pieces that do not overlap.

    Raises:
        UserError: a window or stride out of range, or see `read_documents`.
    """
    if not 1 <= window <= writer.model.context_length:
        raise UserError(f"--window={window}; legal: 1 to {writer.model.context_length}, the model's context")
    if not 1 <= stride <= window:
        raise UserError(f"--stride={stride}; legal: 1 to --window={window}")
    return {name: _of_source(writer, name, text_field, window, stride) for name in split_sources(pattern)}


def _of_source(writer: Writer, name: str, text_field: str, window: int, stride: int) -> Sums:
    total = Sums()
    for segments, size, documents in _parts(writer, name, text_field, window, stride):
        found = likelihoods(writer.model, writer.params, segments, writer.tokenizer.pad_id, writer.mesh)
        total += Sums(-float(found.nats.sum()), int(found.targets.sum()), size, documents)
        text = f"evaluate: {name}: {total.documents:,} documents, {total.tokens:,} tokens scored"
        say(text)
    return total


def _parts(
    writer: Writer, name: str, text_field: str, window: int, stride: int
) -> Iterator[tuple[list[Segment], int, int]]:
    """Yields (segments, bytes of their texts, documents)."""
    tokenizer = writer.tokenizer
    segments: list[Segment] = []
    size = documents = held = 0
    for text in read_documents(name, text_field):
        tokens = [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
        segments += sliding_windows(tokens, window, stride)
        size, documents = size + len(text.encode()), documents + 1
        held += len(tokens) * window // stride
        if held > _TOKENS_A_PART:
            yield segments, size, documents
            segments, size, documents, held = [], 0, 0, 0
    if segments:
        yield segments, size, documents


def summary(sources: dict[str, Sums]) -> dict[str, object]:
    """Returns the figures of all sources together, and of each where there are several."""
    whole = sum(sources.values(), Sums()).figures()
    each = {name: sums.figures() for name, sums in sources.items()}
    return whole | ({"sources": each} if len(each) > 1 else {})
