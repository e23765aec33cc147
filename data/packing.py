"""Packs documents into rows of fixed length by arithmetic on their offsets: row r is a pure function of the store.

The (input, target) pairs of all documents are concatenated and cut every `sequence_length` pairs, so each token is a
target exactly once per epoch and nothing is discarded. A document that is cut continues in the next row as a new
segment. Only the offsets of the documents are stored; they are never copied into memory.
"""

import dataclasses
from typing import Protocol

import numpy as np

from data.offsets import Offsets, documents_of_pairs

_OPEN_ROWS = 32  # rows that first fit considers; bounds the time to examples x _OPEN_ROWS


class Documents(Protocol):
    """What packing reads: flat tokens and document offsets; a document starts with bos and ends with eos."""

    def read(self, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
        """Returns the tokens from each start up to its stop, counted over all documents, concatenated."""

    @property
    def is_remote(self) -> bool:
        """Whether reading waits for a network."""

    @property
    def offsets(self) -> np.ndarray | Offsets:
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
        return int(documents_of_pairs(self.documents.offsets, np.array([row * self.sequence_length]))[0])

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns tokens, targets, segment_ids, positions (int32) and weights (float32) of shape (rows, T).

        Segment ids count from 1 in each row; after the last pair of the split, segment ids and weights are 0. Reads
        O(log(documents) + T) offsets per row.
        """
        T, offsets, num_pairs = self.sequence_length, self.documents.offsets, self.num_pairs
        first = np.asarray(indices, np.int64) * T
        last = np.minimum(first + T, num_pairs) - 1
        # A row's documents are consecutive, so only its first and last pair need a search over all documents.
        low, high = documents_of_pairs(offsets, np.concatenate([first, last])).reshape(2, -1)
        # A row's tokens and targets are within one range: a bucket is asked once per row. Each document before a pair
        # has one pair fewer than tokens.
        reads = self.documents.read(first + low, last + high + 2)
        # One entry per document of each row: where it starts and ends in the row, and the row's number of it.
        counts = high - low + 1
        before = np.cumsum(counts) - counts
        number = np.arange(counts.sum()) - np.repeat(before, counts)
        document = np.repeat(low, counts) + number
        ends = np.asarray(offsets[document + 1]) - (document + 1) - np.repeat(first, counts)
        ends[before + counts - 1] = T
        starts = np.concatenate([[0], ends[:-1]])
        starts[before] = 0
        lengths = ends - starts
        segment = np.repeat(number.astype(np.int32), lengths).reshape(-1, T)
        place = np.arange(T, dtype=np.int32)
        real = place < (last + 1 - first)[:, None]
        positions = np.where(real, place - np.repeat(starts.astype(np.int32), lengths).reshape(-1, T), 0)
        # After the last pair of the split, its tokens are repeated.
        columns = np.minimum(place, (last - first).astype(np.int32)[:, None]) + segment
        tokens, targets = np.empty((2, *columns.shape), np.int32)
        for row, read in enumerate(reads):
            tokens[row], targets[row] = read[columns[row]], read[1:][columns[row]]
        return {
            "tokens": tokens,
            "targets": targets,
            "segment_ids": np.where(real, segment + 1, 0),
            "positions": positions,
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
