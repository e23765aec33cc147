"""Small models in Hugging Face's format, and the GGUF files that llama.cpp's converter makes of such models."""

import json
import math
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from data.tokenizer_training import train_tokenizer
from model.config import model_config
from model.heads import language_model
from model.huggingface.config_file import to_section
from model.huggingface.families import table
from model.huggingface.weights import expected_shapes
from train.distributed.mesh import single_device_mesh
from train.trees import abstract_params

_LLAMA = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "head_dim": 32,
    "rope_theta": 10000.0,
}
_SCALING = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
_GPT2 = {"vocab_size": 320, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128, "layer_norm_epsilon": 1e-5}
_GEMMA2 = {"sliding_window": 16, "query_pre_attn_scalar": 32, "attn_logit_softcapping": 20.0}
# A small config.json of each family; attention of all heads is wider than the embedding where a family allows that.
CONFIGS = {
    "gpt2": _GPT2 | {"model_type": "gpt2", "activation_function": "gelu_new"},
    "llama": _LLAMA | {"model_type": "llama", "tie_word_embeddings": False},
    "llama_biased": _LLAMA | {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama3": _LLAMA | {"model_type": "llama", "tie_word_embeddings": True, "rope_scaling": _SCALING}
    | {"rope_theta": 500000.0},
    "qwen2": _LLAMA | {"model_type": "qwen2", "head_dim": 16},
    "qwen3": _LLAMA | {"model_type": "qwen3", "tie_word_embeddings": True},
    "gemma2": _LLAMA | _GEMMA2 | {"model_type": "gemma2", "final_logit_softcapping": 10.0},
    "olmo2": _LLAMA | {"model_type": "olmo2", "head_dim": 16},
    "gemma3": _LLAMA | {"model_type": "gemma3_text", "num_hidden_layers": 7, "rope_theta": 1e6}
    | {"sliding_window": 16, "query_pre_attn_scalar": 32, "rope_local_base_freq": 10000.0},
}  # fmt: skip
# Metadata that is not a copy of a field of config.json.
_KEYS = {
    "max_position_embeddings": "context_length", "hidden_size": "embedding_length", "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length", "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv", "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "head_dim": "attention.key_length", "rope_theta": "rope.freq_base", "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping",
    "n_positions": "context_length", "n_embd": "embedding_length", "n_layer": "block_count",
    "n_head": "attention.head_count", "layer_norm_epsilon": "attention.layer_norm_epsilon",
}  # fmt: skip


def write_model(name: str, directory: Path) -> Path:
    """Writes a model with random weights and a trained tokenizer."""
    directory.mkdir(parents=True)
    config = CONFIGS[name]
    (directory / "config.json").write_text(json.dumps(config))
    architecture, section = to_section(config, name)
    model = model_config(section)
    shapes = expected_shapes(abstract_params(language_model(model), single_device_mesh()), table(architecture, model))
    rng = np.random.default_rng(0)
    tensors = {key: 0.3 * rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
    save_file(tensors, directory / "model.safetensors")
    text = "the cat sat on the mat, and the 3 dogs saw it in 1984. " * 20
    train_tokenizer("bpe:300", [text]).save(directory)
    return directory


def write_gguf(directory: Path, path: Path, kind: str = "F32", **metadata: object) -> Path:
    """Writes the GGUF file of a model, with its tokenizer.

    Args:
        directory: the model.
        path: the file.
        kind: type of the matrices; vectors are stored as F32.
        metadata: values to add ("__" for "."), or with None to leave out.
    """
    import gguf

    config = json.loads((directory / "config.json").read_text())
    arch = {"gemma3_text": "gemma3"}.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(path, arch)
    values = {f"{arch}.{key}": config[name] for name, key in _KEYS.items() if config.get(name) is not None}
    if arch == "gpt2":
        values[f"{arch}.feed_forward_length"] = 4 * config["n_embd"]
    elif arch == "gemma2" or "head_dim" in config:
        values |= {f"{arch}.attention.value_length": config["head_dim"]}
        values |= {f"{arch}.rope.dimension_count": config["head_dim"]}
    values |= _tokenizer_values(directory, config["vocab_size"]) | {
        key.replace("__", "."): value for key, value in metadata.items()
    }
    for key, value in values.items():
        _add(writer, key, value)
    for name, tensor in tensors_of(directory, config, arch).items():
        type_ = gguf.GGMLQuantizationType[kind if tensor.ndim > 1 else "F32"]
        writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(tensor), type_), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: object, key: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _tokenizer_values(directory: Path, size: int) -> dict[str, object]:
    """Returns the metadata of a byte-level tokenizer, with unused tokens up to `size`."""
    layout = json.loads((directory / "tokenizer.json").read_text())
    names = json.loads((directory / "tokenizer_config.json").read_text())
    ids = {token["content"]: token["id"] for token in layout["added_tokens"]}
    vocabulary = layout["model"]["vocab"] | ids
    tokens, types = [f"[PAD{i}]" for i in range(size)], [5] * size
    for token, index in vocabulary.items():
        tokens[index], types[index] = token, 3 if token in ids else 1
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in layout["model"]["merges"]]
    roles = {"bos": "bos_token", "eos": "eos_token", "padding": "pad_token"}
    found: dict[str, object] = {f"tokenizer.ggml.{role}_token_id": ids[names[name]] for role, name in roles.items()}
    return found | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.add_bos_token": True,
    }


def tensors_of(directory: Path, config: dict, arch: str) -> dict[str, np.ndarray]:
    """Returns the tensors of a model with the names and layouts of llama.cpp (its conversion/*.py)."""
    import gguf

    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    table_ = gguf.get_tensor_name_map(kind, config.get("num_hidden_layers", config.get("n_layer")))
    found = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        if arch == "llama" and ".q_proj." in name:
            tensor = permute(tensor, config["num_attention_heads"])
        if arch == "llama" and ".k_proj." in name:
            tensor = permute(tensor, config["num_key_value_heads"])
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            tensor = tensor + 1
        if name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            tensor = tensor.T
        found[table_.get_name(name, (".weight", ".bias"))] = tensor
    if config.get("rope_scaling"):
        found["rope_freqs.weight"] = llama3_factors(config)
    return found


def permute(tensor: np.ndarray, heads: int) -> np.ndarray:
    """Returns the rows of each head with rotated pairs as neighbors."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def llama3_factors(config: dict) -> np.ndarray:
    """Returns the divisors of Llama 3's frequencies, as the converter computes them, one frequency after the other."""
    scaling, size = config["rope_scaling"], config["head_dim"]
    context = scaling["original_max_position_embeddings"]
    factors = []
    for i in range(0, size, 2):
        wavelength = 2 * math.pi * config["rope_theta"] ** (i / size)
        if wavelength < context / scaling["high_freq_factor"]:
            factors.append(1.0)
        elif wavelength > context / scaling["low_freq_factor"]:
            factors.append(scaling["factor"])
        else:
            width = scaling["high_freq_factor"] - scaling["low_freq_factor"]
            smooth = (context / wavelength - scaling["low_freq_factor"]) / width
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(factors, np.float32)


def leaves(params: object) -> dict[str, np.ndarray]:
    """Returns {path: leaf}."""
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}
