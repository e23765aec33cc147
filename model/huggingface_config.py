"""Hugging Face's config.json <-> `config.model`: the names and meanings of each architecture's fields."""

from collections.abc import Mapping
from typing import Any

from configs import default, models
from configs.errors import UserError
from model.config import ModelConfig
from model.huggingface import ARCHITECTURES
from model.huggingface_fields import fields_of

_ACTIVATION_FIELDS = {"gpt2": "activation_function", "gemma2": "hidden_activation"}
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
    fields = fields_of(architecture, config, where)
    section = default.model().to_dict() | models.architecture(_FAMILY[architecture])
    try:
        section |= _gpt2_section(fields) if architecture == "gpt2" else _llama_section(architecture, fields)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"{where}: a field has the wrong type ({error!r:.80}); expected a config.json of {architecture}"
        ) from None
    name = fields[_ACTIVATION_FIELDS.get(architecture, "hidden_act")]
    activation = _ACTIVATIONS.get(name) if isinstance(name, str) else None
    if activation is None or (activation == "silu") != section["mlp"].startswith("silu"):
        raise UserError(
            f"{where}: the activation {name!r} is not supported; expected {_activation_of(section)} for {architecture}"
        )
    return architecture, section


def _activation_of(section: Mapping[str, Any]) -> str:
    return "silu" if section["mlp"].startswith("silu") else "gelu_pytorch_tanh, gelu_new"


def _gpt2_section(fields: Mapping[str, Any]) -> dict[str, Any]:
    width = fields["n_embd"]
    return {
        "vocab_size": fields["vocab_size"],
        "embed_dim": width,
        "num_layers": fields["n_layer"],
        "num_heads": fields["n_head"],
        "num_kv_heads": fields["n_head"],
        "head_dim": width // fields["n_head"],
        "mlp_dim": fields["n_inner"] or 4 * width,
        "context_length": fields["n_positions"],
        "norm_epsilon": fields["layer_norm_epsilon"],
        "tie_embeddings": bool(fields["tie_word_embeddings"]),
    }


def _llama_section(architecture: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    heads, layers = fields["num_attention_heads"], fields["num_hidden_layers"]
    bias = bool(fields.get("attention_bias"))
    section = {
        "vocab_size": fields["vocab_size"],
        "embed_dim": fields["hidden_size"],
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": fields["num_key_value_heads"] or heads,
        "head_dim": fields["head_dim"] or fields["hidden_size"] // heads,
        "mlp_dim": fields["intermediate_size"],
        "context_length": fields["max_position_embeddings"],
        "norm_epsilon": fields["rms_norm_eps"],
        "tie_embeddings": bool(fields["tie_word_embeddings"]),
        "qkv_bias": architecture == "qwen2" or bias,
        "output_bias": bias,
        "mlp_bias": bool(fields.get("mlp_bias")),
        "sliding_window": _windows(architecture, fields, layers),
        **_rope(fields),
    }
    if architecture == "gemma2":
        section |= {
            "query_scale": float(fields["query_pre_attn_scalar"]) ** -0.5,
            "attention_softcap": float(fields["attn_logit_softcapping"] or 0.0),
            "logit_softcap": float(fields["final_logit_softcapping"] or 0.0),
        }
    return section


def _windows(architecture: str, fields: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """Returns `config.model.sliding_window`: the window of each layer, or a pattern of them."""
    if "sliding_window" not in fields:
        return (0,)
    window = fields["sliding_window"] or 0
    if not fields.get("use_sliding_window", True):
        window = 0
    kinds = fields.get("layer_types")
    if kinds:
        unknown = set(kinds) - {"full_attention", "sliding_attention"}
        if unknown or len(kinds) != layers or (window == 0 and "sliding_attention" in kinds):
            raise UserError(
                f"layer_types={kinds!r:.80}; expected 'full_attention' or, with a sliding_window, 'sliding_attention' "
                f"for each of {layers} layers"
            )
        return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    if architecture == "gemma2":
        return (window, 0)
    if architecture in ("qwen2", "qwen3"):
        first = fields["max_window_layers"]
        return tuple(window if i >= first else 0 for i in range(layers))
    return (window,)


_ROPE_FIELDS = {"rope_theta", "rope_type", "type"}
_LLAMA3_FIELDS = {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}


def _rope(fields: Mapping[str, Any]) -> dict[str, Any]:
    # transformers 5 moved rope_theta and rope_scaling into rope_parameters; it reads rope_scaling first.
    name = "rope_scaling" if fields["rope_scaling"] else "rope_parameters"
    scaling = dict(fields[name] or {})
    if scaling.get("partial_rotary_factor") == 1.0:
        del scaling["partial_rotary_factor"]
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in ("default", "llama3"):
        raise UserError(f"rope_type={kind!r} is not supported; expected default or llama3")
    unknown = set(scaling) - _ROPE_FIELDS - (_LLAMA3_FIELDS if kind == "llama3" else set())
    if unknown:
        first = min(unknown)
        raise UserError(f"{name}.{first}={scaling[first]!r:.60} is not supported with rope_type={kind!r}")
    found: dict[str, Any] = {"rope_theta": float(scaling.get("rope_theta") or fields["rope_theta"] or 10000.0)}
    if kind == "default":
        return found | {"rope_scaling": "none"}
    missing = sorted(_LLAMA3_FIELDS - set(scaling))
    if missing:
        raise UserError(f"{name}.{missing[0]} is missing; expected {', '.join(sorted(_LLAMA3_FIELDS))}")
    return found | {
        "rope_scaling": "llama3",
        "rope_scaling_factor": float(scaling["factor"]),
        "rope_low_frequency_factor": float(scaling["low_freq_factor"]),
        "rope_high_frequency_factor": float(scaling["high_freq_factor"]),
        "rope_original_context": scaling["original_max_position_embeddings"],
    }


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
