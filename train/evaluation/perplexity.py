"""Perplexity and bits per byte of texts, per source, with a sliding window in which each token is scored once."""

import dataclasses
import math
from collections.abc import Iterator

from configs.errors import UserError
from data.cleaning import clean_document
from data.examples import Segment, sliding_windows
from data.readers import read_documents
from data.sources import split_sources
from train.console import say
from train.evaluation.likelihood import likelihoods
from train.generation.language_model import LanguageModel

# Segments are scored in parts of about this many tokens, so that a large corpus needs little memory.
_TOKENS_PER_PART = 1 << 21


@dataclasses.dataclass(frozen=True)
class Sums:
    """The sums over one source.

    Attributes:
        nats: negative log-likelihood.
        tokens: number of targets.
        size: UTF-8 bytes of the text.
        documents: number of documents.
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


def perplexity(
    language_model: LanguageModel, pattern: str, text_field: str, window: int, stride: int
) -> dict[str, Sums]:
    """Returns {source: its sums}; each document is scored between bos and eos, and eos is a target.

    Args:
        language_model: the model.
        pattern: files, globs or hf:NAME; each file is a source.
        text_field: column of the text in rows.
        window: maximum number of tokens that a prediction attends to.
        stride: new tokens per window; equal to `window`, texts are cut into windows that do not overlap.

    Raises:
        UserError: a window or stride out of range, or a source without text; see also `read_documents`.
    """
    if not 1 <= window <= language_model.model.context_length:
        raise UserError(f"--window={window}; expected 1 to {language_model.model.context_length}, the model's context")
    if not 1 <= stride <= window:
        raise UserError(f"--stride={stride}; expected 1 to --window={window}")
    return {name: _of_source(language_model, name, text_field, window, stride) for name in split_sources(pattern)}


def _of_source(language_model: LanguageModel, name: str, text_field: str, window: int, stride: int) -> Sums:
    total = Sums()
    for segments, size, documents in _parts(language_model, name, text_field, window, stride):
        found = likelihoods(language_model, segments)
        total += Sums(-float(found.nats.sum()), int(found.targets.sum()), size, documents)
        say(f"evaluate: {name}: {total.documents:,} documents, {total.tokens:,} tokens scored")
    if not total.documents:
        raise UserError(f"{name} contains no text but white space and control characters; expected a document")
    return total


def _parts(
    language_model: LanguageModel, name: str, text_field: str, window: int, stride: int
) -> Iterator[tuple[list[Segment], int, int]]:
    """Yields (segments, bytes of their texts, documents); like training text, texts are cleaned and not empty."""
    tokenizer = language_model.tokenizer
    segments: list[Segment] = []
    size = documents = held = 0
    for document in read_documents(name, text_field):
        text = clean_document(document) if language_model.cleans_text else document
        if not text:
            continue
        tokens = [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
        segments += sliding_windows(tokens, window, stride)
        size, documents = size + len(text.encode()), documents + 1
        held += len(tokens) * window // stride
        if held > _TOKENS_PER_PART:
            yield segments, size, documents
            segments, size, documents, held = [], 0, 0, 0
    if segments:
        yield segments, size, documents


def summary(sources: dict[str, Sums]) -> dict[str, object]:
    """Returns the metrics of all sources together and, if there are several, of each one."""
    total = sum(sources.values(), Sums()).figures()
    each = {name: sums.figures() for name, sums in sources.items()}
    return total | ({"sources": each} if len(each) > 1 else {})
