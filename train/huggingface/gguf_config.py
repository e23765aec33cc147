"""The metadata of a GGUF file -> the fields of a config.json, which the reader of config.json then checks.

Every value under the architecture's name is read, has no effect, or is refused by name. What llama.cpp derives from
something else than metadata, because converters do not write it, is derived here in the same way.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from configs.errors import UserError
from model.sampling import Sampling
from train.huggingface.gguf_file import Gguf, Value

# general.architecture -> model_type.
ARCHITECTURES = {
    "gpt2": "gpt2",
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "olmo2": "olmo2",
}
_Config = dict[str, Any]

_SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
_GPT2 = {
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
_SOFTCAPS = {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}
_WINDOW = {"attention.sliding_window": "sliding_window"}
# Metadata -> field of config.json, where the value is the same.
_FIELDS: dict[str, dict[str, str]] = {name: _SIZES for name in ARCHITECTURES} | {
    "gpt2": _GPT2,
    "gemma2": _SIZES | _SOFTCAPS | _WINDOW,
    "gemma3": _SIZES | _SOFTCAPS | _WINDOW,
}
# Values that the functions below read or check.
_READ = frozenset(
    """
    vocab_size attention.value_length attention.scale attention.sliding_window_pattern rope.dimension_count
    rope.freq_base_swa rope.scaling.type rope.scaling.factor rope.scaling.original_context_length
    rope.scaling.finetuned rope.scaling.attn_factor rope.scaling.yarn_attn_factor rope.scaling.yarn_beta_fast
    rope.scaling.yarn_beta_slow
    """.split()
)
# Values with which other metadata has no effect.
_NEUTRAL: Mapping[str, Any] = {
    "attention.causal": True, "expert_count": 0, "expert_used_count": 0, "pooling_type": 0, "tensor_data_layout": "",
    "attention.max_alibi_bias": 0.0, "attention.clamp_kqv": 0.0, "use_parallel_residual": False, "logit_scale": 1.0,
    "attention.sliding_window": 0, "rope.scale_linear": 1.0, "attention.head_count_kv": None,
    "rope.scaling.yarn_log_multiplier": 0.0, "rope.scaling.yarn_ext_factor": 1.0,
}  # fmt: skip
_SAMPLING = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}
# Layers of the models whose attention scores are divided by sqrt(embedding / heads), not by sqrt(head_dim).
_SCALED_BY_WIDTH = {"gemma2": 46, "gemma3": 62}
# Gemma 3: every sixth layer has full attention; the others have this rotary base.
_GEMMA3_PERIOD, _GEMMA3_LOCAL_BASE = 6, 10000.0
_ROPE_FACTORS = "rope_freqs.weight"
# Llama 3.1, 3.2 and 3.3; converters write no other original context.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def config_of(gguf: Gguf) -> _Config:
    """Returns the config.json of the model in a GGUF file.

    Raises:
        UserError: the file has no language model, or one of an unknown architecture, or a value is missing, has the
            wrong type or is not supported.
    """
    name = architecture_of(gguf)
    values = {key.removeprefix(f"{name}."): value for key, value in gguf.metadata.items() if key.startswith(f"{name}.")}
    values = {key: _decimal(value) for key, value in values.items()}
    fields = _FIELDS[name]
    errors = [
        f"{name}.{key}={value!r:.60}"
        for key, value in values.items()
        if key not in fields and key not in _READ and value != _NEUTRAL.get(key, ...)
    ]
    if errors:
        raise UserError(f"{gguf.path}: {', '.join(errors[:5])}: not supported for {name}")
    per_layer = next((key for key in fields if isinstance(values.get(key), list)), None)
    if per_layer:
        raise UserError(f"{gguf.path}: {name}.{per_layer} has a value per layer; expected one for all layers")
    config: _Config = {"model_type": ARCHITECTURES[name], "vocab_size": _vocab_size(gguf, values)}
    config |= {ours: values[key] for key, ours in fields.items() if key in values}
    config["tie_word_embeddings"] = "output.weight" not in gguf.tensors
    if name == "gpt2":
        return config | {"activation_function": "gelu_new"}
    _check_head_dim(gguf, config, values)
    config |= _rope(gguf, config, values) | _attention(gguf, name, config, values)
    return config


def sampling_of(gguf: Gguf) -> dict[str, Any]:
    """Returns the sampling options in a GGUF file's metadata."""
    names = {name: f"general.sampling.{theirs}" for name, theirs in _SAMPLING.items()}
    found = {name: _decimal(gguf.metadata[key]) for name, key in names.items() if key in gguf.metadata}
    try:
        Sampling(**found)  # type: ignore[arg-type]
    except (UserError, TypeError) as error:
        raise UserError(f"{gguf.path}: general.sampling: {error}") from None
    return found


def architecture_of(gguf: Gguf) -> str:
    """Returns the architecture of a GGUF file.

    Raises:
        UserError: it is unknown, or the file has no language model.
    """
    name, kind = gguf.metadata.get("general.architecture"), gguf.metadata.get("general.type", "model")
    known = ", ".join(ARCHITECTURES)
    if kind != "model":
        raise UserError(f"{gguf.path}: general.type={kind!r:.60}; expected a language model, of one of {known}")
    if name not in ARCHITECTURES:
        raise UserError(f"{gguf.path}: general.architecture={name!r:.60} is not supported; expected one of {known}")
    return name


