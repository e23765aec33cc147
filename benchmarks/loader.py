"""Million tokens per CPU second that a loader delivers in one process, beside nanoGPT's and Grain over ArrayRecord.

python -m benchmarks.loader --tokens=100000000 --directory=/tmp

All read the same random tokens from files on this machine, in batches of as many tokens, and give arrays of inputs and
targets. Rootstock reads every row once per epoch and gives segments, positions and loss weights as well, with
documents of 400 tokens in the mean; the mixture has three sources. nanoGPT's loader draws random offsets, so that it
repeats and misses tokens, and knows no documents. Grain reads rows that were cut beforehand, in a global shuffle.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from data.loader import BatchFunction
from data.mixed_rows import MixedRows
from data.packing import PackedRows
from data.row_plan import row_plan
from data.store import open_store, write_manifest, write_split

Batches = Callable[[int], object]
_BATCH_TOKENS, _DOCUMENT_TOKENS, _VOCABULARY = 1 << 17, 400, 50_000
_WEIGHTS = (0.7, 0.25, 0.05)


def write_store(directory: Path, tokens: int, seed: int) -> None:
    """Writes a token store of random documents."""
    rng = np.random.default_rng(seed)
    lengths = np.maximum(rng.exponential(_DOCUMENT_TOKENS, tokens // _DOCUMENT_TOKENS).astype(int), 2)
    documents = (
        (number.to_bytes(8, "big"), rng.integers(0, _VOCABULARY, n)) for number, n in enumerate(lengths.tolist())
    )
    split = write_split(directory / "train", documents, "uint16")
    write_manifest(directory, {"tokenizer_sha256": "", "dtype": "uint16", "splits": {"train": split}})


def ours(stores: list[Path], length: int) -> Batches:
    """Returns t -> batch t, of one store or of a mixture of three."""
    sources = tuple(PackedRows(open_store(store, "train"), length) for store in stores)
    names = tuple("abc"[: len(sources)])
    rows = MixedRows(names, sources, row_plan([(0, _WEIGHTS)])) if len(sources) > 1 else sources[0]
    return BatchFunction(rows, _BATCH_TOKENS // length, seed=0)


def random_offsets(path: Path, length: int) -> Batches:
    """Returns t -> inputs and targets at random offsets of a memory map, in the manner of nanoGPT's `get_batch`."""
    rng = np.random.default_rng(0)

    def batch(_: int) -> object:
        # Mapped anew for each batch: a map that stays open counts the pages it has read as memory of the process.
        data = np.memmap(path, np.uint16, mode="r")
        starts = rng.integers(0, len(data) - length, _BATCH_TOKENS // length)
        inputs = np.stack([data[i : i + length].astype(np.int64) for i in starts])
        return inputs, np.stack([data[i + 1 : i + 1 + length].astype(np.int64) for i in starts])

    return batch


def array_record(tokens: np.ndarray, path: Path, length: int) -> Batches:
    """Returns t -> batch t of rows that are records of an ArrayRecord file, by Grain in this process."""
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for start in range(0, len(tokens) - length, length):
        writer.write(tokens[start : start + length + 1].tobytes())
    writer.close()

    def parse(record: bytes) -> dict[str, np.ndarray]:
        row = np.frombuffer(record, np.uint16).astype(np.int32)
        return {"tokens": row[:-1], "targets": row[1:]}

    source = grain.sources.ArrayRecordDataSource([str(path)])
    dataset = grain.MapDataset.source(source).seed(0).shuffle().repeat().map(parse).batch(_BATCH_TOKENS // length)
    return dataset.__getitem__


def million_tokens_per_second(batches: Batches, count: int) -> float:
    """Returns the median over five parts of `count` batches, in CPU time of this process and its threads."""
    for t in range(count):
        batches(t)  # the files are in the page cache and the code is warm
    rates = []
    for part in range(1, 6):
        begin = time.process_time()
        for t in range(part * count, (part + 1) * count):
            batches(t)
        rates.append(count * _BATCH_TOKENS / (time.process_time() - begin) / 1e6)
    return statistics.median(rates)


def main() -> None:
    """Prints a line per loader and row length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=50_000_000, help="tokens of each of the three stores")
    parser.add_argument("--batches", type=int, default=20, help="batches per part; the median of five parts counts")
    parser.add_argument("--lengths", default="256,1024,2048", help="tokens per row")
    parser.add_argument("--directory", type=Path, help="where the files are written; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        stores = [Path(directory) / name for name in "abc"]
        for seed, store in enumerate(stores):
            write_store(store, arguments.tokens, seed)
        tokens = stores[0] / "train" / "tokens.bin"
        for length in map(int, arguments.lengths.split(",")):
            loaders = {
                "rootstock, one store": ours(stores[:1], length),
                "rootstock, mixture of three stores": ours(stores, length),
                "random offsets of a memory map (nanoGPT)": random_offsets(tokens, length),
                "Grain over ArrayRecord": array_record(
                    np.memmap(tokens, np.uint16, mode="r"), Path(directory) / f"{length}.array_record", length
                ),
            }
            for name, batches in loaders.items():
                rate = million_tokens_per_second(batches, arguments.batches)
                print(f"rows of {length:5} tokens: {rate:7.2f} M tokens/CPU-s  {name}", flush=True)


if __name__ == "__main__":
    main()
