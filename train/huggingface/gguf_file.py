"""GGUF files: metadata and tensors, in one file or in several parts; tensors are dequantized one at a time.

The `gguf` package dequantizes and knows the types of tensors. Its reader is not used: it makes a numpy array of each
token, which takes 20 s and 730 MB for a vocabulary of 262,144, and a damaged file ends in one of many exceptions.
"""

import dataclasses
import importlib
import math
import mmap
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeAlias

import numpy as np

from configs.errors import UserError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = "general.alignment"
# Types of values (github.com/ggml-org/ggml, docs/gguf.md); 8 is a string and 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
# Quantized bytes that are dequantized at a time, as one row: the package loops over rows.
_CHUNK_BYTES = 1 << 20
_MAX_DIMENSIONS = 4
Value: TypeAlias = "int | float | bool | str | list[Value]"


@dataclasses.dataclass(frozen=True)
class Stored:
    """Where a tensor is stored.

    Attributes:
        path: the file.
        kind: number of the type, e.g. 2 for Q4_0.
        shape: its shape, outputs before inputs.
        offset: its first byte.
        size: its bytes.
    """

    path: Path
    kind: int
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclasses.dataclass(frozen=True)
class Gguf:
    """The contents of a GGUF file, or of all parts of one.

    Attributes:
        path: the file, or its first part.
        metadata: the values, strings as str and arrays as lists.
        tensors: name -> where it is stored.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Stored]

    @property
    def types(self) -> str:
        """The names of the types of the tensors."""
        return ", ".join(sorted({_gguf().GGMLQuantizationType(stored.kind).name for stored in self.tensors.values()}))

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor as float32; at no time is more than it and a few megabytes in memory."""
        stored = self.tensors[name]
        gguf = _gguf()
        kind = gguf.GGMLQuantizationType(stored.kind)
        rows = math.prod(stored.shape[:-1])
        out = np.empty((rows, stored.shape[-1]), np.float32)
        row_bytes = stored.size // max(rows, 1)
        step = max(_CHUNK_BYTES // max(row_bytes, 1), 1)
        for start in range(0, rows, step):
            count = min(step, rows - start)
            data = np.fromfile(stored.path, np.uint8, count * row_bytes, offset=stored.offset + start * row_bytes)
            out[start : start + count] = gguf.dequantize(data.reshape(1, -1), kind).reshape(count, -1)
        return out.reshape(stored.shape)


def _gguf() -> ModuleType:
    try:
        return importlib.import_module("gguf")
    except ImportError:
        raise UserError("reading a GGUF file needs: pip install -e '.[gguf]'") from None


def read_gguf(path: Path) -> Gguf:
    """Returns the contents of a GGUF file; of a part (-00001-of-00003.gguf), those of all parts beside it.

    Raises:
        UserError: the package `gguf` is not installed, a part is missing, or a file is damaged, truncated, big-endian,
            of another version, or has tensors of a type that is not supported.
    """
    paths = _parts(path)
    metadata: dict[str, Any] = {}
    tensors: dict[str, Stored] = {}
    for number, part in enumerate(paths):
        values, found = _read_part(part)
        count = values.get("split.count", 1)
        if count not in (0, len(paths)) or (len(paths) > 1 and values.get("split.no") != number):
            raise UserError(
                f"{part} is part {values.get('split.no', 0) + 1} of {count}; expected all parts in one directory, "
                f"named NAME-00001-of-{count:05}.gguf"
            )
        metadata = metadata or values
        if twice := sorted(found.keys() & tensors.keys()):
            raise UserError(f"{part} is damaged: it has the tensor {twice[0]} of an earlier part")
        tensors |= found
    return Gguf(paths[0], metadata, tensors)


def _parts(path: Path) -> list[Path]:
    """Returns the paths of all parts of a file."""
    match = _PART.search(path.name)
    if match is None:
        return [path]
    count = int(match[2])
    names = [f"{path.name[: match.start()]}-{number + 1:05}-of-{count:05}.gguf" for number in range(count)]
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing or not names:
        raise UserError(f"{path} is one of {count} parts; {', '.join(missing[:3])} is missing in the same directory")
    return [path.parent / name for name in names]


def _read_part(path: Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    """Returns (metadata, tensors) of one file."""
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise UserError(f"{path} is not a GGUF file: it does not start with {_MAGIC.decode()}")
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read_header(_Reader(data), path, len(data))
        except (_DamagedError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is damaged or truncated: {error}") from None


class _DamagedError(Exception):
    """What a file says is impossible."""


class _Reader:
    """Reads values one after the other; a length that exceeds the file is an error before anything is allocated."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.position = len(_MAGIC)

    def bytes(self, count: int) -> bytes:
        """Returns the next bytes."""
        start, self.position = self.position, self.position + count
        if self.position > len(self.data):
            raise _DamagedError(f"it ends after {len(self.data):,} bytes, within its header")
        return self.data[start : self.position]

    def count(self, kind: Literal["I", "Q"]) -> int:
        """Returns an unsigned number of 4 or 8 bytes."""
        return struct.unpack(f"<{kind}", self.bytes(struct.calcsize(f"<{kind}")))[0]

    def number(self, kind: str) -> int | float | bool:
        """Returns a number of a type of `struct`."""
        return struct.unpack(f"<{kind}", self.bytes(struct.calcsize(f"<{kind}")))[0]

    def string(self) -> str:
        """Returns a string."""
        return self.bytes(self.count("Q")).decode()

    def value(self, kind: int, depth: int = 0) -> Value:
        """Returns a value of a type of the format."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY or depth > 1:
            raise _DamagedError(f"a value has the type {kind}")
        item, count = self.count("I"), self.count("Q")
        if item in _SCALARS:
            size = struct.calcsize(f"<{_SCALARS[item]}")
            return list(struct.unpack(f"<{count}{_SCALARS[item]}", self.bytes(count * size)))
        if count > len(self.data):
            raise _DamagedError(f"an array has {count} items")
        return [self.value(item, depth + 1) for _ in range(count)]


def _read_header(reader: _Reader, path: Path, size: int) -> tuple[dict[str, Any], dict[str, Stored]]:
    version = reader.count("I")
    if version & 0xFFFF == 0:
        raise UserError(f"{path} is big-endian; convert it first: gguf-convert-endian {path} little")
    if version not in _VERSIONS:
        raise UserError(f"{path} has version {version} of GGUF; expected {' or '.join(map(str, _VERSIONS))}")
    tensor_count, value_count = reader.count("Q"), reader.count("Q")
    metadata: dict[str, Any] = {}
    for _ in range(value_count):
        name = reader.string()
        if name in metadata:
            raise _DamagedError(f"the value {name!r:.80} is there twice")
        metadata[name] = reader.value(reader.count("I"))
    entries: dict[str, tuple[int, tuple[int, ...], int]] = {}
    for _ in range(tensor_count):
        name, dimensions = reader.string(), reader.count("I")
        if dimensions > _MAX_DIMENSIONS or name in entries:
            raise _DamagedError(f"the tensor {name!r:.80} is there twice, or has {dimensions} dimensions")
        # The first dimension is the fastest.
        shape = tuple(reader.count("Q") for _ in range(dimensions))[::-1]
        entries[name] = (reader.count("I"), shape, reader.count("Q"))
    alignment = metadata.get(_ALIGNMENT, 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise _DamagedError(f"{_ALIGNMENT}={alignment!r:.80}")
    start = -(-reader.position // alignment) * alignment
    tensors = {name: _stored(path, name, entry, start) for name, entry in entries.items()}
    end = max((stored.offset + stored.size for stored in tensors.values()), default=0)
    if end > size:
        raise _DamagedError(f"it has {size:,} bytes, and its tensors need {end:,}")
    return metadata, tensors


def _stored(path: Path, name: str, entry: tuple[int, tuple[int, ...], int], start: int) -> Stored:
    """Returns where a tensor is stored.

    Args:
        path: the file.
        name: the tensor.
        entry: (type, shape, offset) in the file.
        start: where the tensors start.
    """
    kind, shape, offset = entry
    gguf = _gguf()
    try:
        block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        gguf.dequantize(np.zeros((1, block_bytes), np.uint8), gguf.GGMLQuantizationType(kind))
    except (ValueError, KeyError, NotImplementedError):
        raise UserError(
            f"{path}: the tensor {name!r:.80} has the type {_name_of(kind)}, which is not supported"
        ) from None
    if not shape or shape[-1] % block:
        raise _DamagedError(f"the tensor {name!r:.80} has shape {list(shape)}, and its type blocks of {block}")
    return Stored(path, kind, shape, start + offset, math.prod(shape) // block * block_bytes)


def _name_of(kind: int) -> str:
    try:
        return _gguf().GGMLQuantizationType(kind).name
    except ValueError:
        return str(kind)
