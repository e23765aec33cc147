"""Hugging Face's config.json <-> `config.model`: the names and meanings of each architecture's fields."""

from collections.abc import Mapping
from typing import Any

from configs import default, models
from configs.errors import UserError
from model.config import ModelConfig
from model.huggingface import ARCHITECTURES

_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu", "gelu_new": "gelu"}
_CLASS_NAMES = {
    "gpt2": "GPT2", "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma2": "Gemma2",
    "olmo2": "Olmo2",
}  # fmt: skip
# A published model of each architecture: gives the choices that are in the code of `transformers`, not in config.json.
_FAMILY = {
    "gpt2": "gpt2",
    "llama": "llama2_7b",
    "mistral": "mistral_7b",
    "qwen2": "qwen2_7b",
    "qwen3": "qwen3_8b",
    "gemma2": "gemma2_9b",
    "olmo2": "olmo2_7b",
}

# Fields that `transformers` fixes per architecture, so that a model with another value cannot be exported as it.
_FIXED_CHOICES = (
    "norm", "norm_position", "norm_unit_offset", "position", "mlp", "qk_norm", "qk_norm_joint", "scale_embeddings",
    "qkv_bias", "output_bias", "mlp_bias",
)  # fmt: skip


def to_section(config: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """Returns (architecture, `config.model`) of a config.json.

    Raises:
        UserError: an unknown architecture, a missing field, or a choice that `ModelConfig` does not support.
    """
    architecture = config.get("model_type")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise UserError(
            f"{where}: model_type={architecture!r} is not supported; expected one of {', '.join(ARCHITECTURES)}"
        )
    section = default.model().to_dict() | models.architecture(_FAMILY[architecture])
    try:
        section |= _gpt2_section(config) if architecture == "gpt2" else _llama_section(architecture, config)
    except KeyError as missing:
        raise UserError(f"{where}: {missing.args[0]!r} is missing; expected a config.json of {architecture}") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"{where}: a field has the wrong type ({error}); expected a config.json of {architecture}"
        ) from None
    name = config.get("hidden_activation") or config.get("hidden_act") or config.get("activation_function") or "silu"
    activation = _ACTIVATIONS.get(name) if isinstance(name, str) else None
    if activation is None or (activation == "silu") != section["mlp"].startswith("silu"):
        raise UserError(
            f"{where}: the activation {name!r} is not supported; expected {_activation_of(section)} for {architecture}"
        )
    return architecture, section


def _activation_of(section: Mapping[str, Any]) -> str:
    return "silu" if section["mlp"].startswith("silu") else "gelu_pytorch_tanh, gelu_new"


def _gpt2_section(config: Mapping[str, Any]) -> dict[str, Any]:
    width = config["n_embd"]
    return {
        "vocab_size": config["vocab_size"],
        "embed_dim": width,
        "num_layers": config["n_layer"],
        "num_heads": config["n_head"],
        "num_kv_heads": config["n_head"],
        "head_dim": width // config["n_head"],
        "mlp_dim": config.get("n_inner") or 4 * width,
        "context_length": config["n_positions"],
        "norm_epsilon": config["layer_norm_epsilon"],
        "tie_embeddings": config.get("tie_word_embeddings", True),
    }


def _llama_section(architecture: str, config: Mapping[str, Any]) -> dict[str, Any]:
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    bias = bool(config.get("attention_bias", False))
    tied = config.get("tie_word_embeddings", architecture == "gemma2")
    section = {
        "vocab_size": config["vocab_size"],
        "embed_dim": config["hidden_size"],
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": head_dim,
        "mlp_dim": config["intermediate_size"],
        "context_length": config["max_position_embeddings"],
        "norm_epsilon": config["rms_norm_eps"],
        "tie_embeddings": bool(tied),
        "qkv_bias": architecture == "qwen2" or bias,
        "output_bias": architecture != "qwen2" and bias,
        "mlp_bias": bool(config.get("mlp_bias", False)),
        "sliding_window": _windows(architecture, config, layers),
        **_rope(config),
    }
    if architecture == "gemma2":
        section |= {
            "query_scale": float(config["query_pre_attn_scalar"]) ** -0.5,
            "attention_softcap": float(config.get("attn_logit_softcapping") or 0.0),
            "logit_softcap": float(config.get("final_logit_softcapping") or 0.0),
        }
    return section


