"""The token store: per split one memory-mapped file of tokens and one of document offsets, and a manifest of both.

    manifest.json  tokenizer.json  tokenizer_config.json  SPLIT/tokens.bin  SPLIT/offsets.npy

A document is stored as bos, its tokens, eos. A store is written to a temporary directory and renamed or, in a bucket,
its manifest is written last, so a directory with a manifest is complete. A store in a bucket is read where it is.
"""

import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.errors import UserError, one_line

if TYPE_CHECKING:
    from data.storage.ranges import Ranges
from data.storage.files import write_atomically
from data.storage.paths import at, is_remote

FORMAT, VERSION = "token store", 1
SPLITS = ("train", "validation")
_TOKENS, _OFFSETS = "tokens.bin", "offsets.npy"
_READ_BYTES = 1 << 22


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """One split of a store; files are opened lazily, and it pickles as its path, so workers map the same pages.

    In a bucket the offsets, 8 bytes per document, are kept in memory, and the tokens are read by ranges.
    """

    path: Path
    split: str

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "split": self.split}

    @functools.cached_property
    def _manifest(self) -> dict[str, Any]:
        return read_manifest(self.path)

    @functools.cached_property
    def tokens(self) -> np.ndarray:
        """The tokens of all documents, concatenated: a read-only memory map of `tokens.bin`, on this machine only."""
        return np.memmap(self.path / self.split / _TOKENS, self._manifest["dtype"], mode="r")

    @functools.cached_property
    def _ranges(self) -> "Ranges":
        from data.storage.ranges import Ranges

        return Ranges(self.path / self.split / _TOKENS, self._manifest["dtype"])

    def read(self, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
        """Returns the tokens from each start up to its stop, counted over the concatenated documents."""
        if self.is_remote:
            return self._ranges.read(starts.tolist(), stops.tolist())
        return [self.tokens[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]

    @property
    def is_remote(self) -> bool:
        """Whether the store is in a bucket."""
        return is_remote(self.path)

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """int64[documents + 1]: the start of each document, and the end of the last; on this machine a memory map."""
        path = self.path / self.split / _OFFSETS
        if self.is_remote:
            return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        return np.load(path, mmap_mode="r", allow_pickle=False)

    @property
    def num_tokens(self) -> int:
        """The number of tokens in the split, including bos and eos."""
        return self._manifest["splits"][self.split]["tokens"]

    @property
    def fingerprint(self) -> str:
        """A SHA-256 of the checksums of the split and its tokenizer."""
        named = [self._manifest["tokenizer_sha256"], self._manifest["splits"][self.split]["sha256"]]
        return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class MemoryStore:
    """Documents in memory, with the interface of a `TokenStore`."""

    tokens: np.ndarray
    offsets: np.ndarray

    @property
    def num_tokens(self) -> int:
        """The number of tokens, including bos and eos."""
        return len(self.tokens)

    @property
    def is_remote(self) -> bool:
        """Whether the store is in a bucket: no."""
        return False

    def read(self, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
        """Returns the tokens from each start up to its stop."""
        return [self.tokens[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]

    @property
    def fingerprint(self) -> str:
        """A SHA-256 of the content."""
        digest = hashlib.sha256(np.ascontiguousarray(self.tokens).data)
        digest.update(np.ascontiguousarray(self.offsets).data)
        return digest.hexdigest()


def store_from_documents(documents: Sequence[Sequence[int]]) -> MemoryStore:
    """Returns documents, each including its bos and eos, as a store in memory.

    Raises:
        UserError: `documents` is empty.
    """
    if not documents:
        raise UserError("no documents; expected at least one")
    offsets = np.cumsum([0, *map(len, documents)], dtype=np.int64)
    return MemoryStore(np.concatenate([np.asarray(ids, np.uint32) for ids in documents]), offsets)


def token_dtype(vocab_size: int) -> str:
    """Returns the smallest dtype that can represent every token id: "uint16" or "uint32"."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def is_store(path: Path) -> bool:
    """Returns whether a directory contains a complete store of any version."""
    return (path / "manifest.json").is_file()


def read_manifest(path: Path) -> dict[str, Any]:
    """Returns the manifest of a store.

    Raises:
        UserError: not a store, or the manifest is damaged or of another version.
    """
    if not is_store(path):
        raise UserError(f"{path} is not a token store: manifest.json is missing; make a store with: rootstock prepare")
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        found, version = manifest["format"], manifest["version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        cause = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{path}/manifest.json is not the manifest of a token store: {cause}") from None
    if found != FORMAT:
        raise UserError(f"{path}/manifest.json has format={found!r}; expected {FORMAT!r}")
    if version != VERSION:
        raise UserError(f"{path} is a token store of version {version}; expected version {VERSION}; prepare it again")
    if damage := _manifest_error(manifest):
        raise UserError(f"{path}/manifest.json is damaged: {damage}; prepare the store again")
    return manifest


def _manifest_error(manifest: dict[str, Any]) -> str:
    """Returns what is wrong with a manifest, or ""; only the known names of splits and files are accepted."""
    if not isinstance(manifest.get("tokenizer_sha256"), str) or not isinstance(manifest.get("splits"), dict):
        return "'tokenizer_sha256' or 'splits' is missing"
    if manifest.get("dtype") not in ("uint16", "uint32"):
        return "'dtype' is not uint16 or uint32"
    if not manifest["splits"] or not set(manifest["splits"]) <= set(SPLITS):
        return f"'splits' has other names than {', '.join(SPLITS)}"
    for name, split in manifest["splits"].items():
        counts = isinstance(split, dict) and all(isinstance(split.get(n), int) for n in ("tokens", "documents"))
        if not counts or not isinstance(split.get("sha256"), dict) or set(split["sha256"]) != {_TOKENS, _OFFSETS}:
            return f"split {name!r} lacks its counts or checksums"
    return ""


def open_store(path: str | Path, split: str) -> TokenStore:
    """Returns a split of a store, after checking that its files have the sizes in the manifest and the offsets rise.

    Reads all offsets once, a chunk of 8 MiB at a time: time is linear in the number of documents, memory is constant.

    Raises:
        UserError: not a store, no such split, or a file is missing, truncated or of the wrong size.
    """
    path = at(path)
    manifest = read_manifest(path)
    if split not in manifest["splits"]:
        raise UserError(f"{path} has no {split!r} split; it has: {', '.join(manifest['splits'])}")
    store, counts = TokenStore(path, split), manifest["splits"][split]
    expected = counts["tokens"] * np.dtype(manifest["dtype"]).itemsize
    for name in (_TOKENS, _OFFSETS):
        if not (path / split / name).is_file():
            raise UserError(f"{path}/{split}/{name} is missing; prepare the store again")
    found = (path / split / _TOKENS).stat().st_size
    if found != expected:
        raise UserError(f"{path}/{split}/{_TOKENS} has {found} bytes, expected {expected}; prepare the store again")
    try:
        offsets = store.offsets
    # The header is a Python literal, and numpy passes on whatever Python's parser raises.
    except Exception as error:
        raise UserError(f"{path}/{split}/{_OFFSETS} is damaged: {one_line(error)}; prepare the store again") from None
    if (
        offsets.shape != (counts["documents"] + 1,)
        or offsets.dtype != np.int64
        or not _rising(offsets, counts["tokens"])
    ):
        raise UserError(f"{path}/{split}/{_OFFSETS} does not match the manifest; prepare the store again")
    return store


def _rising(offsets: np.ndarray, tokens: int) -> bool:
    """Returns whether offsets rise from 0 to `tokens` in steps of at least 2, a bos and an eos."""
    ends = len(offsets) > 0 and offsets[0] == 0 and offsets[-1] == tokens
    step = 1 << 20
    return bool(ends) and all((np.diff(offsets[i : i + step + 1]) >= 2).all() for i in range(0, len(offsets) - 1, step))


def verify_store(path: str | Path) -> None:
    """Checks the SHA-256 of every file of a store against the manifest; reads the whole store.

    Raises:
        UserError: not a store, or files differ or are missing; names them.
    """
    path = at(path)
    manifest = read_manifest(path)
    expected = {"tokenizer.json": manifest["tokenizer_sha256"]}
    for split, counts in manifest["splits"].items():
        expected |= {f"{split}/{name}": digest for name, digest in counts["sha256"].items()}
    damaged = [name for name, digest in expected.items() if _sha256(path / name) != digest]
    if damaged:
        raise UserError(f"{path} is damaged: {', '.join(damaged)} differ from the manifest; prepare the store again")


def _sha256(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_split(directory: Path, documents: Iterable[tuple[bytes, Sequence[int]]], dtype: str) -> dict[str, Any]:
    """Writes the documents of a split and returns {"documents", "tokens", "sha256": {file: digest}} for the manifest.

    Memory: the key and the length of each document; the tokens are streamed to a temporary file.

    Args:
        directory: directory of the split; it must not exist.
        documents: (key, tokens including bos and eos) of each document; they are stored in the order of the keys.
        dtype: see `token_dtype`.
    """
    directory.mkdir(parents=True)
    unsorted = directory / "unsorted.bin"
    keys: list[bytes] = []
    ends = [0]
    with unsorted.open("wb") as file:
        for key, ids in documents:
            np.asarray(ids, dtype).tofile(file)
            keys.append(key)
            ends.append(ends[-1] + len(ids))
    starts = np.array(ends, np.int64)
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)
    if keys:
        _copy_in_order(np.memmap(unsorted, dtype, mode="r"), starts, order, directory / _TOKENS)
    else:
        (directory / _TOKENS).touch()
    unsorted.unlink()
    np.save(directory / _OFFSETS, np.concatenate([[0], np.cumsum(np.diff(starts)[order])]).astype(np.int64))
    digests = {name: _sha256(directory / name) for name in (_TOKENS, _OFFSETS)}
    return {"documents": len(keys), "tokens": int(starts[-1]), "sha256": digests}


def _copy_in_order(tokens: np.ndarray, starts: np.ndarray, order: np.ndarray, path: Path) -> None:
    with path.open("wb", buffering=_READ_BYTES) as file:
        for document in order:
            file.write(tokens[starts[document] : starts[document + 1]].tobytes())


def write_manifest(directory: Path, manifest: dict[str, Any]) -> None:
    """Writes or replaces the manifest of a store, atomically; it is the last file of a new store."""
    text = json.dumps({"format": FORMAT, "version": VERSION, **manifest}, indent=1, ensure_ascii=False)
    write_atomically(directory / "manifest.json", text)
