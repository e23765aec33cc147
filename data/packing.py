"""Packs documents into rows of fixed length by arithmetic on their offsets: row r is a pure function of the store.

The (input, target) pairs of all documents are concatenated and cut every `sequence_length` pairs, so each token is a
target exactly once per epoch and nothing is discarded. A document that is cut continues in the next row as a new
segment. Only the offsets of the documents are stored; they are never copied into memory.
"""

import dataclasses
from typing import Protocol

import numpy as np

from data.offsets import Offsets, document_of_pair

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
        return document_of_pair(self.documents.offsets, row * self.sequence_length)

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns tokens, targets, segment_ids, positions (int32) and weights (float32) of shape (rows, T).

        Segment ids count from 1 in each row; after the last pair of the split, segment ids and weights are 0. Reads
        O(log(documents) + T) offsets per row.
        """
        T, offsets = self.sequence_length, self.documents.offsets
        first = np.asarray(indices, np.int64)[:, None] * T
        pair = np.minimum(first + np.arange(T), self.num_pairs - 1)
        document, start = np.empty((2, *pair.shape), np.int64)
        for row, pairs in enumerate(pair):
            low = document_of_pair(offsets, int(pairs[0]))
            # A document has at least one pair, so a row has at most T documents; `bounds` are their first pairs.
            bounds = offsets[low : low + T + 1]
            bounds = bounds - np.arange(low, low + len(bounds))
            found = np.searchsorted(bounds[1:], pairs, side="right")
            document[row], start[row] = low + found, bounds[found]
        # Each document before this one has one pair fewer than tokens.
        token = pair + document
        start = np.maximum(start, first)
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
