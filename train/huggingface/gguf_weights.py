"""The tensors of a GGUF file under the names, and in the layouts, of Hugging Face's files."""

import importlib
from collections.abc import Callable, Iterable

import numpy as np

from model.config import ModelConfig
from train.huggingface.gguf_config import architecture_of
from train.huggingface.gguf_file import Gguf
from train.huggingface.safetensors_files import Weights

# llama.cpp rotates neighboring dimensions of these models, so converters permute the rows of queries and keys.
_PERMUTED = ("llama",)
# Their norms scale by 1 + weight; llama.cpp's by the weight.
_UNIT_OFFSET = ("gemma2", "gemma3")
# Derived from the config, which was derived from it.
_NOT_WEIGHTS = ("rope_freqs.weight",)
_Undo = Callable[[np.ndarray], np.ndarray]


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
    undo = {ours: _undo(architecture, model, ours) for ours in found.values()}
    stored = {found.get(name, name): name for name in gguf.tensors if name not in _NOT_WEIGHTS}

    def read(name: str) -> np.ndarray:
        return undo[name](gguf.read(stored[name]))

    shapes = {name: gguf.tensors[file_name].shape for name, file_name in stored.items()}
    transposed = [name for name in shapes if undo.get(name) is np.transpose]
    return Weights(shapes | {name: shapes[name][::-1] for name in transposed}, read)


def _undo(architecture: str, model: ModelConfig, name: str) -> _Undo:
    """Returns the function that undoes what converters did to a tensor."""
    if architecture in _PERMUTED and name.rpartition(".")[0].endswith(("q_proj", "k_proj")):
        heads = model.num_heads if "q_proj" in name else model.num_kv_heads
        return lambda tensor: _unpermuted(tensor, heads)
    if architecture in _UNIT_OFFSET and name.endswith("norm.weight"):
        return lambda tensor: tensor - 1
    if architecture == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return np.transpose
    return lambda tensor: tensor


def _unpermuted(tensor: np.ndarray, heads: int) -> np.ndarray:
    """Returns the rows of each head with the first halves of the rotated pairs before the second halves."""
    pairs = tensor.reshape(heads, -1, 2, *tensor.shape[1:])
    return pairs.swapaxes(1, 2).reshape(tensor.shape)
