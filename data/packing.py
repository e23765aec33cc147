"""Documents -> rows of fixed length, as arithmetic on offsets: row r is a pure function of the store.

The documents' (input, target) pairs are laid end to end and cut every `sequence_length` pairs, so each token is a
target exactly once an epoch and nothing is discarded. A document that a cut divides goes on in the next row as a new
segment. Nothing is stored but the documents' offsets.
"""

import dataclasses
from typing import Protocol

import numpy as np


class Documents(Protocol):
    """What packing reads: flat tokens and the documents' offsets; a document starts with bos and ends with eos."""

    @property
    def tokens(self) -> np.ndarray:
        """All documents' tokens, one after the other."""

    @property
    def offsets(self) -> np.ndarray:
        """Where each document starts, and the end of the last."""


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """The rows of a split; `rows(indices)` makes any of them in time independent of the size of the split."""

    documents: Documents
    sequence_length: int

    @property
    def num_pairs(self) -> int:
        """The number of targets: a document of n tokens has n - 1."""
        offsets = self.documents.offsets
        return int(offsets[-1]) - (len(offsets) - 1)

    def __len__(self) -> int:
        return -(-self.num_pairs // self.sequence_length)

    def first_document(self, row: int) -> int:
        """Returns the number of the document that a row begins in; segment s of the row is the (s - 1)-th after it."""
        return int(np.searchsorted(self._ends, row * self.sequence_length, side="right"))

    @property
    def _ends(self) -> np.ndarray:
        """The number of the pair that follows each document; each before it gave one pair fewer than it has tokens."""
        offsets = self.documents.offsets
        return offsets[1:] - np.arange(1, len(offsets))

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns tokens, targets, segment_ids, positions (int32) and weights (float32) of shape (rows, T).

        Segment ids count from 1 in each row and are 0 after the last pair of the split, where the weight is 0 too.
        """
        T, offsets, tokens = self.sequence_length, self.documents.offsets, self.documents.tokens
        first = np.asarray(indices, np.int64)[:, None] * T
        pair = np.minimum(first + np.arange(T), self.num_pairs - 1)
        document = np.searchsorted(self._ends, pair, side="right")
        # Each document before this one gave one pair fewer than it has tokens.
        token = pair + document
        start = np.maximum(offsets[document] - document, first)
        real = first + np.arange(T) < self.num_pairs
        return {
            "tokens": tokens[token].astype(np.int32),
            "targets": tokens[token + 1].astype(np.int32),
            "segment_ids": np.where(real, document - document[:, :1] + 1, 0).astype(np.int32),
            "positions": np.where(real, pair - start, 0).astype(np.int32),
            "weights": real.astype(np.float32),
        }


def pack_examples(lengths: np.ndarray, sequence_length: int, seed: int, open_rows: int = 32) -> list[list[int]]:
    """Returns rows of example numbers whose lengths fit `sequence_length`: first fit over a shuffled order.

    Args:
        lengths: tokens of each example, at most `sequence_length`.
        sequence_length: tokens a row.
        seed: of the order.
        open_rows: rows that are looked at for room; bounds the time to examples x open_rows.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for example in np.random.default_rng(seed).permutation(len(lengths)).tolist():
        length = int(lengths[example])
        first = max(len(rows) - open_rows, 0)
        fits = next((row for row in range(first, len(rows)) if room[row] >= length), None)
        if fits is None:
            rows.append([])
            room.append(sequence_length)
            fits = len(rows) - 1
        rows[fits].append(example)
        room[fits] -= length
    return rows
