"""Texts that are the same but for a few words, found exactly: for labeled rows, of which there are thousands.

Two texts are similar if the sets of their pairs of neighboring words have a Jaccard index of at least `THRESHOLD`. A
pair of similar texts shares one of its rarest word pairs, so only texts that do are compared (the prefix filter of
Bayardo et al. 2007, "Scaling Up All Pairs Similarity Search").
"""

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

THRESHOLD = 0.8
# Words of a text that are compared: a bound on the time that a row takes.
MAX_WORDS = 512
# Texts of one template are all similar to each other. Of so many candidates, and of so many similar ones, no more are
# looked at, so that the time grows with the number of texts and not with its square.
MAX_CANDIDATES, MAX_FOUND = 256, 32

# Scripts without spaces between words: Thai, Lao, Myanmar, Khmer, kana and Han. Each of their characters is a word.
NO_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# Vowel signs and accents, which Python does not count as parts of words.
_MARKS = "".join(chr(code) for code in range(0x10000) if unicodedata.category(chr(code)).startswith("M"))
_WORD = re.compile(rf"[{NO_SPACES}]|[^\W{NO_SPACES}](?:[^\W{NO_SPACES}]|[{_MARKS}])*")


class Similar(NamedTuple):
    """Two texts, by index, first < second; the Jaccard index of their word pairs."""

    first: int
    second: int
    jaccard: float


class SimilarTexts(NamedTuple):
    """Pairs of texts, and whether these are all pairs; False: a text had too many candidates."""

    pairs: list[Similar]
    complete: bool


def words(text: str) -> list[str]:
    """Returns the words of a text, in lower case and without punctuation; without spaces, each character is a word.

    A text of punctuation alone is one word.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _WORD.findall(folded) or ["".join(folded.split())]


def similar_texts(texts: Sequence[Sequence[str]]) -> SimilarTexts:
    """Returns the pairs of texts whose Jaccard index is at least `THRESHOLD`.

    Args:
        texts: the words of each text, see `words`; the first `MAX_WORDS` are compared.
    """
    sets = _numbered([_word_pairs(text[:MAX_WORDS]) for text in texts])
    # The texts that contain a word pair among their rarest ones, shortest text first.
    index: dict[int, list[int]] = defaultdict(list)
    marked = np.zeros(1 + max((int(found[-1]) for found in sets if len(found)), default=0), bool)
    pairs, complete = [], True
    for row in sorted(range(len(sets)), key=lambda row: len(sets[row])):
        size = len(sets[row])
        rarest = sets[row][: size - math.ceil(THRESHOLD * size) + 1].tolist()
        candidates = _candidates(index, rarest)
        marked[sets[row]] = True
        found = 0
        for other in candidates[:MAX_CANDIDATES]:
            if len(sets[other]) < THRESHOLD * size:
                continue
            shared = int(np.count_nonzero(marked[sets[other]]))
            jaccard = shared / (size + len(sets[other]) - shared)
            if jaccard >= THRESHOLD:
                pairs.append(Similar(min(row, other), max(row, other), jaccard))
                found += 1
            if found == MAX_FOUND:
                break
        complete &= len(candidates) <= MAX_CANDIDATES and found < MAX_FOUND
        marked[sets[row]] = False
        for number in rarest:
            index[number].append(row)
    return SimilarTexts(sorted(pairs), complete)


def _candidates(index: Mapping[int, list[int]], rarest: Sequence[int]) -> list[int]:
    """Returns the texts that share a rare word pair, those that share the rarest first; a few more than are read."""
    found: dict[int, None] = {}
    for number in rarest:
        # The last ones are the closest in size.
        found |= dict.fromkeys(reversed(index.get(number, [])[-MAX_CANDIDATES - 1 :]))
        if len(found) > MAX_CANDIDATES:
            break
    return list(found)


def _word_pairs(text: Sequence[str]) -> set[tuple[str, str]]:
    """Returns the pairs of neighboring words; beginning and end of the text are neighbors too."""
    return set(zip(("", *text), (*text, ""), strict=True))


def _numbered(sets: Sequence[set[tuple[str, str]]]) -> list[np.ndarray]:
    """Returns each set as sorted numbers, of which the lower ones are rarer among the sets."""
    counts = Counter(pair for found in sets for pair in found)
    order = sorted(counts, key=lambda pair: (counts[pair], pair))
    numbers = {pair: number for number, pair in enumerate(order)}
    return [np.sort(np.array([numbers[pair] for pair in found], np.int32)) for found in sets]
