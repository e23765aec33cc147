"""The tensors of a GGUF file under the names, and in the layouts, of Hugging Face's files."""

import importlib
from collections.abc import Iterable

import numpy as np

from model.config import ModelConfig
from train.huggingface.gguf_config import ROPE_FACTORS, architecture_of
from train.huggingface.gguf_families import GGUF_FAMILIES
from train.huggingface.gguf_file import Gguf
from train.huggingface.safetensors_files import Weights

# Rotary factors, which are part of the config.
_NOT_WEIGHTS = (ROPE_FACTORS, "rope_factors_short.weight", "rope_factors_long.weight")


def gguf_weights(gguf: Gguf, model: ModelConfig, names: Iterable[str]) -> Weights:
    """Returns the weights of a GGUF file, read tensor by tensor.

    Args:
        gguf: the file.
        model: its architecture.
        names: the Hugging Face names that the model has. Other tensors keep their names in the file.
    """
    package = importlib.import_module("gguf")
    architecture = architecture_of(gguf)
    kind = next(key for key, name in package.MODEL_ARCH_NAMES.items() if name == architecture)
    table = package.get_tensor_name_map(kind, model.num_layers)
    # The package's table has the names without their last part.
    found = {table.get_name(name, try_suffixes=(".weight", ".bias")) or name: name for name in names}
    stored = {found.get(name, name): name for name in gguf.tensors if name not in _NOT_WEIGHTS}
    undo = GGUF_FAMILIES[architecture].undo

    def read(name: str) -> np.ndarray:
        return undo(model, name, gguf.read(stored[name]))

    def shape(name: str) -> tuple[int, ...]:
        # Undoing may transpose. Other layouts keep the shape, and fail for tensors that the model does not have.
        empty = np.broadcast_to(np.float32(0), gguf.tensors[stored[name]].shape)
        return undo(model, name, empty).shape if empty.ndim == 2 and architecture == "gpt2" else empty.shape

    return Weights({name: shape(name) for name in stored}, read)
