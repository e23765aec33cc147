"""Stage 4: the documents of all units whose keys begin with the same bits, sorted, as one shard of the store."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.preparation.tokenizing import unit_file
from data.preparation.unit_files import read_ranges, write_mark
from data.store_writer import write_shard

MAX_PREFIX_BITS = 16  # of the keys, that separate shards


@dataclasses.dataclass(frozen=True)
class GatherOptions:
    """What shards are made of.

    Attributes:
        store: directory of the store.
        units: number of units.
        dtype: of the tokens.
        prefix_bits: see `tokenizing.TokenizeOptions`.
        shards: [(split, number of the shard, number of shards, a power of two)].
    """

    store: Path
    units: int
    dtype: str
    prefix_bits: int
    shards: tuple[tuple[str, int, int], ...]


def shard_count(tokens: int, dtype: str, shard_bytes: int, prefix_bits: int) -> int:
    """Returns the number of shards of a split: the smallest power of two with `shard_bytes` on average, or less."""
    wanted = -(-tokens * np.dtype(dtype).itemsize // shard_bytes)
    return 1 << min(max(wanted - 1, 0).bit_length(), prefix_bits)


def gather_shard(folder: Path, options: GatherOptions, job: int) -> None:
    """Writes a shard."""
    split, number, count = options.shards[job]
    width = 1 << (options.prefix_bits - (count.bit_length() - 1))
    first = number * width
    names = [
        {kind: unit_file(split, unit, kind) for kind in ("table", "keys", "tokens")} for unit in range(options.units)
    ]
    rows = [(name["table"], 2 * row, 2 * row + 2) for name in names for row in (first, first + width)]
    # Per unit: documents and tokens before the shard's first and after its last one.
    bounds = np.reshape(read_ranges(folder, "int64", rows), (-1, 2, 2)).tolist()
    found = list(zip(names, bounds, strict=True))
    keys = np.concatenate(
        read_ranges(folder, "uint64", [(name["keys"], 3 * low[0], 3 * high[0]) for name, (low, high) in found])
    ).reshape(-1, 3)
    parts = read_ranges(folder, options.dtype, [(name["tokens"], low[1], high[1]) for name, (low, high) in found])
    tokens = np.concatenate(parts)
    del parts
    ends = np.cumsum(keys[:, 2]).tolist()
    lengths = keys[:, 2].tolist()

    def documents() -> Iterator[np.ndarray]:
        for document in np.lexsort((keys[:, 1], keys[:, 0])).tolist():
            yield tokens[ends[document] - lengths[document] : ends[document]]

    mark = write_shard(options.store / split, (number, count), documents(), options.dtype)
    write_mark(folder, "gather", job, mark)
