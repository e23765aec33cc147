"""Evaluation rows in training text: an index of 13-grams of words.

Words are compared without case, punctuation and typography (`compared_words`). A row is found in a document if they
share 13 adjacent words of one of the row's texts; a text of 8 to 12 words must occur as a whole; a shorter one is not
checked. An n-gram of more than 10 different texts of a set is part of a prompt and does not count. (Brown et al. 2020,
https://arxiv.org/abs/2005.14165, appendix C.)
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from data.filters.compared_words import compared_ids
from data.filters.words import ngram_hashes

LONGEST, SHORTEST = 13, 8
_MAX_TEXTS = 10
# How words are compared, as a part of the fingerprint: 2 since typography is left out.
_VERSION = 2

# Texts of one row.
Texts = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """Rows that should not be in training text.

    Attributes:
        name: of the set.
        rows: the texts of each row.
    """

    name: str
    rows: Sequence[Texts]


@dataclasses.dataclass(frozen=True)
class ContaminationIndex:
    """The n-grams of evaluation sets.

    Attributes:
        names: of the sets.
        set_of: int64[rows], number of the set of each row; the rows of all sets are numbered together.
        checked: bool[rows], whether a row has a text of at least 8 words.
        hashes: n -> uint64, sorted hashes of n-grams; a hash occurs once per row that contains it.
        rows: n -> int64, the row of each hash.
    """

    names: tuple[str, ...]
    set_of: np.ndarray
    checked: np.ndarray
    hashes: dict[int, np.ndarray]
    rows: dict[int, np.ndarray]

    @property
    def fingerprint(self) -> str:
        """A SHA-256 of the index."""
        digest = hashlib.sha256(repr((_VERSION, self.names)).encode() + self.set_of.tobytes())
        for size in sorted(self.hashes):
            digest.update(self.hashes[size].tobytes() + self.rows[size].tobytes())
        return digest.hexdigest()

    def find(self, text: str) -> np.ndarray:
        """Returns int64: the numbers of the rows that are found in a document, in ascending order."""
        found = []
        ids = compared_ids(text)
        for size, hashes in self.hashes.items():
            own = ngram_hashes(ids, size)
            if not len(own) or not len(hashes):
                continue
            starts = np.searchsorted(hashes, own)
            hits = hashes[np.minimum(starts, len(hashes) - 1)] == own
            for value in np.unique(own[hits]):
                start, stop = np.searchsorted(hashes, value), np.searchsorted(hashes, value, "right")
                found.append(self.rows[size][start:stop])
        return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)


def build_index(sets: Iterable[EvaluationSet]) -> ContaminationIndex:
    """Returns the index of evaluation sets."""
    names: list[str] = []
    set_of: list[int] = []
    checked: list[bool] = []
    found: dict[int, list[tuple[np.ndarray, int]]] = {}
    for number, one in enumerate(sets):
        names.append(one.name)
        # Rows often share a text, such as the paragraph that several questions are about.
        ngrams = {text: _ngrams(text) for row in one.rows for text in row}
        texts_with = Counter(value for _, hashes in ngrams.values() for value in hashes.tolist())
        common = np.array([value for value, count in texts_with.items() if count > _MAX_TEXTS], np.uint64)
        for row in one.rows:
            here = [ngrams[text] for text in dict.fromkeys(row)]
            for size, hashes in here:
                found.setdefault(size, []).append((hashes[~np.isin(hashes, common)], len(set_of)))
            set_of.append(number)
            checked.append(any(len(hashes) for _, hashes in here))
    all_hashes: dict[int, np.ndarray] = {}
    all_rows: dict[int, np.ndarray] = {}
    for size in sorted(found):
        values = np.concatenate([values for values, _ in found[size]])
        owners = np.repeat([row for _, row in found[size]], [len(values) for values, _ in found[size]])
        order = np.lexsort((owners, values))
        all_hashes[size], all_rows[size] = values[order], owners[order].astype(np.int64)
    return ContaminationIndex(tuple(names), np.array(set_of, np.int64), np.array(checked, bool), all_hashes, all_rows)


def _ngrams(text: str) -> tuple[int, np.ndarray]:
    """Returns (n, the different hashes of the n-grams of a text)."""
    ids = compared_ids(text)
    size = min(LONGEST, max(SHORTEST, len(ids)))
    return size, np.unique(ngram_hashes(ids, size))


def texts_of(value: object) -> Iterator[str]:
    """Yields every text in a value of a row: itself, or those in its lists and objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from texts_of(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from texts_of(part)


def report(index: ContaminationIndex, found: np.ndarray, documents: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Returns {set: its number of rows, how many were checked and found, and the documents that contain some}.

    Args:
        index: the index.
        found: int64, numbers of the rows that were found in some document.
        documents: number of documents that contain rows of each set.
    """
    rows_found = np.zeros(len(index.set_of), bool)
    rows_found[found] = True
    return {
        name: {
            "rows": int(np.count_nonzero(index.set_of == number)),
            "rows_checked": int(np.count_nonzero(index.checked & (index.set_of == number))),
            "rows_found": int(np.count_nonzero(rows_found & (index.set_of == number))),
            "documents": int(documents[number]),
        }
        for number, name in enumerate(index.names)
    }
