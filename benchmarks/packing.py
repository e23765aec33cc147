"""CPU milliseconds per batch of 64 random rows of 2,048 tokens, by the number of documents in the store.

python -m benchmarks.packing --largest=9 --directory=/tmp

A store has shards of 2^18 documents, 210 MB of tokens, as a prepared one. The files are sparse, because the offsets of
10^9 documents take 8 GB: a first pass over the batches computes the offsets that they read and writes them, and the
second pass is timed on the memory maps.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data.offsets import Offsets
from data.packing import PackedRows

ROWS, SEQUENCE_LENGTH, TOKENS_PER_DOCUMENT, BATCHES = 64, 2048, 400, 20
DOCUMENTS_PER_SHARD = 1 << 18


@dataclasses.dataclass(frozen=True)
class WrittenWhenRead:
    """An offsets array that computes an element when it is read and writes it to a sparse file."""

    file: np.ndarray

    def __len__(self) -> int:
        return len(self.file)

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        numbers = np.arange(*index.indices(len(self))) if isinstance(index, slice) else np.asarray(index) % len(self)
        self.file[index] = numbers * TOKENS_PER_DOCUMENT
        return self.file[index]


class Store:
    """What `PackedRows` reads, of documents of one length in shards."""

    is_remote = False

    def __init__(self, directory: Path, count: int) -> None:
        self.documents = [min(DOCUMENTS_PER_SHARD, count - first) for first in range(0, count, DOCUMENTS_PER_SHARD)]
        shape = (count * TOKENS_PER_DOCUMENT,)
        self.tokens = np.memmap(directory / "tokens.bin", np.uint16, mode="w+", shape=shape)
        # One file for all shards, so that no limit on open files matters; a store keeps 256 of them open.
        shape = (len(self.documents), DOCUMENTS_PER_SHARD + 1)
        self.files = np.memmap(directory / "offsets.bin", np.int64, mode="w+", shape=shape)

    def offsets_from(self, read: Callable[[np.ndarray], Any]) -> None:
        """Makes `offsets` of the shards' arrays, each passed through `read`."""
        tokens = [count * TOKENS_PER_DOCUMENT for count in self.documents]
        arrays = [read(self.files[shard, : count + 1]) for shard, count in enumerate(self.documents)]
        self.offsets = Offsets(self.documents, tokens, arrays.__getitem__)

    def read(self, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
        """Returns the tokens from each start up to its stop."""
        return [self.tokens[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]


def milliseconds(directory: Path, count: int) -> tuple[float, float]:
    """Returns the median and the largest CPU time per batch from a store of `count` documents."""
    store = Store(directory, count)
    store.offsets_from(WrittenWhenRead)
    rows = PackedRows(store, SEQUENCE_LENGTH)
    batches = [np.random.default_rng(seed).integers(0, len(rows), ROWS) for seed in range(BATCHES)]
    for indices in batches:
        rows.rows(indices)
    store.offsets_from(np.asarray)
    rows.rows(batches[0])
    seconds = []
    for indices in batches:
        begin = time.process_time()
        rows.rows(indices)
        seconds.append(time.process_time() - begin)
    return 1e3 * statistics.median(seconds), 1e3 * max(seconds)


def main() -> None:
    """Prints a line per number of documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=9, help="10^N documents at most")
    parser.add_argument("--directory", type=Path, help="where the sparse files are written; default: a temporary one")
    arguments = parser.parse_args()
    for exponent in range(4, arguments.largest + 1):
        with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
            median, slowest = milliseconds(Path(directory), 10**exponent)
        print(f"10^{exponent} documents: {median:6.1f} ms per batch (median of {BATCHES}; slowest {slowest:.1f} ms)")


if __name__ == "__main__":
    main()
