"""The token store: documents as one memory-mapped file of tokens and one of offsets, with a manifest that names both.

    manifest.json  tokenizer.json  tokenizer_config.json  SPLIT/tokens.bin  SPLIT/offsets.npy

A document is stored as bos, its tokens, eos. The whole store appears at once: what has a manifest is complete.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import UserError

FORMAT, VERSION = "token store", 1
SPLITS = ("train", "validation")
_TOKENS, _OFFSETS = "tokens.bin", "offsets.npy"
_READ_BYTES = 1 << 22


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """One split of a store; opened lazily, and pickled as its path, so that workers map the same pages."""

    path: Path
    split: str

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "split": self.split}

    @functools.cached_property
    def _manifest(self) -> dict[str, Any]:
        return read_manifest(self.path)

    @functools.cached_property
    def tokens(self) -> np.ndarray:
        """All documents' tokens, one after the other: a read-only map of `tokens.bin`."""
        return np.memmap(self.path / self.split / _TOKENS, self._manifest["dtype"], mode="r")

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """int64[documents + 1]: where each document starts in `tokens`, and the end of the last."""
        return np.load(self.path / self.split / _OFFSETS, mmap_mode="r", allow_pickle=False)

    @property
    def num_documents(self) -> int:
        """Documents of the split."""
        return self._manifest["splits"][self.split]["documents"]

    @property
    def num_tokens(self) -> int:
        """Tokens of the split, bos and eos included."""
        return self._manifest["splits"][self.split]["tokens"]

    @property
    def fingerprint(self) -> str:
        """A SHA-256 that names the split's content and its tokenizer."""
        named = [self._manifest["tokenizer_sha256"], self._manifest["splits"][self.split]["sha256"]]
        return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class MemoryStore:
    """Documents in memory, with the interface of `TokenStore`."""

    tokens: np.ndarray
    offsets: np.ndarray

    @property
    def num_documents(self) -> int:
        """Documents."""
        return len(self.offsets) - 1

    @property
    def num_tokens(self) -> int:
        """Tokens."""
        return len(self.tokens)

    @property
    def fingerprint(self) -> str:
        """A SHA-256 that names the content."""
        return hashlib.sha256(self.tokens.tobytes() + self.offsets.tobytes()).hexdigest()


def store_from_documents(documents: Sequence[Sequence[int]]) -> MemoryStore:
    """Returns documents, each with its bos and eos, as a store in memory.

    Raises:
        UserError: there are none.
    """
    if not documents:
        raise UserError("no documents; legal: at least one")
    offsets = np.cumsum([0, *map(len, documents)], dtype=np.int64)
    return MemoryStore(np.concatenate([np.asarray(ids, np.uint32) for ids in documents]), offsets)


