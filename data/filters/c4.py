"""The rules of C4 (Raffel et al. 2020, https://jmlr.org/papers/v21/20-074.html, section 2.2): lines, then documents."""

import dataclasses
import re
from collections import Counter

from data.filters.words import split_sentences

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_ENDS = (".", "?", "!", '"', "'")
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


@dataclasses.dataclass(frozen=True)
class C4:
    """Thresholds of the rules.

    Attributes:
        min_sentences: fewest sentences of a document, after lines were removed.
        min_line_words: fewest words of a line, split at white space.
        max_word_length: most characters of a word of a line.
    """

    min_sentences: int = 5
    min_line_words: int = 3
    max_word_length: int = 1000


def c4(text: str, limits: C4) -> tuple[str, str | None, Counter[str]]:
    """Returns (the lines that stay, the rule that removes the document or None, number of changes by kind).

    A line is removed if it has a very long word or few words, does not end a sentence, or contains "javascript" or a
    phrase of a cookie notice. Citation marks are removed from the others. A document is removed if a line that would
    stay contains "lorem ipsum" or "{", or if few sentences or no lines remain.
    """
    kept, sentences, citations = [], 0, 0
    lines = text.splitlines()
    for line in lines:
        words = line.split()
        if len(line) > limits.max_word_length and max(map(len, words), default=0) > limits.max_word_length:
            continue
        line, marks = _CITATION.subn("", line.strip())
        if not line.endswith(_ENDS) or line.endswith("...") or len(words) < limits.min_line_words:
            continue
        lower = line.lower()
        if "lorem ipsum" in lower:
            return "", "c4: lorem ipsum", Counter()
        if "javascript" in lower:
            continue
        if "{" in line:
            return "", "c4: a curly bracket", Counter()
        if any(phrase in lower for phrase in _POLICIES):
            continue
        sentences += len(split_sentences(line))
        citations += marks
        kept.append(line)
    if sentences < limits.min_sentences:
        return "", "c4: few sentences", Counter()
    if not kept:
        return "", "c4: no lines", Counter()
    changes = Counter({"lines removed": len(lines) - len(kept), "citation marks removed": citations})
    return "\n".join(kept).strip(), None, +changes
