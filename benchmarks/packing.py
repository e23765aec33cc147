"""CPU milliseconds per batch of 64 random rows of 2,048 tokens, by the number of documents in the store.

python benchmarks/packing.py --largest=9 --directory=/tmp

The files are sparse, because the offsets of 10^9 documents take 8 GB: a first pass over the batches computes the
offsets that they read and writes them, and the second pass is timed on the memory map.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from data.packing import PackedRows

ROWS, SEQUENCE_LENGTH, TOKENS_PER_DOCUMENT, BATCHES = 64, 2048, 400, 20


@dataclasses.dataclass(frozen=True)
class WrittenWhenRead:
    """An offsets array that computes an element when it is read and writes it to a sparse file."""

    file: np.memmap

    def __len__(self) -> int:
        return len(self.file)

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        numbers = np.arange(*index.indices(len(self))) if isinstance(index, slice) else np.asarray(index) % len(self)
        self.file[index] = numbers * TOKENS_PER_DOCUMENT
        return self.file[index]


@dataclasses.dataclass(frozen=True)
class Store:
    """What `PackedRows` reads."""

    tokens: np.ndarray
    offsets: np.ndarray
    is_remote: bool = False

    def read(self, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
        """Returns the tokens from each start up to its stop."""
        return [self.tokens[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]


def milliseconds(directory: Path, count: int) -> tuple[float, float]:
    """Returns the median and the largest CPU time per batch from a store of `count` documents."""
    tokens = np.memmap(directory / "tokens.bin", np.uint16, mode="w+", shape=(count * TOKENS_PER_DOCUMENT,))
    offsets = np.memmap(directory / "offsets.bin", np.int64, mode="w+", shape=(count + 1,))
    rows = PackedRows(Store(tokens, WrittenWhenRead(offsets)), SEQUENCE_LENGTH)  # type: ignore[arg-type]
    batches = [np.random.default_rng(seed).integers(0, len(rows), ROWS) for seed in range(BATCHES)]
    for indices in batches:
        rows.rows(indices)
    rows = PackedRows(Store(tokens, offsets), SEQUENCE_LENGTH)
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
