"""The families of models that `transformers` and Rootstock both compute: one table each for the fields of config.json.

A family is what its class in `transformers` computes: the choices that its code fixes, the fields that it reads with
their defaults there, and its weights (`tables`).
"""

import dataclasses
from collections.abc import Mapping

from configs.errors import UserError
from model.config import ModelConfig
from model.huggingface import experts, layers, tables
from model.huggingface.falcon import FALCON
from model.huggingface.fields import Family, Field
from model.huggingface.rotary import Spelling, rotary, rotary_per_type
from model.huggingface.weights import Row


def _cap(cap: float | None) -> float:
    if cap is None:
        return 0.0
    if not cap > 0:
        raise UserError(f"a soft cap of {cap!r} is not supported; expected a number greater than 0, or null")
    return float(cap)


def _query_scale(scale: float) -> float:
    if scale == 0:
        raise UserError("attention_multiplier=0 is not supported; expected another number")
    return float(scale)


# What many families have in common.
_SILU = {"silu": "silu_gated", "swish": "silu_gated", "gelu_pytorch_tanh": "gelu_gated", "gelu_new": "gelu_gated"}
_TANH = {"gelu_pytorch_tanh": "gelu_gated", "gelu_new": "gelu_gated"}
_PLAIN = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_exact"}
_KV_HEADS = Field("num_kv_heads", None, read=lambda n: n or 0)
_HEAD_DIM = Field("head_dim", None, read=lambda n: n or 0)
_TIED, _UNTIED = Field("tie_embeddings", True), Field("tie_embeddings", False)
_ALL_BIAS = "qkv_bias output_bias"
_ATTENTION_CAP = Field("attention_softcap", 50.0, read=_cap, write=lambda cap: cap or None)
_LOGIT_CAP = dataclasses.replace(_ATTENTION_CAP, ours="logit_softcap", default=30.0)
_SIZES = {
    "vocab_size": Field("vocab_size"),
    "hidden_size": Field("embed_dim"),
    "intermediate_size": Field("mlp_dim"),
    "num_hidden_layers": Field("num_layers"),
    "num_attention_heads": Field("num_heads"),
    "max_position_embeddings": Field("context_length"),
}
_LLAMA = _SIZES | {
    "num_key_value_heads": _KV_HEADS,
    "head_dim": _HEAD_DIM,
    "rms_norm_eps": Field("norm_epsilon", 1e-6),
    "hidden_act": Field("mlp", "silu", choices=_SILU),
    "tie_word_embeddings": _UNTIED,
}
_BIAS = {"attention_bias": Field(_ALL_BIAS, False)}
_GEMMA = (
    {name: field for name, field in _LLAMA.items() if name != "hidden_act"}
    | {
        "hidden_activation": Field("mlp", "gelu_pytorch_tanh", choices=_TANH),
        "head_dim": dataclasses.replace(_HEAD_DIM, default=256),
        "num_key_value_heads": dataclasses.replace(_KV_HEADS, default=4),
        "tie_word_embeddings": _TIED,
        "query_pre_attn_scalar": Field(
            "query_scale", 256, read=lambda scalar: float(scalar) ** -0.5, write=lambda scale: round(scale**-2)
        ),
    }
    | _BIAS
)
_MULTIPLIERS = {
    "embedding_multiplier": Field("embedding_scale", 1.0, read=float),
    "residual_multiplier": Field("residual_scale", 1.0, read=float),
    "attention_multiplier": Field("query_scale", 1.0, read=_query_scale),
    "logits_scaling": Field("logit_scale", 1.0, read=lambda divisor: 1.0 / divisor, write=lambda scale: 1.0 / scale),
}


def _kv_heads(default: int) -> dict[str, Field]:
    return {"num_key_value_heads": dataclasses.replace(_KV_HEADS, default=default)}


def _without(fields: Mapping[str, Field], *names: str) -> dict[str, Field]:
    return {name: field for name, field in fields.items() if name not in names}


