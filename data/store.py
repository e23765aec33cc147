"""The token store: tokens and document offsets of each split in shards, and a manifest of both.

    manifest.json  tokenizer.json  tokenizer_config.json
    SPLIT/tokens-00000-of-00004.bin  SPLIT/offsets-00000-of-00004.npy  ...

A document is stored as bos, its tokens, eos. Shards are consecutive: concatenated, they are the one tokens.bin of a
store of version 1, which is still read, and the checksums of that file are in both manifests. A directory with a
manifest is complete, because the manifest is written last. A store in a bucket is read where it is.
"""

import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from configs.errors import UserError, one_line
from data.offsets import Offsets
from data.storage.files import file_sizes, is_file, write_atomically
from data.storage.paths import at, is_remote

if TYPE_CHECKING:
    from data.storage.ranges import Ranges

FORMAT, VERSION = "token store", 2
SPLITS = ("train", "validation")
_DIGESTS = {"tokens.bin", "offsets.npy"}
_OPEN_FILES = 256  # memory maps of each kind; a process may have 1,024 open files
_CHECK_DOCUMENTS = 1 << 20


class Shard(NamedTuple):
    """A part of a split.

    Attributes:
        tokens_file: name of the file of tokens.
        offsets_file: name of the file of offsets, which count from the shard's first token.
        documents: number of documents.
        tokens: number of tokens.
        sha256: {"tokens.bin", "offsets.npy"}: the checksums of the two files.
    """

    tokens_file: str
    offsets_file: str
    documents: int
    tokens: int
    sha256: dict[str, str]


def shard_files(number: int, count: int) -> tuple[str, str]:
    """Returns the names of the files of tokens and of offsets of a shard."""
    return f"tokens-{number:05}-of-{count:05}.bin", f"offsets-{number:05}-of-{count:05}.npy"


def shards_of(manifest: dict[str, Any], split: str) -> list[Shard]:
    """Returns the shards of a split of a store of any version."""
    counts = manifest["splits"][split]
    if manifest["version"] == 1:
        return [Shard("tokens.bin", "offsets.npy", counts["documents"], counts["tokens"], counts["sha256"])]
    shards = counts["shards"]
    return [
        Shard(*shard_files(number, len(shards)), shard["documents"], shard["tokens"], shard["sha256"])
        for number, shard in enumerate(shards)
    ]


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """One split of a store; files are opened lazily, and it pickles as its path, so workers map the same pages.

    In a bucket tokens are read by ranges, and the offsets of a shard, 8 bytes per document, are kept in memory once
    one of its documents was read.
    """

    path: Path
    split: str

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "split": self.split}

    @functools.cached_property
    def _manifest(self) -> dict[str, Any]:
        return read_manifest(self.path)

    @functools.cached_property
    def shards(self) -> list[Shard]:
        """The parts of the split, in order."""
        return shards_of(self._manifest, self.split)

    @functools.cached_property
    def _first_tokens(self) -> np.ndarray:
        return np.cumsum([0, *(shard.tokens for shard in self.shards)], dtype=np.int64)

    @functools.cached_property
    def _ranges(self) -> "Ranges":
        from data.storage.ranges import Ranges

        return Ranges(self.path / self.split, self.dtype)

    @property
    def dtype(self) -> str:
        """The dtype of the tokens."""
        return self._manifest["dtype"]

    def read(self, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
        """Returns the tokens from each start up to its stop, counted over the concatenated documents."""
        firsts = self._first_tokens.tolist()
        shards = np.searchsorted(self._first_tokens[:-1], starts, side="right") - 1
        pieces: list[tuple[int, int, int]] = []
        counts = []
        for shard, start, stop in zip(
            shards.tolist(), np.asarray(starts).tolist(), np.asarray(stops).tolist(), strict=True
        ):
            before = len(pieces)
            while stop > firsts[shard + 1]:
                pieces.append((shard, start - firsts[shard], firsts[shard + 1] - firsts[shard]))
                shard += 1
                start = firsts[shard]
            pieces.append((shard, start - firsts[shard], stop - firsts[shard]))
            counts.append(len(pieces) - before)
        found = iter(self._read_pieces(pieces))
        return [next(found) if count == 1 else np.concatenate([next(found) for _ in range(count)]) for count in counts]

    def _read_pieces(self, pieces: list[tuple[int, int, int]]) -> list[np.ndarray]:
        """Returns the tokens of each (shard, start, stop)."""
        if self.is_remote:
            return self._ranges.read([(self.shards[shard].tokens_file, a, b) for shard, a, b in pieces])
        return [self._tokens_of(shard)[a:b] for shard, a, b in pieces]

    @functools.cached_property
    def _tokens_of(self) -> Callable[[int], np.ndarray]:
        """Shard -> a read-only memory map of its tokens; those used last stay open."""

        def mapped(number: int) -> np.ndarray:
            shard = self.shards[number]
            path = self.path / self.split / shard.tokens_file
            # An empty file cannot be mapped.
            return np.asarray(np.memmap(path, self.dtype, mode="r")) if shard.tokens else np.empty(0, self.dtype)

        return functools.lru_cache(_OPEN_FILES)(mapped)

    @property
    def is_remote(self) -> bool:
        """Whether the store is in a bucket."""
        return is_remote(self.path)

    @functools.cached_property
    def offsets(self) -> Offsets:
        """int64[documents + 1]: the start of each document, and the end of the last; read shard by shard."""
        documents, tokens = ([getattr(shard, name) for shard in self.shards] for name in ("documents", "tokens"))
        return Offsets(documents, tokens, self.shard_offsets)

    @functools.cached_property
    def _checked(self) -> dict[int, np.ndarray | None]:
        """The shards whose offsets were checked: in a bucket the offsets, on this machine None."""
        return {}

    def shard_offsets(self, number: int) -> np.ndarray:
        """Returns the int64[documents + 1] of a shard, which count from its first token; checked when first read.

        Raises:
            UserError: the file is damaged, or does not match the manifest.
        """
        if number in self._checked:
            kept = self._checked[number]
            return self._offsets_of(number) if kept is None else kept
        shard = self.shards[number]
        path = self.path / self.split / shard.offsets_file
        try:
            offsets = self._offsets_of(number)
        # The header is a Python literal, and numpy passes on whatever Python's parser raises.
        except Exception as error:
            raise UserError(f"{path} is damaged: {one_line(error)}; prepare the store again") from None
        shape = (shard.documents + 1,)
        if offsets.shape != shape or offsets.dtype != np.int64 or not _rising(offsets, shard.tokens):
            raise UserError(f"{path} does not match the manifest; prepare the store again")
        self._checked[number] = offsets if self.is_remote else None
        return offsets

    @functools.cached_property
    def _offsets_of(self) -> Callable[[int], np.ndarray]:
        """Shard -> its offsets: a memory map, or in a bucket what was downloaded."""

        def read(number: int) -> np.ndarray:
            path = self.path / self.split / self.shards[number].offsets_file
            if self.is_remote:
                return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))

        return read if self.is_remote else functools.lru_cache(_OPEN_FILES)(read)

    @property
    def num_tokens(self) -> int:
        """The number of tokens in the split, including bos and eos."""
        return self._manifest["splits"][self.split]["tokens"]

    @property
    def fingerprint(self) -> str:
        """A SHA-256 of the checksums of the split and its tokenizer; the same however many shards it has."""
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
    return is_file(path / "manifest.json")


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
    if version not in (1, VERSION):
        raise UserError(
            f"{path} is a token store of version {version}; expected version 1 or {VERSION}; prepare it again"
        )
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
        if not _has_counts(split):
            return f"split {name!r} lacks its counts or checksums"
        if manifest["version"] > 1:
            shards = split.get("shards")
            if not isinstance(shards, list) or not shards or not all(map(_has_counts, shards)):
                return f"split {name!r} lacks the counts or checksums of its shards"
            if any(sum(shard[key] for shard in shards) != split[key] for key in ("tokens", "documents")):
                return f"the shards of split {name!r} do not add up to its counts"
    return ""


