"""Safetensors weights, one file or indexed shards: read tensor by tensor, written shard by shard."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - teaches numpy bfloat16
import numpy as np
from safetensors import SafetensorError, safe_open

from configs.errors import UserError
from model.huggingface.weights import IGNORED
from train.console import warn
from train.huggingface.kinds import check_dtypes

SINGLE = "model.safetensors"
_SHARD_BYTES = 5_000_000_000
_TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclasses.dataclass(frozen=True)
class Weights:
    """The tensors of a directory, read lazily.

    Attributes:
        shapes: name -> shape.
        read: name -> tensor.
    """

    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]


def find_weights(directory: Path, single: str = SINGLE) -> Weights:
    """Returns the weights of a directory.

    Args:
        directory: the directory.
        single: name of the file; shards are listed in a file with this name and ".index.json".

    Raises:
        UserError: the directory contains no weights, or a file is missing, truncated, not in safetensors format or
            quantized.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    files: dict[str, Path] = {}
    dtypes: dict[str, str] = {}
    for path in shards_of(directory, f"{single}.index.json", single):
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():
                    entry = file.get_slice(name)
                    shapes[name], dtypes[name], files[name] = tuple(entry.get_shape()), entry.get_dtype(), path
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged or not a safetensors file: {' '.join(str(error).split())}") from None
    check_dtypes({name: dtype for name, dtype in dtypes.items() if not name.endswith(IGNORED)}, str(directory))

    def read(name: str) -> np.ndarray:
        # Opened for each read: an open file keeps all pages that were read in memory.
        with safe_open(files[name], framework="numpy") as file:
            return file.get_tensor(name)

    return Weights(shapes, read)


def shards_of(directory: Path, index_name: str, single: str) -> list[Path]:
    """Returns the weight files of a directory: a single file, or else the shards that an index lists.

    Raises:
        UserError: there are no weight files, or the index is damaged or lists a file in another directory.
    """
    index = directory / index_name
    if (directory / single).is_file():
        if index.is_file():
            warn(f"{directory} has {single} and {index_name}; reads {single}, as transformers does, and not the index")
        return [directory / single]
    if not index.is_file():
        others = ", ".join(path.name for path in sorted(directory.glob("*.bin"))[:3]) if single == SINGLE else ""
        pickled = f" ({others} is a pickle, which needs --allow_pickle)" if others else ""
        raise UserError(f"{directory} has neither {single} nor {index_name}{pickled}; expected safetensors weights")
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index} is damaged: {error!r}") from None
    for name in names:
        # Never follow a path out of the directory.
        if not isinstance(name, str) or Path(name).name != name or not (directory / name).is_file():
            raise UserError(f"{index} lists {name!r}; expected a file in the same directory")
    return [directory / name for name in names]


def write_weights(
    directory: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str, tensors: Iterator[Any], stem: str = "model"
) -> None:
    """Writes tensors one at a time into a single file, or into shards of about 5 GB with an index.

    The safetensors library can only write tensors that are all in memory.

    Args:
        directory: the output directory.
        shapes: name -> shape, in the order of `tensors`.
        dtype: name of the numpy dtype of all tensors.
        tensors: the arrays.
        stem: beginning of the names of the files.
    """
    size = np.dtype(dtype).itemsize
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in shapes.items():
        if shards[-1] and filled + math.prod(shape) * size > _SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += math.prod(shape) * size
    count = len(shards)
    single = f"{stem}.safetensors"
    files = [single if count == 1 else f"{stem}-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)]
    for file, shard in zip(files, shards, strict=True):
        with (directory / file).open("wb") as out:
            out.write(_header(shard, dtype))
            for name in shard:
                out.write(_cast(name, next(tensors), dtype).tobytes())
    if count > 1:
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        total = sum(math.prod(shape) * size for shape in shapes.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / f"{single}.index.json").write_text(json.dumps(index, indent=1))


def _cast(name: str, tensor: np.ndarray, dtype: str) -> np.ndarray:
    """Returns a tensor as a type of `_TYPES`.

    Raises:
        UserError: a finite value is too large for it.
    """
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(tensor).astype(dtype, copy=False)
    if dtype == "float16" and np.isinf(cast).sum() > np.isinf(tensor).sum():
        raise UserError(f"{name} has values beyond 65,504, the largest of float16; use --dtype=bfloat16")
    return cast


def _header(shard: Mapping[str, tuple[int, ...]], dtype: str) -> bytes:
    """Returns a file header: the length in 8 bytes, then JSON (github.com/huggingface/safetensors, Format)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in shard.items():
        end = start + math.prod(shape) * np.dtype(dtype).itemsize
        header[name] = {"dtype": _TYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