_COHERE = (
    _without(_LLAMA, "rms_norm_eps")
    | _BIAS
    | {
        "layer_norm_eps": Field("norm_epsilon", 1e-5),
        "logit_scale": Field("logit_scale", 0.0625, read=float),
        "tie_word_embeddings": _TIED,
    }
)


# These change training or the form of the output: coefficient of a balance loss, noise, logits that are returned.
_ROUTER_TRAINING = frozenset({"output_router_logits", "router_aux_loss_coef", "router_jitter_noise"})
_RENORMALIZE = {"norm_topk_prob": Field("router_renormalize", False)}


# In the order in which an exported model is given the first family that computes the same function.
FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        "GPT2",
        "gpt2",
        {
            "vocab_size": Field("vocab_size"),
            "n_embd": Field("embed_dim"),
            "n_layer": Field("num_layers"),
            "n_head": Field("num_heads num_kv_heads"),
            "n_positions": Field("context_length"),
            "n_inner": Field("mlp_dim", None, read=lambda n: n or 0),
            "layer_norm_epsilon": Field("norm_epsilon", 1e-5),
            "activation_function": Field("mlp", "gelu_new", choices=_PLAIN),
            "tie_word_embeddings": _TIED,
        },
        tables.gpt2,
        (),
        fixed={"head_dim": 0},
        only={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
        causal_lm="LMHeadModel",
    ),
    "llama": Family(
        "Llama",
        "llama2_7b",
        _LLAMA | _BIAS | {"mlp_bias": Field("mlp_bias", False)},
        tables.llama,
        (rotary(Spelling()),),
    ),
    "mistral": Family(
        "Mistral", "mistral_7b", _LLAMA | _kv_heads(8), tables.llama, (rotary(Spelling()), layers.one_window(4096))
    ),
    "qwen2": Family("Qwen2", "qwen2_7b", _LLAMA | _kv_heads(32), tables.llama, (rotary(Spelling()), layers.QWEN)),
    "qwen3": Family(
        "Qwen3",
        "qwen3_8b",
        _LLAMA | _kv_heads(32) | _BIAS | {"head_dim": dataclasses.replace(_HEAD_DIM, default=128)},
        tables.llama,
        (rotary(Spelling()), layers.QWEN),
    ),
    "gemma2": Family(
        "Gemma2",
        "gemma2_9b",
        _GEMMA
        | {
            "attn_logit_softcapping": _ATTENTION_CAP,
            "final_logit_softcapping": _LOGIT_CAP,
        },
        tables.gemma,
        (rotary(Spelling()), layers.layer_types(4096, 2, layers.SAME)),
        harmless=frozenset({"hidden_act"}),  # transformers reads hidden_activation
    ),
    "gemma3_text": Family(
        "Gemma3",
        "gemma3_1b",
        _GEMMA | {"final_logit_softcapping": dataclasses.replace(_LOGIT_CAP, default=None)},
        tables.gemma,
        (
            rotary_per_type(1e6, 10000.0, "rope_local_base_freq"),
            layers.layer_types(4096, 6, layers.LOCAL, "sliding_window_pattern"),
        ),
        only={"attn_logit_softcapping": None},  # read by the class, but not applied
        harmless=frozenset({"_sliding_window_pattern"}),
        heads=("SequenceClassification",),
        head_prefix="Gemma3Text",
    ),
    "olmo2": Family(
        "Olmo2",
        "olmo2_7b",
        _LLAMA | _BIAS | {"rms_norm_eps": Field("norm_epsilon", 1e-5)},
        tables.olmo,
        (rotary(Spelling(theta=10000.0)),),
        heads=("SequenceClassification",),
    ),
    "olmo3": Family(
        "Olmo3",
        "olmo3_7b",
        _LLAMA | _BIAS | {"rms_norm_eps": Field("norm_epsilon", 1e-5)},
        tables.olmo,
        (rotary_per_type(500000.0, 500000.0), layers.layer_types(4096, 4, layers.LOCAL)),
        heads=("SequenceClassification",),
    ),
    "smollm3": Family(
        "SmolLM3",
        "smollm3_3b",
        _LLAMA | _kv_heads(4) | _BIAS | {"mlp_bias": Field("mlp_bias", False), "tie_word_embeddings": _TIED},
        tables.llama,
        (rotary(Spelling(theta=2000000.0)), layers.SMOLLM3),
        harmless=frozenset({"max_window_layers"}),  # of Qwen's class, which the first files came from
    ),
    "phi3": Family(
        "Phi3",
        "phi3_mini_4k",
        _LLAMA | {"rms_norm_eps": Field("norm_epsilon", 1e-5)},
        tables.phi3,
        (
            rotary(
                Spelling(
                    fraction=1.0,
                    scalings=("default", "longrope"),
                    synonyms={"su": "longrope", "yarn": "longrope"},
                    original=4096,
                )
            ),
            layers.one_window(None),
        ),
    ),
    "granite": Family(
        "Granite",
        "granite3_2b",
        _LLAMA | _BIAS | {"mlp_bias": Field("mlp_bias", False)} | _MULTIPLIERS,
        tables.llama,
        (rotary(Spelling()),),
        heads=(),
    ),
    "granitemoehybrid": Family(
        "GraniteMoeHybrid",
        "granite4_micro",
        _without(_LLAMA, "intermediate_size")
        | _BIAS
        | _MULTIPLIERS
        | {"shared_intermediate_size": Field("mlp_dim", 1024)},
        tables.granite_hybrid,
        (rotary(Spelling()), layers.GRANITE_HYBRID),
        # Sizes of the Mamba layers and the experts that a dense model does not have.
        harmless=frozenset(
            """
            intermediate_size num_experts_per_tok output_router_logits router_aux_loss_coef mamba_n_heads mamba_n_groups
            mamba_d_state mamba_d_head mamba_d_conv mamba_expand mamba_chunk_size mamba_conv_bias mamba_proj_bias
            time_step_limit layers_block_type normalization_function rope_scaling_type init_method
            """.split()
        ),
        heads=(),
    ),
    "cohere": Family(
        "Cohere",
        "command_r_35b",
        _COHERE,
        tables.cohere,
        (rotary(Spelling(theta=500000.0)),),
        only={"use_qk_norm": False},
        heads=(),
    ),
    "cohere2": Family(
        "Cohere2",
        "command_r7b",
        _COHERE,
        tables.cohere,
        (rotary(Spelling()), layers.layer_types(4096, 4, layers.ONLY_LOCAL, "sliding_window_pattern")),
        heads=(),
    ),
    "stablelm": Family(
        "StableLm",
        "stablelm2_1_6b",
        _without(_LLAMA, "rms_norm_eps", "head_dim")
        | _kv_heads(32)
        | {
            "layer_norm_eps": Field("norm_epsilon", 1e-5),
            "use_qkv_bias": Field("qkv_bias", False),
            "use_parallel_residual": Field("parallel", False, choices={False: "none", True: "one_norm"}),
        },
        tables.llama,
        (rotary(Spelling(fraction=0.25)),),
        fixed={"head_dim": 0},
        only={"qk_layernorm": False},
    ),
    "gpt_neox": Family(
        "GPTNeoX",
        "pythia_1_4b",
        _without(_SIZES)
        | {
            "num_attention_heads": Field("num_heads num_kv_heads"),
            "layer_norm_eps": Field("norm_epsilon", 1e-5),
            "hidden_act": Field("mlp", "gelu", choices={"gelu": "gelu_exact"} | _PLAIN),
            "attention_bias": Field(_ALL_BIAS, True),
            "use_parallel_residual": Field("parallel", True, choices={True: "two_norms", False: "none"}),
            "tie_word_embeddings": _UNTIED,
        },
        tables.gpt_neox,
        (
            rotary(
                Spelling(
                    fraction=0.25,
                    theta_name="rotary_emb_base",
                    fraction_name="rotary_pct",
                    unread=("rope_theta", "partial_rotary_factor"),
                )
            ),
        ),
        fixed={"head_dim": 0},
        output="embed_out.weight",
    ),
    "starcoder2": Family(
        "Starcoder2",
        "starcoder2_3b",
        _without(_LLAMA, "rms_norm_eps", "intermediate_size")
        | _kv_heads(2)
        | {
            "intermediate_size": Field("mlp_dim"),
            "norm_epsilon": Field("norm_epsilon", 1e-5),
            "hidden_act": Field("mlp", "gelu_pytorch_tanh", choices=_PLAIN),
            "use_bias": Field("qkv_bias output_bias mlp_bias", True),
            "tie_word_embeddings": _TIED,
        },
        tables.starcoder2,
        (rotary(Spelling()), layers.one_window(None)),
    ),
    "falcon": Family(
        "Falcon",
        "falcon_7b",
        _without(_SIZES, "intermediate_size", "max_position_embeddings")
        | {
            "max_position_embeddings": Field("context_length", 2048),
            "ffn_hidden_size": Field("mlp_dim", None, read=lambda n: n or 0),
            "layer_norm_epsilon": Field("norm_epsilon", 1e-5),
            "activation": Field("mlp", "gelu", choices={"gelu": "gelu_exact"} | _PLAIN),
            "bias": Field("qkv_bias output_bias mlp_bias", False),
            "tie_word_embeddings": _TIED,
        },
        tables.falcon,
        (rotary(Spelling()), FALCON),
        fixed={"head_dim": 0},
        harmless=frozenset({"apply_residual_connection_post_layernorm"}),  # of an older class that it came with
    ),
    "mixtral": Family(
        "Mixtral",
        "mixtral_8x7b",
        _LLAMA | _kv_heads(8) | {"rms_norm_eps": Field("norm_epsilon", 1e-5)},
        tables.mixtral,
        (rotary(Spelling(theta=1e6)), layers.one_window(None), experts.mixture("num_local_experts", 8, 2)),
        harmless=_ROUTER_TRAINING,
        fused=tables.fused_experts,
    ),
    "olmoe": Family(
        "Olmoe",
        "olmoe_1b_7b",
        _without(_LLAMA, "head_dim") | _BIAS | _RENORMALIZE | {"rms_norm_eps": Field("norm_epsilon", 1e-5)},
        tables.sparse,
        (rotary(Spelling()), experts.mixture("num_experts", 64, 8)),
        fixed={"head_dim": 0},
        only={"clip_qkv": None},
        harmless=_ROUTER_TRAINING,
        heads=(),
        fused=tables.fused_experts,
    ),
    "qwen3_moe": Family(
        "Qwen3Moe",
        "qwen3_30b_a3b",
        _LLAMA | _kv_heads(4) | _BIAS | _RENORMALIZE | {"moe_intermediate_size": Field("expert_dim", 768)},
        tables.sparse,
        (rotary(Spelling()), layers.SWITCHED_WINDOW, experts.mixture("num_experts", 128, 8), experts.LAYERS),
        harmless=_ROUTER_TRAINING | {"max_window_layers"},  # that of Qwen's dense classes
        fused=tables.fused_experts,
    ),
}
ARCHITECTURES = tuple(FAMILIES)


def table(architecture: str, config: ModelConfig, fused: bool = False) -> list[Row]:
    """Returns the rows of a language model's weights, with its output table unless that is tied to the embedding.

    Args:
        architecture: a key of `FAMILIES`.
        config: the model.
        fused: one tensor contains all experts of a layer, in a family that has experts.
    """
    family = FAMILIES[architecture]
    rows = family.fused(config) if fused and family.fused else family.table(config)
    return rows if config.tie_embeddings else [*rows, Row("table", FAMILIES[architecture].output)]