def _decimal(value: Value) -> Value:
    """Returns a float32 as the decimal number that it was written from, e.g. 1e-6."""
    return float(str(np.float32(value))) if isinstance(value, float) and math.isfinite(value) else value


def _vocab_size(gguf: Gguf, values: Mapping[str, Any]) -> int:
    table = gguf.tensors.get("token_embd.weight")
    if table is None:
        raise UserError(f"{gguf.path} has no tensor token_embd.weight; expected a language model")
    size = values.get("vocab_size", table.shape[0])
    if size != table.shape[0]:
        raise UserError(f"{gguf.path}: vocab_size={size}, but token_embd.weight has {table.shape[0]} rows")
    return size


def _check_head_dim(gguf: Gguf, config: _Config, values: Mapping[str, Any]) -> None:
    """Sets head_dim where it is missing, and checks that keys, values and rotary dimensions have that size."""
    missing = next((name for name in ("hidden_size", "num_attention_heads") if not config.get(name)), None)
    if missing:
        key = next(key for key, name in _SIZES.items() if name == missing)
        raise UserError(f"{gguf.path}: {key} is missing")
    size = config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    for key in ("attention.value_length", "rope.dimension_count"):
        if values.get(key, size) != size:
            raise UserError(f"{gguf.path}: {key}={values[key]!r:.60} differs from the size of heads, {size}")


def _attention(gguf: Gguf, name: str, config: _Config, values: Mapping[str, Any]) -> _Config:
    """Returns biases, windows and the scale of attention scores."""
    found: _Config = {}
    if name in ("llama", "qwen3", "olmo2"):
        found["attention_bias"] = "blk.0.attn_q.bias" in gguf.tensors
    if name == "llama":
        found["mlp_bias"] = "blk.0.ffn_up.bias" in gguf.tensors
    if name not in _SCALED_BY_WIDTH:
        return found
    by_width = config["num_hidden_layers"] == _SCALED_BY_WIDTH[name]
    default = config["hidden_size"] // config["num_attention_heads"] if by_width else config["head_dim"]
    scale = values.get("attention.scale")
    found["query_pre_attn_scalar"] = round(scale**-2) if scale else default
    if name == "gemma3":
        period = values.get("attention.sliding_window_pattern", _GEMMA3_PERIOD)
        layers = range(config["num_hidden_layers"])
        local = period if isinstance(period, list) else [(i + 1) % period != 0 for i in layers]
        found["layer_types"] = ["sliding_attention" if flag else "full_attention" for flag in local]
        if "sliding_window" not in config:
            found["layer_types"] = ["full_attention" for _ in layers]
    return found


def _rope(gguf: Gguf, config: _Config, values: Mapping[str, Any]) -> _Config:
    """Returns the rotary fields."""
    kind = values.get("rope.scaling.type", "none")
    scaling: _Config = {}
    if kind != "none":
        names = {
            "factor": "factor",
            "original_context_length": "original_max_position_embeddings",
            "attn_factor": "attention_factor",
            "yarn_attn_factor": "attention_factor",
            "yarn_beta_fast": "beta_fast",
            "yarn_beta_slow": "beta_slow",
        }
        found = {theirs: values.get(f"rope.scaling.{ours}") for ours, theirs in names.items()}
        scaling = {"rope_type": kind} | {key: value for key, value in found.items() if value is not None}
    if _ROPE_FACTORS in gguf.tensors:
        if scaling:
            raise UserError(f"{gguf.path} has {_ROPE_FACTORS} and rope.scaling.type={kind!r:.60}; expected one of them")
        scaling = _llama3(gguf, config)
    if gguf.metadata["general.architecture"] != "gemma3":
        return {"rope_scaling": scaling} if scaling else {}
    base = config.pop("rope_theta", _GEMMA3_LOCAL_BASE)
    local = values.get("rope.freq_base_swa", _GEMMA3_LOCAL_BASE)
    return {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": base} | scaling,
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        }
    }


def _llama3(gguf: Gguf, config: _Config) -> _Config:
    """Returns the rope_scaling of Llama 3 whose factors are the tensor `rope_freqs.weight`.

    Raises:
        UserError: they are others.
    """
    factors = gguf.read(_ROPE_FACTORS).astype(np.float64)
    scaling = {"rope_type": "llama3", "factor": float(factors.max())} | _LLAMA3
    size, base = config["head_dim"], config.get("rope_theta", 10000.0)
    turns = _LLAMA3["original_max_position_embeddings"] * base ** (-np.arange(0, size, 2) / size) / (2 * math.pi)
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    expected = 1 / ((1 - kept) / scaling["factor"] + kept)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4):
        raise UserError(f"{gguf.path}: {_ROPE_FACTORS} is not supported; expected the factors of Llama 3.1 to 3.3")
    return scaling
