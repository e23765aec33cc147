"""Published architectures by name; each family is written as its differences from Llama 2.

`config.model.update(architecture("gpt2"))` turns any config into that architecture. No weights are loaded.
"""

from configs.errors import UserError, did_you_mean

Fields = dict[str, object]


def _shape(embed_dim: int, num_layers: int, num_heads: int, num_kv_heads: int, mlp_dim: int) -> Fields:
    """Returns the five sizes that differ between the models of a family."""
    return {
        "embed_dim": embed_dim,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "mlp_dim": mlp_dim,
    }


# Llama 2: arXiv:2307.09288, table 1; config.json of meta-llama/Llama-2-{7b,13b,70b}-hf.
# Sets every field that changes what the network computes, so that no default of the caller's config remains.
_LLAMA: Fields = {
    "vocab_size": 32000,
    "head_dim": 128,
    "context_length": 4096,
    "norm": "rmsnorm",
    "norm_position": "pre",
    "norm_epsilon": 1e-5,
    "norm_unit_offset": False,
    "norm_bias": True,
    "parallel": "none",
    "position": "rope",
    "rope_theta": 10000.0,
    "rope_fraction": 1.0,
    "rope_scaling": "none",
    "rope_scaling_factor": 1.0,
    "rope_original_context": 8192,
    "rope_low_frequency_factor": 1.0,
    "rope_high_frequency_factor": 4.0,
    "rope_beta_fast": 32.0,
    "rope_beta_slow": 1.0,
    "rope_round_range": True,
    "rope_attention_factor": 0.0,
    "rope_short_factors": (),
    "rope_long_factors": (),
    "rope_layers": ("rope",),
    "rope_local_theta": 10000.0,
    "mlp": "silu_gated",
    "qk_norm": False,
    "qk_norm_joint": False,
    "qkv_bias": False,
    "output_bias": False,
    "mlp_bias": False,
    "tie_embeddings": False,
    "scale_embeddings": False,
    "embedding_scale": 1.0,
    "residual_scale": 1.0,
    "logit_scale": 1.0,
    "logit_softcap": 0.0,
    "attention_softcap": 0.0,
    "query_scale": 0.0,
    "sliding_window": (0,),
}

# Llama 3 and 3.2: arXiv:2407.21783, table 3; config.json of meta-llama/Meta-Llama-3-{8B,70B}, Llama-3.2-1B.
_LLAMA3: Fields = _LLAMA | {"vocab_size": 128256, "context_length": 8192, "rope_theta": 500000.0}
_LLAMA3_2: Fields = _LLAMA3 | {
    "head_dim": 64,
    "context_length": 131072,
    "rope_scaling": "llama3",
    "rope_scaling_factor": 32.0,
    "tie_embeddings": True,
}

# GPT-2: Radford et al. 2019, table 2; config.json of openai-community/gpt2{,-medium,-large,-xl}.
_GPT2: Fields = _LLAMA | {
    "vocab_size": 50257,
    "head_dim": 64,
    "context_length": 1024,
    "norm": "layernorm",
    "position": "learned",
    "mlp": "gelu",
    "qkv_bias": True,
    "output_bias": True,
    "mlp_bias": True,
    "tie_embeddings": True,
}

# GPT-3: arXiv:2005.14165, table 2.1. In the original, every other layer uses banded attention of an unpublished width;
# here all layers use full attention, with the same parameters.
_GPT3: Fields = _GPT2 | {"head_dim": 128, "context_length": 2048}

# Mistral 7B v0.1: arXiv:2310.06825, table 1; config.json of mistralai/Mistral-7B-v0.1.
_MISTRAL: Fields = _LLAMA | {"context_length": 32768, "sliding_window": (4096,)}

# Qwen2: arXiv:2407.10671, table 1; config.json of Qwen/Qwen2-{0.5B,7B}.
_QWEN2: Fields = _LLAMA | {
    "vocab_size": 151936,
    "context_length": 131072,
    "norm_epsilon": 1e-6,
    "rope_theta": 1000000.0,
    "qkv_bias": True,
}

# Qwen3: arXiv:2505.09388, table 1; config.json of Qwen/Qwen3-{0.6B,8B}.
_QWEN3: Fields = _QWEN2 | {"context_length": 40960, "qk_norm": True, "qkv_bias": False}

