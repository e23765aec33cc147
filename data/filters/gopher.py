"""The quality and repetition rules of Gopher (Rae et al. 2021, https://arxiv.org/abs/2112.11446, appendix A)."""

import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence

import numpy as np

from data.filters.words import Words, character_hash, ngram_hashes

_PARAGRAPHS = re.compile(r"\n{2,}")
_LINES = re.compile(r"\n+")


@dataclasses.dataclass(frozen=True)
class GopherQuality:
    """Thresholds of the quality rules; words that are punctuation count only where it says so.

    Attributes:
        min_words: fewest words.
        max_words: most words.
        min_word_length: lowest mean number of characters per word.
        max_word_length: highest mean number of characters per word.
        max_symbols: most "#", and most ellipses, per word or punctuation mark.
        max_bullet_lines: largest fraction of lines that start with "•" or "-".
        max_ellipsis_lines: largest fraction of lines that end with an ellipsis.
        min_alphabetic: smallest fraction of words and punctuation marks with a letter.
        min_stop_words: fewest different words of `stop_words`.
        stop_words: English words that running text contains.
    """

    min_words: int = 50
    max_words: int = 100_000
    min_word_length: float = 3.0
    max_word_length: float = 10.0
    max_symbols: float = 0.1
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_alphabetic: float = 0.8
    min_stop_words: int = 2
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")


@dataclasses.dataclass(frozen=True)
class GopherRepetition:
    """Thresholds of the repetition rules, as fractions of the lines, paragraphs or characters of a document.

    Attributes:
        lines: of repeated lines.
        paragraphs: of repeated paragraphs.
        line_characters: of characters in repeated lines.
        paragraph_characters: of characters in repeated paragraphs.
        top_ngrams: (n, fraction of characters in the most frequent n-gram of words).
        repeated_ngrams: (n, fraction of characters in n-grams of words that occurred before).
    """

    lines: float = 0.3
    paragraphs: float = 0.3
    line_characters: float = 0.2
    paragraph_characters: float = 0.2
    top_ngrams: tuple[tuple[int, float], ...] = ((2, 0.2), (3, 0.18), (4, 0.16))
    repeated_ngrams: tuple[tuple[int, float], ...] = (
        (5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10),
    )  # fmt: skip


def gopher_quality(document: Words, limits: GopherQuality) -> str | None:
    """Returns the first rule that a document breaks, or None."""
    total = len(document.hashes)
    lengths = document.lengths[~document.is_symbol]
    if len(lengths) < max(limits.min_words, 1):
        return "gopher: few words"
    if len(lengths) > limits.max_words:
        return "gopher: many words"
    # The mean is computed as numpy computes it for a list, so that a mean at the threshold is on the same side.
    mean = np.mean(lengths)
    if mean < limits.min_word_length:
        return "gopher: short words"
    if mean > limits.max_word_length:
        return "gopher: long words"
    if reason := _symbols(document, limits):
        return reason
    if np.count_nonzero(document.has_letter) / total < limits.min_alphabetic:
        return "gopher: few words with letters"
    if sum((document.hashes == word).any() for word in _hashes_of(limits.stop_words)) < limits.min_stop_words:
        return "gopher: few stop words"
    return None


@functools.cache
def _hashes_of(words: tuple[str, ...]) -> list[np.uint64]:
    return [np.uint64(character_hash(word)) for word in words]


def _symbols(document: Words, limits: GopherQuality) -> str | None:
    """Returns the first rule about number signs, ellipses and bullets that a document breaks."""
    text, total = document.text, len(document.hashes)
    if text.count("#") / total > limits.max_symbols:
        return "gopher: number signs"
    if (text.count("...") + text.count("…")) / total > limits.max_symbols:
        return "gopher: ellipses"
    lines = text.splitlines()
    if sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines) > limits.max_bullet_lines:
        return "gopher: bullet lines"
    if sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines) > limits.max_ellipsis_lines:
        return "gopher: lines that end with an ellipsis"
    return None


def gopher_repetition(document: Words, limits: GopherRepetition) -> str | None:
    """Returns the first rule that a document breaks, or None."""
    text = document.text
    size = len(text)
    if not size:
        return "gopher: empty"
    for name, parts, most, most_characters in (
        ("paragraph", _PARAGRAPHS.split(text.strip()), limits.paragraphs, limits.paragraph_characters),
        ("line", _LINES.split(text), limits.lines, limits.line_characters),
    ):
        repeated, characters = repeated_parts(parts)
        if repeated / len(parts) > most:
            return f"gopher: repeated {name}s"
        if characters / size > most_characters:
            return f"gopher: characters in repeated {name}s"
    for n, most in limits.top_ngrams:
        if _top_ngram_exceeds(document, n, most):
            return f"gopher: a frequent {n}-gram"
    for n, most in limits.repeated_ngrams:
        if _repeated_ngrams_exceed(document, n, most):
            return f"gopher: repeated {n}-grams"
    return None


def repeated_parts(parts: Sequence[str]) -> tuple[int, int]:
    """Returns (number of parts that are equal to an earlier one, their characters)."""
    if len(unique := set(parts)) == len(parts):
        return 0, 0
    return len(parts) - len(unique), _characters(parts) - _characters(unique)


def _characters(parts: Iterable[str]) -> int:
    return sum(map(len, parts))


def _top_ngram_exceeds(document: Words, n: int, most: float) -> bool:
    """Returns whether the most frequent n-gram, the first of several, is more than a fraction `most` of the text."""
    size, hashes = len(document.text), ngram_hashes(document.hashes, n)
    if not len(hashes):
        return False
    ordered = np.sort(hashes)
    again = ordered[1:] == ordered[:-1]
    sizes = document.ends[n:] - document.ends[:-n] + n - 1
    longest = sizes.max()
    if (np.count_nonzero(again) + 1) * longest / size <= most:
        return False
    starts = np.concatenate([[0], np.flatnonzero(~again) + 1, [len(ordered)]])
    counts = np.diff(starts)
    count = counts.max()
    if count * longest / size <= most:
        return False
    frequent = ordered[starts[:-1][counts == count]]
    first = np.flatnonzero(np.isin(hashes, frequent))[0]
    return bool(sizes[first] * count / size > most)


def _repeated_ngrams_exceed(document: Words, n: int, most: float) -> bool:
    """Returns whether the n-grams that repeat an earlier one, not overlapping, are more than a fraction `most` of it.

    Words are joined without spaces. Read from the start: an n-gram that occurred before is counted and skipped, any
    other is remembered and its first word skipped.
    """
    hashes = document.joined_hashes(n)
    if len(hashes) < 2:
        return False
    ordered = np.sort(hashes)
    again = ordered[1:] == ordered[:-1]
    count = np.count_nonzero(again)
    if not count:
        return False
    sizes = document.ends[n:] - document.ends[:-n]
    if count * sizes.max() / len(document.text) <= most:
        return False
    # Only n-grams that occur twice can be counted; between them, one word is skipped at a time.
    places = np.flatnonzero(np.isin(hashes, ordered[1:][again]))
    seen: set[int] = set()
    characters, free = 0, 0
    for place, value, size in zip(places.tolist(), hashes[places].tolist(), sizes[places].tolist(), strict=True):
        if place < free:
            continue
        if value in seen:
            characters += size
            free = place + n
        else:
            seen.add(value)
    return characters / len(document.text) > most
