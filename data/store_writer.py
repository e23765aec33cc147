"""Writes the shards of a token store and what its manifest says about them."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.storage.files import new_file
from data.store import npy_header, shard_files

_CHUNK_BYTES = 1 << 22
_BATCH_DOCUMENTS = 1 << 12


def write_shard(
    directory: Path, place: tuple[int, int], documents: Iterable[np.ndarray | Sequence[int]], dtype: str
) -> dict[str, Any]:
    """Writes a shard and returns {"documents", "tokens", "sha256": {file: digest}} for the manifest.

    Args:
        directory: directory of the split.
        place: (number of the shard, number of shards).
        documents: the tokens of each document including bos and eos, in order.
        dtype: see `data.store.token_dtype`.
    """
    tokens_file, offsets_file = shard_files(*place)
    directory.mkdir(parents=True, exist_ok=True)
    digest, lengths = hashlib.sha256(), [0]
    remaining = iter(documents)
    with new_file(directory / tokens_file) as path, path.open("wb") as file:
        while batch := [np.asarray(ids, dtype) for ids in itertools.islice(remaining, _BATCH_DOCUMENTS)]:
            lengths += map(len, batch)
            data = np.concatenate(batch)
            digest.update(data.data)
            file.write(data.data)
    offsets = np.cumsum(lengths, dtype=np.int64)
    content = npy_header(len(offsets)) + offsets.tobytes()
    with new_file(directory / offsets_file) as path:
        path.write_bytes(content)
    digests = {"tokens.bin": digest.hexdigest(), "offsets.npy": hashlib.sha256(content).hexdigest()}
    return {"documents": len(offsets) - 1, "tokens": int(offsets[-1]), "sha256": digests}


def split_record(directory: Path, shards: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the manifest's entry of a split; its checksums are those of the shards' files as one file each.

    Args:
        directory: directory of the split.
        shards: what `write_shard` returned, in order.
    """
    documents, tokens = (sum(shard[key] for shard in shards) for key in ("documents", "tokens"))
    if len(shards) == 1:
        digests = shards[0]["sha256"]
    else:
        names = [shard_files(number, len(shards)) for number in range(len(shards))]
        offsets = hashlib.sha256(npy_header(documents + 1) + np.zeros(1, np.int64).tobytes())
        first = 0
        for shard, (_, name) in zip(shards, names, strict=True):
            content = np.frombuffer(
                (directory / name).read_bytes()[len(npy_header(shard["documents"] + 1)) :], np.int64
            )
            offsets.update((content[1:] + first).data)
            first += shard["tokens"]
        whole = hashlib.sha256()
        for name, _ in names:
            for chunk in _chunks(directory / name):
                whole.update(chunk)
        digests = {"tokens.bin": whole.hexdigest(), "offsets.npy": offsets.hexdigest()}
    return {"documents": documents, "tokens": tokens, "sha256": digests, "shards": shards}


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