def _windows(architecture: str, config: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    window = config.get("sliding_window") or 0
    kinds = config.get("layer_types")
    if kinds:
        return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    if architecture == "gemma2":
        return (window, 0)
    if architecture in ("qwen2", "qwen3"):
        first = config.get("max_window_layers", layers) if config.get("use_sliding_window") else layers
        return tuple(window if i >= first else 0 for i in range(layers))
    return (window,) if architecture == "mistral" else (0,)


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    # transformers 5 moved rope_theta and rope_scaling into rope_parameters.
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    found: dict[str, Any] = {"rope_theta": float(scaling.get("rope_theta") or config.get("rope_theta") or 10000.0)}
    if kind == "llama3":
        return found | {
            "rope_scaling": "llama3",
            "rope_scaling_factor": float(scaling["factor"]),
            "rope_low_frequency_factor": float(scaling["low_freq_factor"]),
            "rope_high_frequency_factor": float(scaling["high_freq_factor"]),
            "rope_original_context": scaling["original_max_position_embeddings"],
        }
    if kind != "default":
        raise UserError(f"config.json: rope_type={kind!r} is not supported; expected default or llama3")
    return found | {"rope_scaling": "none"}


def architecture_of(config: ModelConfig) -> str:
    """Returns the Hugging Face architecture that computes the same function as `config`.

    Raises:
        UserError: no architecture does.
    """
    sections = {name: models.architecture(_FAMILY[name]) for name in ARCHITECTURES}
    closest: tuple[int, str, list[str]] = (99, "", [])
    for name in ARCHITECTURES:
        wrong = [
            f"{field}={getattr(config, field)!r}"
            for field in _FIXED_CHOICES
            if getattr(config, field) != sections[name][field]
            and not (name == "llama" and field == "mlp_bias")
            and not (
                name in ("llama", "qwen3")
                and field in ("qkv_bias", "output_bias")
                and config.qkv_bias == config.output_bias
            )
        ]
        wrong += [
            f"{field}={getattr(config, field)}"
            for field in ("logit_softcap", "attention_softcap", "query_scale")
            if getattr(config, field) and name != "gemma2"
        ]
        # transformers accepts a whole number only.
        if name == "gemma2" and abs(_query_scalar(config) - round(_query_scalar(config))) > 1e-6:
            wrong.append(f"query_scale={config.query_scale}")
        if any(config.windows) and name not in ("mistral", "qwen2", "qwen3", "gemma2"):
            wrong.append(f"sliding_window={config.sliding_window}")
        if name == "mistral" and len(set(config.windows)) > 1:
            wrong.append(f"sliding_window={config.sliding_window}")
        if name == "gpt2" and config.embed_dim != config.num_heads * config.head_dim:
            wrong.append(f"head_dim={config.head_dim}")
        if not wrong:
            return name
        closest = min(closest, (len(wrong), name, wrong))
    raise UserError(
        f"no Hugging Face architecture can express this model; the closest, {closest[1]}, does not support "
        f"{', '.join(closest[2])}; expected a model of {', '.join(ARCHITECTURES)}"
    )


def to_config(architecture: str, c: ModelConfig, dtype: str) -> dict[str, Any]:
    """Returns the config.json of a model, without its class and the ids of special tokens."""
    common = {
        "model_type": architecture,
        "vocab_size": c.vocab_size,
        "tie_word_embeddings": c.tie_embeddings,
        "torch_dtype": dtype,
    }
    if architecture == "gpt2":
        return common | {
            "n_embd": c.embed_dim,
            "n_layer": c.num_layers,
            "n_head": c.num_heads,
            "n_inner": c.mlp_dim,
            "n_positions": c.context_length,
            "layer_norm_epsilon": c.norm_epsilon,
            "activation_function": "gelu_new",
        }
    return common | _llama_config(architecture, c)


def _query_scalar(c: ModelConfig) -> float:
    """Returns Gemma's `query_pre_attn_scalar`; attention scores are divided by its square root."""
    return (c.query_scale or c.head_dim**-0.5) ** -2


def class_prefix(architecture: str) -> str:
    """Returns the prefix of the class names in `transformers`, e.g. "Llama"."""
    return _CLASS_NAMES[architecture]


def _llama_config(architecture: str, c: ModelConfig) -> dict[str, Any]:
    activation = "gelu_pytorch_tanh" if c.mlp == "gelu_gated" else "silu"
    found = {
        "hidden_size": c.embed_dim,
        "intermediate_size": c.mlp_dim,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "max_position_embeddings": c.context_length,
        "rms_norm_eps": c.norm_epsilon,
        "rope_theta": c.rope_theta,
        "hidden_act": activation,
        "attention_bias": c.output_bias,
        "mlp_bias": c.mlp_bias,
    }
    if c.rope_scaling == "llama3":
        found["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": c.rope_scaling_factor,
            "low_freq_factor": c.rope_low_frequency_factor,
            "high_freq_factor": c.rope_high_frequency_factor,
            "original_max_position_embeddings": c.rope_original_context,
        }
    window = max(c.windows)
    if architecture != "llama" and architecture != "olmo2":
        found["sliding_window"] = window or None
    if architecture in ("qwen2", "qwen3"):
        found["use_sliding_window"] = bool(window)
    if architecture in ("qwen2", "qwen3", "gemma2") and (window or architecture == "gemma2"):
        found["layer_types"] = ["sliding_attention" if w else "full_attention" for w in c.windows]
    if architecture == "gemma2":
        found |= {
            "hidden_activation": activation,
            "query_pre_attn_scalar": round(_query_scalar(c)),
            "attn_logit_softcapping": c.attention_softcap or None,
            "final_logit_softcapping": c.logit_softcap or None,
        }
    return found
