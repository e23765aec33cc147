"""Weights in PyTorch's pickle format: read only with --allow_pickle, by torch's restricted unpickler."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import UserError
from train.huggingface.safetensors_files import Weights, shards_of

PICKLED_INDEX, PICKLED = "pytorch_model.bin.index.json", "pytorch_model.bin"


def find_pickled_weights(directory: Path) -> Weights:
    """Returns the weights of a directory.

    Raises:
        UserError: no weights, torch is not installed, or a file is damaged or contains objects other than tensors.
    """
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        raise UserError("--allow_pickle needs: pip install torch") from None
    tensors: dict[str, Any] = {}
    for path in shards_of(directory, PICKLED_INDEX, PICKLED):
        try:
            # Memory-mapped, so that tensors are loaded lazily; weights_only refuses to run code.
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch and pickle raise many exception types
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise UserError(f"{path} is damaged or contains objects other than tensors: {reason}") from None
        tensors |= dict(_tensors(found, path))

    def read(name: str) -> np.ndarray:
        # numpy cannot represent torch's bfloat16; imported parameters are float32 anyway.
        return tensors[name].float().numpy()

    return Weights({name: tuple(tensor.shape) for name, tensor in tensors.items()}, read)


def _tensors(found: Any, path: Path) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - any unpickled object
    if not isinstance(found, dict):
        raise UserError(f"{path} contains a {type(found).__name__}; expected a dict of tensors")
    for name, tensor in found.items():
        if not isinstance(name, str) or not hasattr(tensor, "float"):
            raise UserError(f"{path}: {name!r} is a {type(tensor).__name__}; expected a tensor")
        yield name, tensor
