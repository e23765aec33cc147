"""The quality rules of FineWeb (Penedo et al. 2024, https://arxiv.org/abs/2406.17557, section 3.6)."""

import dataclasses

from data.filters.gopher import repeated_parts
from data.filters.words import TERMINAL_MARKS, Words

_MARKS = tuple(sorted(TERMINAL_MARKS))


@dataclasses.dataclass(frozen=True)
class FineWeb:
    """Thresholds; lines are those that are not blank.

    Attributes:
        min_ended_lines: smallest fraction of lines that end with a mark that ends a sentence.
        max_short_lines: largest fraction of short lines.
        short_line: characters of a short line, at most.
        max_repeated_characters: largest fraction of characters in lines that occurred before.
        max_line_feeds: most line feeds per word or punctuation mark.
    """

    min_ended_lines: float = 0.12
    max_short_lines: float = 0.67
    short_line: int = 30
    max_repeated_characters: float = 0.01
    max_line_feeds: float = 0.3


def fineweb(document: Words, limits: FineWeb) -> str | None:
    """Returns the first rule that a document breaks, or None."""
    text = document.text
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return "fineweb: empty"
    if sum(line.endswith(_MARKS) for line in lines) / len(lines) < limits.min_ended_lines:
        return "fineweb: few lines that end a sentence"
    if sum(len(line) <= limits.short_line for line in lines) / len(lines) > limits.max_short_lines:
        return "fineweb: short lines"
    line_feeds = text.count("\n")
    if repeated_parts(lines)[1] / (len(text) - line_feeds) > limits.max_repeated_characters:
        return "fineweb: repeated lines"
    if line_feeds / len(document.hashes) > limits.max_line_feeds:
        return "fineweb: a list"
    return None