# SmolLM2: arXiv:2502.02737; config.json of HuggingFaceTB/SmolLM2-{135M,360M,1.7B}.
_SMOLLM2: Fields = _LLAMA | {
    "vocab_size": 49152,
    "head_dim": 64,
    "context_length": 8192,
    "rope_theta": 100000.0,
    "tie_embeddings": True,
}

# Gemma 2: arXiv:2408.00118, table 1 and section 2; config.json of google/gemma-2-{2b,9b}.
_GEMMA2: Fields = _LLAMA | {
    "vocab_size": 256000,
    "head_dim": 256,
    "context_length": 8192,
    "norm_position": "both",
    "norm_epsilon": 1e-6,
    "norm_unit_offset": True,
    "mlp": "gelu_gated",
    "tie_embeddings": True,
    "scale_embeddings": True,
    "logit_softcap": 30.0,
    "attention_softcap": 50.0,
    "query_scale": 256**-0.5,
    "sliding_window": (4096, 0),
}

# OLMo 2: arXiv:2501.00656, table 1; config.json of allenai/OLMo-2-{0425-1B,1124-7B}.
_OLMO2: Fields = _LLAMA | {
    "vocab_size": 100352,
    "norm_position": "post",
    "norm_epsilon": 1e-6,
    "rope_theta": 500000.0,
    "qk_norm": True,
    "qk_norm_joint": True,
}

# _shape: embed_dim, num_layers, num_heads, num_kv_heads, mlp_dim
_ARCHITECTURES: dict[str, Fields] = {
    "gpt2": _GPT2 | _shape(768, 12, 12, 12, 3072),
    "gpt2_medium": _GPT2 | _shape(1024, 24, 16, 16, 4096),
    "gpt2_large": _GPT2 | _shape(1280, 36, 20, 20, 5120),
    "gpt2_xl": _GPT2 | _shape(1600, 48, 25, 25, 6400),
    "gpt3_175b": _GPT3 | _shape(12288, 96, 96, 96, 49152),
    "llama2_7b": _LLAMA | _shape(4096, 32, 32, 32, 11008),
    "llama2_13b": _LLAMA | _shape(5120, 40, 40, 40, 13824),
    "llama2_70b": _LLAMA | _shape(8192, 80, 64, 8, 28672),
    "llama3_8b": _LLAMA3 | _shape(4096, 32, 32, 8, 14336),
    "llama3_70b": _LLAMA3 | _shape(8192, 80, 64, 8, 28672),
    "llama3_2_1b": _LLAMA3_2 | _shape(2048, 16, 32, 8, 8192),
    "mistral_7b": _MISTRAL | _shape(4096, 32, 32, 8, 14336),
    "qwen2_0_5b": _QWEN2 | _shape(896, 24, 14, 2, 4864) | {"head_dim": 64, "tie_embeddings": True},
    "qwen2_7b": _QWEN2 | _shape(3584, 28, 28, 4, 18944) | {"vocab_size": 152064},
    "qwen3_0_6b": _QWEN3 | _shape(1024, 28, 16, 8, 3072) | {"tie_embeddings": True},
    "qwen3_8b": _QWEN3 | _shape(4096, 36, 32, 8, 12288),
    "smollm2_135m": _SMOLLM2 | _shape(576, 30, 9, 3, 1536),
    "smollm2_360m": _SMOLLM2 | _shape(960, 32, 15, 5, 2560),
    "smollm2_1_7b": _SMOLLM2 | _shape(2048, 24, 32, 32, 8192) | {"rope_theta": 130000.0},
    "olmo2_1b": _OLMO2 | _shape(2048, 16, 16, 16, 8192),
    "olmo2_7b": _OLMO2 | _shape(4096, 32, 32, 32, 11008),
    "gemma2_2b": _GEMMA2 | _shape(2304, 26, 8, 4, 9216),
    "gemma2_9b": _GEMMA2 | _shape(3584, 42, 16, 8, 14336),
}


def architecture(name: str) -> dict[str, object]:
    """Returns the fields of `config.model` that define a published architecture, as a new dict.

    Args:
        name: a key of `_ARCHITECTURES`, e.g. "gpt2" or "llama3_8b".

    Raises:
        UserError: the architecture is unknown.
    """
    if name not in _ARCHITECTURES:
        hint = did_you_mean(name, _ARCHITECTURES)
        raise UserError(f"unknown architecture {name!r}{hint}; expected one of {', '.join(_ARCHITECTURES)}")
    return dict(_ARCHITECTURES[name])