def token_dtype(vocab_size: int) -> str:
    """Returns the smallest type that holds every token id: "uint16" or "uint32"."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def is_store(path: Path) -> bool:
    """Returns whether a directory holds a store, finished, of any version."""
    return (path / "manifest.json").is_file()


def read_manifest(path: Path) -> dict[str, Any]:
    """Returns the manifest of a store.

    Raises:
        UserError: not a store, a damaged manifest, or one of another version.
    """
    if not is_store(path):
        raise UserError(f"{path} is not a token store: it holds no manifest.json; make one with: rootstock prepare")
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        found, version = manifest["format"], manifest["version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        fault = " ".join(repr(error).split())
        raise UserError(f"{path}/manifest.json is not that of a token store: {fault}") from None
    if found != FORMAT:
        raise UserError(f"{path}/manifest.json is of a {found}; legal: a {FORMAT}")
    if version != VERSION:
        raise UserError(f"{path} is a token store of version {version}; legal: {VERSION}; prepare it again")
    if fault := _manifest_fault(manifest):
        raise UserError(f"{path}/manifest.json is damaged: {fault}; prepare the store again")
    return manifest


def _manifest_fault(manifest: dict[str, Any]) -> str:
    """Returns the first field that is missing or of the wrong kind, or ""; splits and files have no other names."""
    if not isinstance(manifest.get("tokenizer_sha256"), str) or not isinstance(manifest.get("splits"), dict):
        return "'tokenizer_sha256' or 'splits' is missing"
    if manifest.get("dtype") not in ("uint16", "uint32"):
        return "'dtype' is neither uint16 nor uint32"
    if not manifest["splits"] or not set(manifest["splits"]) <= set(SPLITS):
        return f"'splits' are not of {', '.join(SPLITS)}"
    for name, split in manifest["splits"].items():
        counts = isinstance(split, dict) and all(isinstance(split.get(n), int) for n in ("tokens", "documents"))
        if not counts or not isinstance(split.get("sha256"), dict) or set(split["sha256"]) != {_TOKENS, _OFFSETS}:
            return f"the split {name!r} has not its counts and checksums"
    return ""


def open_store(path: str | Path, split: str) -> TokenStore:
    """Returns a split of a store, after comparing the sizes of its files with the manifest.

    Raises:
        UserError: not a store, no such split, or a file that is missing, cut off or of the wrong size.
    """
    path = Path(path)
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
        raise UserError(f"{path}/{split}/{_TOKENS} has {found} bytes, the manifest says {expected}: prepare it again")
    try:
        offsets = store.offsets
    # The header is Python's text for a dict, of which numpy's parser raises what Python's raises.
    except Exception as error:
        fault = " ".join(str(error).split())[:200]
        raise UserError(f"{path}/{split}/{_OFFSETS} is damaged: {fault}; prepare the store again") from None
    if (
        offsets.shape != (counts["documents"] + 1,)
        or offsets.dtype != np.int64
        or not _rising(offsets, counts["tokens"])
    ):
        raise UserError(f"{path}/{split}/{_OFFSETS} does not fit the manifest; prepare the store again")
    return store


def _rising(offsets: np.ndarray, tokens: int) -> bool:
    """Returns whether offsets go from 0 to `tokens` by at least 2, a bos and an eos, each time."""
    ends = len(offsets) > 0 and offsets[0] == 0 and offsets[-1] == tokens
    step = 1 << 20
    return bool(ends) and all((np.diff(offsets[i : i + step + 1]) >= 2).all() for i in range(0, len(offsets) - 1, step))


def verify_store(path: str | Path) -> None:
    """Reads every file of a store and compares its SHA-256 with the manifest.

    Raises:
        UserError: names the files that differ or are missing.
    """
    path = Path(path)
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


@contextlib.contextmanager
def new_store(path: Path) -> Iterator[Path]:
    """Yields a directory to write a store to, which becomes `path` when the block ends, or is removed if it fails.

    Raises:
        UserError: `path` is not free, or cannot be written.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path} exists and is not empty; legal: a new directory")
    # A sibling, because a rename is atomic only within a file system.
    temporary = path.absolute().with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_split(directory: Path, documents: Iterable[tuple[bytes, Sequence[int]]], dtype: str) -> dict[str, Any]:
    """Writes a split as a stream and returns its {"documents", "tokens", "sha256": {file: digest}}.

    Args:
        directory: of the split; made.
        documents: (key, tokens) of each, bos and eos included. They are stored in the order of the keys.
        dtype: see `token_dtype`.
    """
    directory.mkdir(parents=True)
    arrived = directory / "arrived.bin"
    keys: list[bytes] = []
    ends = [0]
    with arrived.open("wb") as file:
        for key, ids in documents:
            np.asarray(ids, dtype).tofile(file)
            keys.append(key)
            ends.append(ends[-1] + len(ids))
    starts = np.array(ends, np.int64)
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)
    if keys:
        _copy_in_order(np.memmap(arrived, dtype, mode="r"), starts, order, directory / _TOKENS)
    else:
        (directory / _TOKENS).touch()
    arrived.unlink()
    np.save(directory / _OFFSETS, np.concatenate([[0], np.cumsum(np.diff(starts)[order])]).astype(np.int64))
    digests = {name: _sha256(directory / name) for name in (_TOKENS, _OFFSETS)}
    return {"documents": len(keys), "tokens": int(starts[-1]), "sha256": digests}


def _copy_in_order(tokens: np.ndarray, starts: np.ndarray, order: np.ndarray, path: Path) -> None:
    with path.open("wb", buffering=_READ_BYTES) as file:
        for document in order:
            file.write(tokens[starts[document] : starts[document + 1]].tobytes())


def write_manifest(directory: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest of this version of stores; the last file of a store."""
    text = json.dumps({"format": FORMAT, "version": VERSION, **manifest}, indent=1, ensure_ascii=False)
    (directory / "manifest.json").write_text(text, encoding="utf-8")
