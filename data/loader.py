"""Batch t as a pure function of (seed, t): a stateless order of row indices, prefetched by Grain.

The only data state is the step, so resuming costs nothing and works on any number of hosts.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

import grain
import numpy as np

from data.mixed_rows import MixedRows
from data.order import shuffled
from data.packing import PackedRows

Batch = dict[str, np.ndarray]
Skipped = tuple[tuple[int, int], ...]  # (first, last) batches that training skips; ranges may overlap


class Rows(Protocol):
    """Indexed rows: `rows(indices)` returns a dict of (rows, T) arrays with at least "weights" and "segment_ids"."""

    def __len__(self) -> int:
        """The number of rows."""

    def rows(self, indices: np.ndarray) -> Batch:
        """Returns the rows with these indices."""


@dataclasses.dataclass(frozen=True)
class BatchFunction:
    """t -> this host's rows of global batch t; picklable for Grain's worker processes.

    Attributes:
        source: the rows; of a mixture, those of all sources.
        batch_size: rows of the global batch.
        seed: seed of the permutations; each epoch has its own permutation.
        row_indices: which rows of the global batch this host reads, counted from 0; None: all.
        skipped: the batches to skip; t counts the others.
    """

    source: Rows
    batch_size: int
    seed: int
    row_indices: np.ndarray | None = None
    skipped: Skipped = ()

    def row_numbers(self, t: int) -> np.ndarray:
        """Returns the indices in the source of this host's rows of batch t, in order."""
        row_indices = np.arange(self.batch_size) if self.row_indices is None else self.row_indices
        numbers = batch_number(t, self.skipped) * self.batch_size + row_indices
        if isinstance(self.source, MixedRows):
            return self.source.order(numbers, self.seed)
        return shuffled(numbers, len(self.source), self.seed)

    def places(self, t: int) -> dict[str, list[Any]]:
        """Returns "rows", the numbers of batch t's rows in their source, and of a mixture "sources", their names."""
        rows = self.row_numbers(t)
        if not isinstance(self.source, MixedRows):
            return {"rows": rows.tolist()}
        sources, within = self.source.locate(rows)
        return {"rows": within.tolist(), "sources": [self.source.names[source] for source in sources.tolist()]}

    def __call__(self, t: int) -> Batch:
        """Returns this host's rows of batch t."""
        return self.source.rows(self.row_numbers(int(t)))


def batch_number(t: int, skipped: Skipped) -> int:
    """Returns the batch that step t (counted from 0) trains on: the t-th batch that is not skipped."""
    number, reached = t, -1
    for first, last in sorted(skipped):
        if number < first:
            break
        number += max(last - max(first - 1, reached), 0)
        reached = max(reached, last)
    return number


def train_batches(function: BatchFunction, start: int, stop: int, num_workers: int, prefetch: int) -> Iterator[Batch]:
    """Yields batches `start` to `stop - 1`, prefetched by `num_workers` processes, or by threads if 0."""
    source = function.source
    waits = isinstance(source, PackedRows | MixedRows) and source.is_remote
    # Grain's default of 16 threads is slower than no thread on a local memory map.
    threads = prefetch if waits else min(prefetch, 1)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    dataset = grain.MapDataset.range(start, stop).map(function).to_iter_dataset(options)
    if num_workers:
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=prefetch)
        )
    return iter(dataset)


def evaluation_batches(
    source: Rows, batch_size: int, limit: int, row_indices: np.ndarray | None = None
) -> Iterator[Batch]:
    """Yields every row once, in order, in batches of one shape; `limit` stops after that many batches (0: no limit).

    The last batch is padded with rows whose weights and segment ids are 0. `row_indices`: see `BatchFunction`.
    """
    count = -(-len(source) // batch_size)
    for t in range(min(count, limit) if limit else count):
        numbers = t * batch_size + (np.arange(batch_size) if row_indices is None else row_indices)
        batch = source.rows(np.minimum(numbers, len(source) - 1))
        beyond = numbers >= len(source)
        for key in ("weights", "segment_ids"):
            batch[key][beyond] = 0
        yield batch
