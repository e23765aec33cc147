"""The metadata of a GGUF file -> the fields of a config.json, which the reader of config.json then checks.

Every value under the architecture's name is read, has no effect, or is refused by name.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from configs.errors import UserError
from model.sampling import Sampling
from train.console import visible
from train.huggingface.gguf_families import FULL, GGUF_FAMILIES, SLIDING, Fields, GgufFamily, Header
from train.huggingface.gguf_file import Gguf, Value

# Metadata that the functions here or a family's own read or check.
_READ = frozenset(
    """
    vocab_size attention.value_length attention.scale attention.sliding_window_pattern attention.head_count_kv
    rope.dimension_count rope.freq_base_swa use_parallel_residual rope.scaling.type rope.scaling.factor
    rope.scaling.original_context_length rope.scaling.attn_factor rope.scaling.yarn_attn_factor
    rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow
    """.split()
)
# Values with which other metadata has no effect; ... is any.
_NEUTRAL: Mapping[str, Any] = {
    "attention.causal": True, "expert_count": 0, "expert_used_count": 0, "pooling_type": 0,
    "attention.max_alibi_bias": 0.0, "attention.clamp_kqv": 0.0, "attention.sliding_window": 0,
    "rope.scale_linear": 1.0, "rope.scaling.yarn_log_multiplier": 0.0, "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.finetuned": ...,
}  # fmt: skip
_SCALING = {
    "factor": "factor",
    "original_context_length": "original_max_position_embeddings",
    "attn_factor": "attention_factor",
    "yarn_attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}
_SAMPLING = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}
ROPE_FACTORS = "rope_freqs.weight"
# Llama 3.1, 3.2 and 3.3; converters write no other original context.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def config_of(gguf: Gguf) -> Fields:
    """Returns the config.json of the model in a GGUF file.

    Raises:
        UserError: the file has no language model, or one of an unknown architecture, or a value is missing, has the
            wrong type or is not supported.
    """
    name = architecture_of(gguf)
    try:
        return _config(gguf, name)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"{gguf.path}: a value has the wrong type ({error!r:.80}); expected metadata of {name}"
        ) from None


def _config(gguf: Gguf, name: str) -> Fields:
    family = GGUF_FAMILIES[name]
    prefix = f"{name}."
    values: dict[str, Any] = {
        key.removeprefix(prefix): _decimal(value) for key, value in gguf.metadata.items() if key.startswith(prefix)
    }
    _check(gguf, name, values)
    config: Fields = {"model_type": family.model_type, "vocab_size": _vocab_size(gguf, values)}
    config |= {theirs: values[key] for key, theirs in family.fields.items() if key in values}
    config["tie_word_embeddings"] = "output.weight" not in gguf.tensors
    for key in ("embedding_length", "attention.head_count", "block_count", "context_length"):
        if not values.get(key):
            raise UserError(f"{gguf.path}: {prefix}{key} is missing")
    head_dim = values.get("attention.key_length", values["embedding_length"] // values["attention.head_count"])
    if "num_attention_heads" in config and "attention.head_count_kv" in family.fields:
        config.setdefault("num_key_value_heads", config["num_attention_heads"])
    if values.get("attention.value_length", head_dim) != head_dim:
        found = values["attention.value_length"]
        raise UserError(f"{gguf.path}: attention.value_length={found!r:.60} differs from the size of heads, {head_dim}")
    rotated = values.get("rope.dimension_count", head_dim)
    if family.rotated:
        config[family.rotated] = rotated / head_dim
    elif rotated != head_dim:
        raise UserError(f"{gguf.path}: rope.dimension_count={rotated!r:.60} differs from the size of heads, {head_dim}")
    sized = config | {"head_dim": head_dim}
    config |= family.derived(Header(gguf, name, values, sized))
    return config | _rope(gguf, family, config, values, head_dim)


def _check(gguf: Gguf, name: str, values: Mapping[str, Any]) -> None:
    """Raises UserError for metadata that would have an effect and is not read, and for a value per layer."""
    fields, neutral = GGUF_FAMILIES[name].fields, {**_NEUTRAL, **GGUF_FAMILIES[name].neutral}
    refused = [
        f"{name}.{visible(key):.60}={value!r:.60}"
        for key, value in values.items()
        if key not in fields and key not in _READ and neutral.get(key, "") not in (value, ...)
    ]
    if refused:
        raise UserError(f"{gguf.path}: {', '.join(refused[:5])}: not supported for {name}")
    listed = [key for key in (*fields, *_READ) if key != "attention.sliding_window_pattern"]
    per_layer = next((key for key in listed if isinstance(values.get(key), list)), None)
    if per_layer:
        raise UserError(f"{gguf.path}: {name}.{per_layer} has a value per layer; expected one for all layers")


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
    known = ", ".join(GGUF_FAMILIES)
    if kind != "model":
        raise UserError(f"{gguf.path}: general.type={kind!r:.60}; expected a language model, of one of {known}")
    if name not in GGUF_FAMILIES:
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


def _rope(gguf: Gguf, family: GgufFamily, config: Fields, values: Mapping[str, Any], head_dim: int) -> Fields:
    """Returns the rotary fields that `config` does not have."""
    kind = values.get("rope.scaling.type", "none")
    scaling: Fields = {}
    if kind not in ("none", "longrope"):
        found = {theirs: values.get(f"rope.scaling.{ours}") for ours, theirs in _SCALING.items()}
        scaling = {"rope_type": kind} | {key: value for key, value in found.items() if value is not None}
    if kind == "longrope" and "rope_scaling" not in config:
        raise UserError(f"{gguf.path}: rope.scaling.type='longrope' without the tensors rope_factors_short and _long")
    if ROPE_FACTORS in gguf.tensors:
        if scaling:
            raise UserError(f"{gguf.path} has {ROPE_FACTORS} and rope.scaling.type={kind!r:.60}; expected one of them")
        scaling = _llama3(gguf, config, head_dim)
    if not family.per_type and config["model_type"] != "olmo3":
        return {"rope_scaling": scaling} if scaling else {}
    base = config.pop("rope_theta", 10000.0)
    local = values.get("rope.freq_base_swa", family.local_base or base)
    per_type = {FULL: {"rope_theta": base} | scaling, SLIDING: {"rope_theta": local}}
    return {"rope_parameters": {name: {"rope_type": "default"} | fields for name, fields in per_type.items()}}


def _llama3(gguf: Gguf, config: Fields, head_dim: int) -> Fields:
    """Returns the rope_scaling of Llama 3 whose factors are the tensor `rope_freqs.weight`.

    Raises:
        UserError: they are others.
    """
    factors = gguf.read(ROPE_FACTORS).astype(np.float64)
    scaling = {"rope_type": "llama3", "factor": float(factors.max())} | _LLAMA3
    base = config.get("rope_theta", 10000.0)
    frequencies = base ** (-np.arange(0, head_dim, 2) / head_dim)
    turns = _LLAMA3["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    expected = 1 / ((1 - kept) / scaling["factor"] + kept)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4):
        raise UserError(f"{gguf.path}: {ROPE_FACTORS} is not supported; expected the factors of Llama 3.1 to 3.3")
    return scaling