def _has_counts(part: Any) -> bool:  # noqa: ANN401 - a value of a JSON file
    """Returns whether the entry of a split or shard has its counts and checksums."""
    if not isinstance(part, dict) or not isinstance(part.get("sha256"), dict) or set(part["sha256"]) != _DIGESTS:
        return False
    return all(type(part.get(name)) is int and part[name] >= 0 for name in ("tokens", "documents"))


def open_store(path: str | Path, split: str) -> TokenStore:
    """Returns a split of a store, after checking that its files have the sizes in the manifest.

    The offsets of a shard are checked when they are first read, so opening takes the same time for any number of
    documents; `data.store_check.verify_store` checks everything.

    Raises:
        UserError: not a store, no such split, or a file is missing, truncated or of the wrong size.
    """
    path = at(path)
    manifest = read_manifest(path)
    if split not in manifest["splits"]:
        raise UserError(f"{path} has no {split!r} split; it has: {', '.join(manifest['splits'])}")
    sizes = file_sizes(path / split)
    for shard in shards_of(manifest, split):
        expected = {
            shard.tokens_file: shard.tokens * np.dtype(manifest["dtype"]).itemsize,
            shard.offsets_file: len(npy_header(shard.documents + 1)) + 8 * (shard.documents + 1),
        }
        for name, size in expected.items():
            if name not in sizes:
                raise UserError(f"{path}/{split}/{name} is missing; prepare the store again")
            if sizes[name] != size:
                found = f"has {sizes[name]} bytes, expected {size}"
                raise UserError(f"{path}/{split}/{name} {found}; prepare the store again")
    return TokenStore(path, split)


def npy_header(length: int) -> bytes:
    """Returns the first bytes of the .npy file of an int64 array, which `numpy.save` writes before its elements."""
    header = io.BytesIO()
    described = {"descr": "<i8", "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()


def _rising(offsets: np.ndarray, tokens: int) -> bool:
    """Returns whether offsets rise from 0 to `tokens` in steps of at least 2, a bos and an eos."""
    ends = len(offsets) > 0 and offsets[0] == 0 and offsets[-1] == tokens
    step = _CHECK_DOCUMENTS
    return bool(ends) and all((np.diff(offsets[i : i + step + 1]) >= 2).all() for i in range(0, len(offsets) - 1, step))


def write_manifest(directory: Path, manifest: dict[str, Any]) -> None:
    """Writes or replaces the manifest of a store, atomically; it is the last file of a new store."""
    text = json.dumps({"format": FORMAT, "version": VERSION, **manifest}, indent=1, ensure_ascii=False)
    write_atomically(directory / "manifest.json", text)
