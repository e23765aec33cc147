"""The rows of several sources, mixed: each source has its own shuffle and epochs, whatever the others do."""

import dataclasses
import functools
import hashlib

import numpy as np

from data.order import shuffled
from data.packing import PackedRows
from data.row_plan import RowPlan


@dataclasses.dataclass(frozen=True)
class MixedRows:
    """The rows of all sources, one source after the other, and the order in which a run reads them.

    Attributes:
        names: the names of the sources, sorted.
        sources: their rows.
        plan: which source gives each row of the run.
    """

    names: tuple[str, ...]
    sources: tuple[PackedRows, ...]
    plan: RowPlan

    def __len__(self) -> int:
        return int(self._ends[-1])

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        """int64[sources]: where the rows of each source end, among the rows of all."""
        return np.cumsum([len(source) for source in self.sources])

    @property
    def is_remote(self) -> bool:
        """Whether reading waits for a network."""
        return any(source.is_remote for source in self.sources)

    def order(self, numbers: np.ndarray, seed: int) -> np.ndarray:
        """Returns the index of the row that comes at each place of the endless order (see `data.order`)."""
        picked, within = self.plan.pick(numbers)
        found = np.empty(len(picked), np.int64)
        for source in np.unique(picked).tolist():
            mine, length = picked == source, len(self.sources[source])
            first = int(self._ends[source]) - length
            found[mine] = first + shuffled(within[mine], length, source_seed(seed, self.names[source]))
        return found

    def locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (source, row of this source) of rows that are given by their index among the rows of all."""
        source = np.searchsorted(self._ends, indices, side="right")
        return source, indices - np.concatenate([[0], self._ends])[source]

    def first_document(self, index: int) -> int:
        """Returns the index in its source of the first document of a row; see `PackedRows.first_document`."""
        source, row = self.locate(np.array([index]))
        return self.sources[int(source[0])].first_document(int(row[0]))

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the rows with these indices; see `PackedRows.rows`."""
        source, row = self.locate(np.asarray(indices, np.int64))
        batch: dict[str, np.ndarray] = {}
        for number in np.unique(source).tolist():
            mine = np.flatnonzero(source == number)
            for name, values in self.sources[number].rows(row[mine]).items():
                batch.setdefault(name, np.empty((len(source), *values.shape[1:]), values.dtype))[mine] = values
        return batch


def source_seed(seed: int, name: str) -> int:
    """Returns the seed of a source's shuffle, of 32 bits: sources of equal length are shuffled differently."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "big")
