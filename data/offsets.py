"""Where documents start in the concatenated tokens of a split, over its shards, without loading all of it."""

import bisect
from collections.abc import Callable, Sequence

import numpy as np

Loader = Callable[[int], np.ndarray]


class Offsets:
    """Behaves as int64[documents + 1]: the start of each document in tokens, and the end of the last.

    An element is read from the shard that contains it; the first element of each shard is known without reading.
    """

    def __init__(self, documents: Sequence[int], tokens: Sequence[int], load: Loader) -> None:
        """Makes offsets of shards.

        Args:
            documents: number of documents of each shard.
            tokens: number of tokens of each shard.
            load: shard -> int64[documents + 1], the starts within the shard, from 0.
        """
        self._documents = np.cumsum([0, *documents], dtype=np.int64)
        self._tokens = np.cumsum([0, *tokens], dtype=np.int64)
        self._first_documents, self._first_tokens = self._documents.tolist(), self._tokens.tolist()
        self._first_pairs = self._tokens - self._documents
        self._load = load

    def __len__(self) -> int:
        return self._first_documents[-1] + 1

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        """Returns one element, a range or a selection, as an array's would be."""
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return self._range(start, stop) if step == 1 else self._select(np.arange(start, stop, step))
        numbers = np.asarray(index)
        if ((numbers < -len(self)) | (numbers >= len(self))).any():
            raise IndexError(f"document {index} of {len(self) - 1}")
        return self._select(numbers.ravel() % len(self)).reshape(numbers.shape)[()]

    def _select(self, numbers: np.ndarray) -> np.ndarray:
        shards = np.searchsorted(self._documents, numbers, side="right") - 1
        found = self._tokens[shards]
        local = numbers - self._documents[shards]
        for shard in np.unique(shards[local > 0]).tolist():
            inside = (shards == shard) & (local > 0)
            found[inside] += self._load(shard)[local[inside]]
        return found

    def _range(self, start: int, stop: int) -> np.ndarray:
        parts, firsts = [], self._first_documents
        while start < stop:
            shard = bisect.bisect_right(firsts, start) - 1
            if shard == len(firsts) - 1:
                parts.append(self._tokens[-1:])
                break
            end = min(stop, firsts[shard + 1])
            local = self._load(shard)[start - firsts[shard] : end - firsts[shard]]
            parts.append(local + self._first_tokens[shard])
            start = end
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def documents_of_pairs(self, pairs: np.ndarray) -> np.ndarray:
        """See `documents_of_pairs`; one search over the shards, then one within each shard that has a pair."""
        shards = np.searchsorted(self._first_pairs, pairs, side="right") - 1
        found = self._documents[shards]
        for shard in np.unique(shards).tolist():
            inside = shards == shard
            found[inside] += documents_of_pairs(self._load(shard), pairs[inside] - self._first_pairs[shard])
        return found


def documents_of_pairs(offsets: "Offsets | np.ndarray", pairs: np.ndarray) -> np.ndarray:
    """Returns the document of each (input, target) pair by bisection, which reads O(log(documents)) offsets per pair.

    The pairs of document d end before pair `offsets[d + 1] - (d + 1)`, because each document up to it has one pair
    fewer than tokens. These ends are not computed for all documents, of which there may be 10^9.
    """
    if isinstance(offsets, Offsets):
        return offsets.documents_of_pairs(pairs)
    low = np.zeros(len(pairs), np.int64)
    high = np.full(len(pairs), len(offsets) - 1)
    for _ in range((len(offsets) - 1).bit_length()):
        # Where the search has ended, low == high may be the number of documents.
        middle = np.minimum((low + high) // 2, len(offsets) - 2)
        before = (offsets[middle + 1] - (middle + 1) <= pairs) & (low < high)
        low, high = np.where(before, middle + 1, low), np.where(before, high, np.maximum(middle, low))
    return low
