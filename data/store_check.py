"""Checks the content of a token store: sizes, checksums, offsets, and bos and eos of every document."""

import functools
import hashlib
from pathlib import Path

import numpy as np

from configs.errors import UserError
from data.storage.paths import at
from data.store import open_store, read_manifest, shards_of
from data.tokenizer import Tokenizer, load_tokenizer

_CHUNK_TOKENS = 1 << 22


def verify_store(path: str | Path) -> None:
    """Compares every file of a store with its manifest and looks at every document; reads the whole store.

    Raises:
        UserError: not a store, or files differ or are missing, or a document does not start with bos, end with eos or
            has a token that the vocabulary lacks; names the files and the first such document.
    """
    path = at(path)
    manifest = read_manifest(path)
    damaged = []
    if _sha256(path / "tokenizer.json") != manifest["tokenizer_sha256"]:
        damaged.append("tokenizer.json")
    for split in manifest["splits"]:
        for shard in shards_of(manifest, split):
            for name, kind in ((shard.tokens_file, "tokens.bin"), (shard.offsets_file, "offsets.npy")):
                if _sha256(path / split / name) != shard.sha256[kind]:
                    damaged.append(f"{split}/{name}")
    if damaged:
        raise UserError(f"{path} is damaged: {', '.join(damaged)} differ from the manifest; prepare the store again")
    tokenizer = load_tokenizer(path)
    for split in manifest["splits"]:
        store, first = open_store(path, split), 0
        for number, shard in enumerate(store.shards):
            offsets = store.shard_offsets(number)
            error = _document_error(path / split / shard.tokens_file, store.dtype, offsets, tokenizer)
            if error is not None:
                place = f"{path}/{split}/{shard.tokens_file}: document {first + error[0]:,}"
                raise UserError(f"{place} {error[1]}; prepare the store again")
            first += shard.documents


def _sha256(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _document_error(path: Path, dtype: str, offsets: np.ndarray, tokenizer: Tokenizer) -> tuple[int, str] | None:
    """Returns (document in the shard, what is wrong with it) of the first bad document, or None."""
    size, begin = np.dtype(dtype).itemsize, 0
    with path.open("rb") as file:
        for data in iter(functools.partial(file.read, _CHUNK_TOKENS * size), b""):
            tokens = np.frombuffer(data, dtype)
            end = begin + len(tokens)
            if (beyond := np.flatnonzero(tokens >= tokenizer.vocab_size)).size:
                document = int(np.searchsorted(offsets, begin + beyond[0], side="right")) - 1
                return document, f"has token {tokens[beyond[0]]}; the vocabulary has {tokenizer.vocab_size}"
            # The documents that start, and those that end, in this chunk.
            for shift, token, what in ((0, tokenizer.bos_id, "start with bos"), (1, tokenizer.eos_id, "end with eos")):
                bounds = offsets[shift:][: len(offsets) - 1]
                low, high = np.searchsorted(bounds, [begin + shift, end + shift])
                wrong = np.flatnonzero(tokens[bounds[low:high] - shift - begin] != token)
                if wrong.size:
                    return int(low + wrong[0]), f"does not {what}"
            begin = end
    return None
