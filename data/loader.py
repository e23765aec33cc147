"""Batch t as a pure function of (seed, t): a stateless permutation of row numbers, read ahead by Grain.

The state of the data is the step, so resuming costs nothing and works on any number of hosts.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Protocol

import grain
import numpy as np

Batch = dict[str, np.ndarray]
Skipped = tuple[tuple[int, int], ...]  # (first, last) numbers of batches that training passes over; may overlap


class Rows(Protocol):
    """Numbered rows: `rows(indices)` returns a dict of (rows, T) arrays with at least "weights" and "segment_ids"."""

    def __len__(self) -> int:
        """The number of rows."""

    def rows(self, indices: np.ndarray) -> Batch:
        """Returns the rows of these numbers."""


@dataclasses.dataclass(frozen=True)
class BatchFunction:
    """t -> this host's rows of global batch t; picklable, so that Grain's workers can call it.

    Attributes:
        source: the rows.
        batch_size: rows of the global batch.
        seed: of the permutation; each epoch has its own.
        places: which of the global batch's rows this host reads, counted from 0; None: all.
        skipped: the batches that are passed over: t counts the others.
    """

    source: Rows
    batch_size: int
    seed: int
    places: np.ndarray | None = None
    skipped: Skipped = ()

    def row_numbers(self, t: int) -> np.ndarray:
        """Returns the row numbers of this host's part of batch t, in order."""
        order = _epochs(len(self.source), self.seed)
        first = batch_number(t, self.skipped) * self.batch_size
        places = range(self.batch_size) if self.places is None else self.places.tolist()
        return np.array([order[first + place] for place in places])

    def __call__(self, t: int) -> Batch:
        """Returns this host's rows of batch t."""
        return self.source.rows(self.row_numbers(int(t)))


def batch_number(t: int, skipped: Skipped) -> int:
    """Returns the number of the batch that step t, counted from 0, takes: the t-th of those that are not skipped."""
    number, reached = t, -1
    for first, last in sorted(skipped):
        if number < first:
            break
        number += max(last - max(first - 1, reached), 0)
        reached = max(reached, last)
    return number


@functools.lru_cache(maxsize=4)
def _epochs(length: int, seed: int) -> grain.MapDataset:
    """Returns all epochs' row numbers, each epoch in an order of its own; an index costs no memory."""
    return grain.MapDataset.range(length).seed(seed).shuffle().repeat()


def train_batches(function: BatchFunction, start: int, stop: int, num_workers: int, prefetch: int) -> Iterator[Batch]:
    """Yields batches `start` to `stop - 1`, made ahead of time in `num_workers` processes, or in a thread when 0."""
    # Grain's default of 16 threads is slower than none on a local memory map.
    options = grain.ReadOptions(num_threads=min(prefetch, 1), prefetch_buffer_size=prefetch)
    dataset = grain.MapDataset.range(start, stop).map(function).to_iter_dataset(options)
    if num_workers:
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=prefetch)
        )
    return iter(dataset)


def evaluation_batches(source: Rows, batch_size: int, limit: int, places: np.ndarray | None = None) -> Iterator[Batch]:
    """Yields every row once, in order, in batches of one shape; `limit` stops after that many batches (0: never).

    The last batch is filled up with rows of weight 0 and segment 0. `places`: see `BatchFunction`.
    """
    count = -(-len(source) // batch_size)
    for t in range(min(count, limit) if limit else count):
        numbers = t * batch_size + (np.arange(batch_size) if places is None else places)
        batch = source.rows(np.minimum(numbers, len(source) - 1))
        beyond = numbers >= len(source)
        for key in ("weights", "segment_ids"):
            batch[key][beyond] = 0
        yield batch
