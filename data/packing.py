"""Packs documents into rows of fixed length by arithmetic on their offsets: row r is a pure function of the store.

The (input, target) pairs of all documents are concatenated and cut every `sequence_length` pairs, so each token is a
target exactly once per epoch and nothing is discarded. A document that is cut continues in the next row as a new
segment. Only the offsets of the documents are stored; they are never copied into memory.
"""

import dataclasses
from typing import Protocol

import numpy as np

_OPEN_ROWS = 32  # rows that first fit considers; bounds the time to examples x _OPEN_ROWS


class Documents(Protocol):
    """What packing reads: flat tokens and document offsets; a document starts with bos and ends with eos."""

    def read(self, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
        """Returns the tokens from each start up to its stop, counted over all documents, concatenated."""

    @property
    def is_remote(self) -> bool:
        """Whether reading waits for a network."""

    @property
    def offsets(self) -> np.ndarray:
        """The start of each document, and the end of the last, in tokens."""


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """The rows of a split; `rows(indices)` builds any of them in time logarithmic in the number of documents."""

    documents: Documents
    sequence_length: int

    @property
    def is_remote(self) -> bool:
        """Whether reading waits for a network."""
        return self.documents.is_remote

    @property
    def num_pairs(self) -> int:
        """The number of (input, target) pairs: n - 1 for a document of n tokens."""
        offsets = self.documents.offsets
        return int(offsets[-1]) - (len(offsets) - 1)

    def __len__(self) -> int:
        return -(-self.num_pairs // self.sequence_length)

    def first_document(self, row: int) -> int:
        """Returns the index of the first document in a row; segment s of the row is document `first + s - 1`."""
        return int(self._documents_of(np.array([row * self.sequence_length]))[0])

    def _documents_of(self, pairs: np.ndarray) -> np.ndarray:
        """Returns the document of each pair, by bisection on offsets that are read one element per pair and round.

        The pairs of document d end before pair `offsets[d + 1] - (d + 1)`, because each document up to it has one pair
        fewer than tokens. These ends are not computed for all documents, of which there may be 10^9.
        """
        offsets = self.documents.offsets
        low = np.zeros(len(pairs), np.int64)
        high = np.full(len(pairs), len(offsets) - 1)
        for _ in range((len(offsets) - 1).bit_length()):
            # Where the search has ended, low == high may be the number of documents.
            middle = np.minimum((low + high) // 2, len(offsets) - 2)
            before = (offsets[middle + 1] - (middle + 1) <= pairs) & (low < high)
            low, high = np.where(before, middle + 1, low), np.where(before, high, np.maximum(middle, low))
        return low

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns tokens, targets, segment_ids, positions (int32) and weights (float32) of shape (rows, T).

        Segment ids count from 1 in each row; after the last pair of the split, segment ids and weights are 0. Reads
        O(log(documents) + T) offsets per row.
        """
        T, offsets = self.sequence_length, self.documents.offsets
        first = np.asarray(indices, np.int64)[:, None] * T
        pair = np.minimum(first + np.arange(T), self.num_pairs - 1)
        # A row's documents are consecutive, so only its first and last pair need a search over all documents.
        bounds = self._documents_of(pair[:, [0, -1]].ravel()).reshape(-1, 2)
        document = np.empty_like(pair)
        for row, (low, high) in enumerate(bounds.tolist()):
            ends = offsets[low + 1 : high + 1] - np.arange(low + 1, high + 1)
            document[row] = low + np.searchsorted(ends, pair[row], side="right")
        # Each document before this one has one pair fewer than tokens.
        token = pair + document
        start = np.maximum(offsets[document] - document, first)
        real = first + np.arange(T) < self.num_pairs
        tokens, targets = np.empty((2, *token.shape), np.int32)
        # A row's tokens and targets are within one range: a bucket is asked once per row.
        for row, read in enumerate(self.documents.read(token[:, 0], token[:, -1] + 2)):
            places = token[row] - token[row, 0]
            tokens[row], targets[row] = read[places], read[places + 1]
        return {
            "tokens": tokens,
            "targets": targets,
            "segment_ids": np.where(real, document - document[:, :1] + 1, 0).astype(np.int32),
            "positions": np.where(real, pair - start, 0).astype(np.int32),
            "weights": real.astype(np.float32),
        }


def pack_examples(lengths: np.ndarray, sequence_length: int, seed: int) -> list[list[int]]:
    """Returns rows of example indices whose lengths sum to at most `sequence_length`: first fit in shuffled order.

    Args:
        lengths: number of tokens of each example, at most `sequence_length`.
        sequence_length: tokens per row.
        seed: seed of the order.
    """
    rows: list[list[int]] = []
    free: list[int] = []
    for example in np.random.default_rng(seed).permutation(len(lengths)).tolist():
        length = int(lengths[example])
        first = max(len(rows) - _OPEN_ROWS, 0)
        fits = next((row for row in range(first, len(rows)) if free[row] >= length), None)
        if fits is None:
            rows.append([])
            free.append(sequence_length)
            fits = len(rows) - 1
        rows[fits].append(example)
        free[fits] -= length
    return rows
