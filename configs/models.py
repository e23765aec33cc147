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


# The fields of experts, in models without any.
_DENSE: Fields = {
    "num_experts": 0,
    "experts_per_token": 2,
    "expert_dim": 0,
    "shared_expert_dim": 0,
    "dense_layers": 0,
    "expert_every": 1,
    "router": "softmax",
    "router_renormalize": True,
    "router_bias": False,
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

# Qwen2.5: arXiv:2412.15115, table 1; config.json of Qwen/Qwen2.5-{0.5B,...,72B}.
_QWEN2_5: Fields = _QWEN2 | {"context_length": 32768}
_QWEN2_5_LARGE: Fields = {"vocab_size": 152064, "context_length": 131072, "norm_epsilon": 1e-6}

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

# OLMo 3: arXiv:2512.13961; config.json of allenai/Olmo-3-{1025-7B,1125-32B}.
_OLMO3: Fields = _OLMO2 | {
    "vocab_size": 100278,
    "context_length": 65536,
    "rope_scaling": "yarn",
    "rope_scaling_factor": 8.0,
    "rope_attention_factor": 1.2079441541679836,
    "sliding_window": (4096, 4096, 4096, 0),
    "rope_layers": ("local", "local", "local", "rope"),
    "rope_local_theta": 500000.0,
}

# Gemma 3: arXiv:2503.19786, tables 1 and 2; config.json of google/gemma-3-{270m,1b-pt} and the text part of
# google/gemma-3-{4b,12b,27b}-pt.
_GEMMA3: Fields = _GEMMA2 | {
    "vocab_size": 262144,
    "context_length": 32768,
    "rope_theta": 1000000.0,
    "qk_norm": True,
    "logit_softcap": 0.0,
    "attention_softcap": 0.0,
    "sliding_window": (512, 512, 512, 512, 512, 0),
    "rope_layers": ("local", "local", "local", "local", "local", "rope"),
    "rope_local_theta": 10000.0,
}
_GEMMA3_LONG: Fields = _GEMMA3 | {
    "vocab_size": 262208,
    "context_length": 131072,
    "rope_scaling": "linear",
    "rope_scaling_factor": 8.0,
    "sliding_window": (1024, 1024, 1024, 1024, 1024, 0),
}

# SmolLM3: config.json of HuggingFaceTB/SmolLM3-3B. Every fourth layer has no rotary positions.
_SMOLLM3: Fields = _LLAMA | {
    "vocab_size": 128256,
    "context_length": 65536,
    "norm_epsilon": 1e-6,
    "rope_theta": 5000000.0,
    "rope_layers": ("rope", "rope", "rope", "none"),
    "tie_embeddings": True,
}

# Phi-3 and Phi-4: arXiv:2404.14219, section 2, and arXiv:2412.08905, section 3; config.json of
# microsoft/Phi-3-{mini,medium}-4k-instruct, microsoft/phi-4.
_PHI3: Fields = _LLAMA | {"vocab_size": 32064, "context_length": 4096, "sliding_window": (2047,)}

# Granite 3 and 4: config.json of ibm-granite/granite-3.0-{2b,8b}-instruct, ibm-granite/granite-4.0-micro.
_GRANITE: Fields = _LLAMA | {
    "vocab_size": 49155,
    "tie_embeddings": True,
    "embedding_scale": 12.0,
    "residual_scale": 0.22,
}

# Command R: config.json of CohereForAI/c4ai-command-{r-v01,r7b-12-2024}.
_COHERE: Fields = _LLAMA | {
    "vocab_size": 256000,
    "context_length": 131072,
    "norm": "layernorm",
    "norm_bias": False,
    "parallel": "one_norm",
    "rope_theta": 8000000.0,
    "logit_scale": 0.0625,
    "tie_embeddings": True,
}

# StableLM: config.json of stabilityai/stablelm-{3b-4e1t,2-1_6b}.
_STABLELM: Fields = _LLAMA | {"vocab_size": 50304, "norm": "layernorm", "rope_fraction": 0.25}

# Pythia: arXiv:2304.01373, table 1; config.json of EleutherAI/pythia-{160m,...,12b}.
_PYTHIA: Fields = _LLAMA | {
    "vocab_size": 50304,
    "context_length": 2048,
    "norm": "layernorm",
    "parallel": "two_norms",
    "rope_fraction": 0.25,
    "mlp": "gelu_exact",
    "qkv_bias": True,
    "output_bias": True,
    "mlp_bias": True,
}

# StarCoder 2: arXiv:2402.19173, table 6; config.json of bigcode/starcoder2-{3b,7b,15b}.
_STARCODER2: Fields = _LLAMA | {
    "vocab_size": 49152,
    "context_length": 16384,
    "norm": "layernorm",
    "mlp": "gelu",
    "qkv_bias": True,
    "output_bias": True,
    "mlp_bias": True,
    "tie_embeddings": True,
    "sliding_window": (4096,),
}

# Falcon: arXiv:2311.16867, table 16; config.json of tiiuae/falcon-{7b,40b}.
_FALCON: Fields = _LLAMA | {
    "vocab_size": 65024,
    "head_dim": 64,
    "context_length": 2048,
    "norm": "layernorm",
    "parallel": "one_norm",
    "mlp": "gelu_exact",
    "tie_embeddings": True,
}

# Mixtral: arXiv:2401.04088, table 1; config.json of mistralai/Mixtral-8x7B-v0.1.
_MIXTRAL: Fields = _LLAMA | {
    "context_length": 32768,
    "rope_theta": 1000000.0,
    "num_experts": 8,
    "experts_per_token": 2,
}

# OLMoE: arXiv:2409.02060, table 10; config.json of allenai/OLMoE-1B-7B-0924.
_OLMOE: Fields = _LLAMA | {
    "vocab_size": 50304,
    "qk_norm": True,
    "qk_norm_joint": True,
    "num_experts": 64,
    "experts_per_token": 8,
    "router_renormalize": False,
}

# Qwen3 mixtures of experts: arXiv:2505.09388, table 2; config.json of Qwen/Qwen3-30B-A3B.
_QWEN3_MOE: Fields = _QWEN3 | {
    "num_experts": 128,
    "experts_per_token": 8,
    "expert_dim": 768,
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
    "qwen2_5_0_5b": _QWEN2_5 | _shape(896, 24, 14, 2, 4864) | {"head_dim": 64, "tie_embeddings": True},
    "qwen2_5_1_5b": _QWEN2_5 | _shape(1536, 28, 12, 2, 8960) | {"tie_embeddings": True},
    "qwen2_5_3b": _QWEN2_5 | _shape(2048, 36, 16, 2, 11008) | {"tie_embeddings": True},
    "qwen2_5_7b": _QWEN2_5 | _shape(3584, 28, 28, 4, 18944) | _QWEN2_5_LARGE,
    "qwen2_5_14b": _QWEN2_5 | _shape(5120, 48, 40, 8, 13824) | _QWEN2_5_LARGE,
    "qwen2_5_32b": _QWEN2_5 | _shape(5120, 64, 40, 8, 27648) | _QWEN2_5_LARGE,
    "qwen2_5_72b": _QWEN2_5 | _shape(8192, 80, 64, 8, 29568) | _QWEN2_5_LARGE,
    "qwen3_0_6b": _QWEN3 | _shape(1024, 28, 16, 8, 3072) | {"tie_embeddings": True},
    "qwen3_1_7b": _QWEN3 | _shape(2048, 28, 16, 8, 6144) | {"tie_embeddings": True},
    "qwen3_4b": _QWEN3 | _shape(2560, 36, 32, 8, 9728) | {"tie_embeddings": True},
    "qwen3_8b": _QWEN3 | _shape(4096, 36, 32, 8, 12288),
    "qwen3_14b": _QWEN3 | _shape(5120, 40, 40, 8, 17408),
    "qwen3_32b": _QWEN3 | _shape(5120, 64, 64, 8, 25600),
    "smollm2_135m": _SMOLLM2 | _shape(576, 30, 9, 3, 1536),
    "smollm2_360m": _SMOLLM2 | _shape(960, 32, 15, 5, 2560),
    "smollm2_1_7b": _SMOLLM2 | _shape(2048, 24, 32, 32, 8192) | {"rope_theta": 130000.0},
    "olmo2_1b": _OLMO2 | _shape(2048, 16, 16, 16, 8192),
    "olmo2_7b": _OLMO2 | _shape(4096, 32, 32, 32, 11008),
    "olmo3_7b": _OLMO3 | _shape(4096, 32, 32, 32, 11008),
    "olmo3_32b": _OLMO3 | _shape(5120, 64, 40, 8, 27648),
    "gemma2_2b": _GEMMA2 | _shape(2304, 26, 8, 4, 9216),
    "gemma2_9b": _GEMMA2 | _shape(3584, 42, 16, 8, 14336),
    "gemma3_270m": _GEMMA3 | _shape(640, 18, 4, 1, 2048),
    "gemma3_1b": _GEMMA3 | _shape(1152, 26, 4, 1, 6912),
    "gemma3_4b": _GEMMA3_LONG | _shape(2560, 34, 8, 4, 10240),
    "gemma3_12b": _GEMMA3_LONG | _shape(3840, 48, 16, 8, 15360),
    "gemma3_27b": _GEMMA3_LONG | _shape(5376, 62, 32, 16, 21504) | {"head_dim": 128, "query_scale": 168**-0.5},
    "smollm3_3b": _SMOLLM3 | _shape(2048, 36, 16, 4, 11008),
    "phi3_mini_4k": _PHI3 | _shape(3072, 32, 32, 32, 8192) | {"head_dim": 96},
    "phi3_medium_4k": _PHI3 | _shape(5120, 40, 40, 10, 17920),
    "phi4_14b": _PHI3
    | _shape(5120, 40, 40, 10, 17920)
    | {"vocab_size": 100352, "context_length": 16384, "rope_theta": 250000.0, "sliding_window": (0,)},
    "granite3_2b": _GRANITE
    | _shape(2048, 40, 32, 8, 8192)
    | {"head_dim": 64, "query_scale": 0.015625, "logit_scale": 1 / 8},
    "granite3_8b": _GRANITE | _shape(4096, 40, 32, 8, 12800) | {"query_scale": 0.0078125, "logit_scale": 1 / 16},
    "granite4_micro": _GRANITE
    | _shape(2560, 40, 40, 8, 8192)
    | {"vocab_size": 100352, "head_dim": 64, "context_length": 131072, "rope_theta": 10000000.0}
    | {"query_scale": 0.015625, "logit_scale": 1 / 10},
    "command_r_35b": _COHERE | _shape(8192, 40, 64, 64, 22528),
    "command_r7b": _COHERE
    | _shape(4096, 32, 32, 8, 14336)
    | {"context_length": 132096, "rope_theta": 50000.0, "logit_scale": 0.25}
    | {"sliding_window": (4096, 4096, 4096, 0), "rope_layers": ("rope", "rope", "rope", "none")},
    "stablelm_3b": _STABLELM | _shape(2560, 32, 32, 32, 6912) | {"head_dim": 80},
    "stablelm2_1_6b": _STABLELM
    | _shape(2048, 24, 32, 32, 5632)
    | {"vocab_size": 100352, "head_dim": 64, "qkv_bias": True},
    "pythia_160m": _PYTHIA | _shape(768, 12, 12, 12, 3072) | {"head_dim": 64},
    "pythia_410m": _PYTHIA | _shape(1024, 24, 16, 16, 4096) | {"head_dim": 64},
    "pythia_1b": _PYTHIA | _shape(2048, 16, 8, 8, 8192) | {"head_dim": 256},
    "pythia_1_4b": _PYTHIA | _shape(2048, 24, 16, 16, 8192),
    "pythia_2_8b": _PYTHIA | _shape(2560, 32, 32, 32, 10240) | {"head_dim": 80},
    "pythia_6_9b": _PYTHIA | _shape(4096, 32, 32, 32, 16384) | {"vocab_size": 50432},
    "pythia_12b": _PYTHIA | _shape(5120, 36, 40, 40, 20480) | {"vocab_size": 50688},
    "starcoder2_3b": _STARCODER2 | _shape(3072, 30, 24, 2, 12288) | {"rope_theta": 999999.4420358813},
    "starcoder2_7b": _STARCODER2 | _shape(4608, 32, 36, 4, 18432) | {"rope_theta": 1000000.0},
    "starcoder2_15b": _STARCODER2 | _shape(6144, 40, 48, 4, 24576) | {"rope_theta": 100000.0, "tie_embeddings": False},
    "falcon_7b": _FALCON | _shape(4544, 32, 71, 1, 18176),
    "falcon_40b": _FALCON | _shape(8192, 60, 128, 8, 32768) | {"parallel": "two_norms"},
    "mixtral_8x7b": _MIXTRAL | _shape(4096, 32, 32, 8, 14336),
    "olmoe_1b_7b": _OLMOE | _shape(2048, 16, 16, 16, 1024),
    "qwen3_30b_a3b": _QWEN3_MOE | _shape(2048, 48, 32, 4, 6144),
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
    return _DENSE | _ARCHITECTURES[name]
