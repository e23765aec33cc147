"""Weights in PyTorch's older format, a pickle: read only where a user allows it, by torch's restricted unpickler."""

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
        UserError: there are none, torch is not installed, or a file is damaged or holds more than tensors.
    """
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        raise UserError("--allow_pickle needs: pip install torch") from None
    tensors: dict[str, Any] = {}
    for path in shards_of(directory, PICKLED_INDEX, PICKLED):
        try:
            # Mapped, so that a tensor takes memory when it is asked for; weights_only unpickles tensors and no code.
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch's and pickle's own kinds
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise UserError(f"{path} is damaged or holds more than tensors: {reason}") from None
        tensors |= dict(_tensors(found, path))

    def read(name: str) -> np.ndarray:
        # numpy has no bfloat16 of torch's; a model is float32 here in any case.
        return tensors[name].float().numpy()

    return Weights({name: tuple(tensor.shape) for name, tensor in tensors.items()}, read)


def _tensors(found: Any, path: Path) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - whatever a file holds
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}; legal: tensors by name")
    for name, tensor in found.items():
        if not isinstance(name, str) or not hasattr(tensor, "float"):
            raise UserError(f"{path}: {name!r} is a {type(tensor).__name__}; legal: tensors by name")
        yield name, tensor
