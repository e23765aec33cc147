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
_YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": 1.25,
    "beta_fast": 32.0, "beta_slow": 1.0,
}  # fmt: skip
_LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0 + i / 4 for i in range(6)],
    "long_factor": [2.0 + i / 4 for i in range(6)],
}


def _without(config: dict, *names: str) -> dict:
    return {name: value for name, value in config.items() if name not in names}


_PLAIN = _without(_LLAMA, "head_dim", "rms_norm_eps")
_FALCON = _without(_PLAIN, "num_key_value_heads", "intermediate_size", "rope_theta") | {
    "model_type": "falcon", "layer_norm_epsilon": 1e-5, "ffn_hidden_size": 256, "max_position_embeddings": 2048,
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
    "smollm3": _LLAMA | {"model_type": "smollm3", "num_hidden_layers": 5},
    "granite": _LLAMA | {"model_type": "granite", "head_dim": 16, "embedding_multiplier": 12.0}
    | {"residual_multiplier": 0.22, "attention_multiplier": 0.125, "logits_scaling": 8.0},
    "olmo3": _LLAMA | {"model_type": "olmo3", "head_dim": 16, "sliding_window": 16, "rope_theta": 500000.0}
    | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "rope_scaling": _YARN},
    "phi3": _PLAIN | {"model_type": "phi3", "rms_norm_eps": 1e-5, "sliding_window": 16},
    "phi3_long": _PLAIN | {"model_type": "phi3", "rms_norm_eps": 1e-5, "original_max_position_embeddings": 32}
    | {"partial_rotary_factor": 0.75, "rope_scaling": _LONGROPE},
    "cohere": _PLAIN | {"model_type": "cohere", "layer_norm_eps": 1e-5, "logit_scale": 0.25},
    "cohere2": _PLAIN | {"model_type": "cohere2", "layer_norm_eps": 1e-5, "logit_scale": 0.25}
    | {"num_hidden_layers": 5, "sliding_window": 16},
    "stablelm": _PLAIN | {"model_type": "stablelm", "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25}
    | {"use_qkv_bias": True, "use_parallel_residual": False},
    "stablelm_parallel": _PLAIN | {"model_type": "stablelm", "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5}
    | {"use_qkv_bias": False, "use_parallel_residual": True},
    "starcoder2": _PLAIN | {"model_type": "starcoder2", "norm_epsilon": 1e-5, "use_bias": True},
    "gpt_neox": _without(_PLAIN, "num_key_value_heads", "rope_theta") | {"model_type": "gpt_neox"}
    | {"layer_norm_eps": 1e-5, "rotary_pct": 0.25, "use_parallel_residual": True},
    "falcon": _FALCON | {"multi_query": True},
    "falcon_grouped": _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
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
    "layer_norm_eps": "attention.layer_norm_epsilon", "norm_epsilon": "attention.layer_norm_epsilon",
    "attention_multiplier": "attention.scale", "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale", "logits_scaling": "logit_scale", "logit_scale": "logit_scale",
    "ffn_hidden_size": "feed_forward_length", "rope_local_base_freq": "rope.freq_base_swa",
    "original_max_position_embeddings": "rope.scaling.original_context_length",
}  # fmt: skip
_ARCHITECTURES = {"gemma3_text": "gemma3", "olmo3": "olmo2", "gpt_neox": "gptneox", "cohere": "command-r"}


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
    arch = _ARCHITECTURES.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(path, arch)
    values = {f"{arch}.{key}": config[name] for name, key in _KEYS.items() if config.get(name) is not None}
    values |= {f"{arch}.{key}": value for key, value in _derived(config).items()}
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


def _derived(config: dict) -> dict[str, object]:
    """Returns the metadata of a model that is not a field of its config.json."""
    kind = config["model_type"]
    if kind == "gpt2":
        return {"feed_forward_length": 4 * config["n_embd"]}
    size = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    fraction = config.get("partial_rotary_factor", config.get("rotary_pct", 1.0))
    found: dict[str, object] = {"rope.dimension_count": int(size * fraction)}
    if "head_dim" in config:
        found["attention.value_length"] = size
    if kind in ("gpt_neox", "stablelm"):
        found["use_parallel_residual"] = config["use_parallel_residual"]
    if kind == "falcon":
        found |= {"tensor_data_layout": "jploski", "attention.head_count_kv": config.get("num_kv_heads", 1)}
    if kind == "olmo3":
        found["attention.sliding_window_pattern"] = [kind == "sliding_attention" for kind in config["layer_types"]]
    if config.get("rope_scaling") == _YARN:
        names = {"type": "rope_type", "factor": "factor", "original_context_length": "original_max_position_embeddings"}
        names |= {"yarn_attn_factor": "attention_factor", "yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
        found |= {f"rope.scaling.{ours}": _YARN[theirs] for ours, theirs in names.items()}
    if config.get("rope_scaling") == _LONGROPE:
        found["rope.scaling.type"] = "longrope"
    return found


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
        if arch in ("llama", "smollm3", "granite") and ".q_proj." in name:
            tensor = permute(tensor, config["num_attention_heads"])
        if arch in ("llama", "smollm3", "granite") and ".k_proj." in name:
            tensor = permute(tensor, config["num_key_value_heads"])
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            tensor = tensor + 1
        if arch == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            tensor = tensor.T
        if arch in ("gptneox", "falcon") and "query_key_value" in name:
            heads = config["num_attention_heads"]
            tensor = ungroup(tensor, heads, heads if arch == "gptneox" else config.get("num_kv_heads", 1))
        found[table_.get_name(name, (".weight", ".bias"))] = tensor
    if config.get("rope_scaling") == _SCALING:
        found["rope_freqs.weight"] = llama3_factors(config)
    if config.get("rope_scaling") == _LONGROPE:
        factors = {name: np.array(_LONGROPE[f"{name}_factor"], np.float32) for name in ("short", "long")}
        found |= {f"rope_factors_{name}.weight": factor for name, factor in factors.items()}
    return found


def ungroup(tensor: np.ndarray, heads: int, groups: int) -> np.ndarray:
    """Returns all queries, then all keys, then all values, from a tensor with those of each kv head together."""
    size = len(tensor) // (heads + 2 * groups)
    grouped = tensor.reshape(groups, heads // groups + 2, size, *tensor.shape[1:])
    parts = (grouped[:, :-2], grouped[:, -2:-1], grouped[:, -1:])
    return np.concatenate([part.reshape(-1, *tensor.shape[1:]) for part in parts])


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
