"""config.json: what real models' files say is understood; what would change the function is refused by name."""

import pytest

from configs import default, models
from configs.errors import UserError
from model.config import architecture_difference, model_config
from model.huggingface.config_file import architecture_of, to_section
from model.huggingface.families import ARCHITECTURES


def shape(width, mlp, layers, heads, kv_heads, context, vocab):
    return {
        "hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "max_position_embeddings": context, "vocab_size": vocab,
        "initializer_range": 0.02, "use_cache": True, "transformers_version": "4.42.4", "torch_dtype": "bfloat16",
    }  # fmt: skip


SILU = {"hidden_act": "silu", "attention_dropout": 0.0}
QWEN = {"max_window_layers": 28, "use_sliding_window": False, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0} | SILU
GEMMA3 = {
    "model_type": "gemma3_text", "attention_bias": False, "attn_logit_softcapping": None, "eos_token_id": [1, 106],
    "final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-06,
    "query_pre_attn_scalar": 256, "rope_local_base_freq": 10000.0, "rope_theta": 1000000.0, "attention_dropout": 0.0,
    "use_bidirectional_attention": False, "cache_implementation": "hybrid",
}  # fmt: skip
# The fields of the files that come with these models.
REAL = {
    "gpt2": {
        "model_type": "gpt2", "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1, "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
        "resid_pdrop": 0.1, "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
        "summary_type": "cls_index", "summary_use_proj": True, "vocab_size": 50257,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    },
    "llama2_7b": shape(4096, 11008, 32, 32, 32, 4096, 32000)
    | {"model_type": "llama", "_name_or_path": "meta-llama/Llama-2-7b-hf", "hidden_act": "silu", "pretraining_tp": 1,
       "rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False},
    "llama3_8b": shape(4096, 14336, 32, 32, 8, 8192, 128256)
    | {"model_type": "llama", "attention_bias": False, "pretraining_tp": 1, "rms_norm_eps": 1e-05, **SILU,
       "rope_scaling": None, "rope_theta": 500000.0, "tie_word_embeddings": False, "eos_token_id": [128001, 128009]},
    "llama3_2_1b": shape(2048, 8192, 16, 32, 8, 131072, 128256)
    | {"model_type": "llama", "attention_bias": False, "head_dim": 64, "mlp_bias": False, "pretraining_tp": 1, **SILU,
       "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": True,
       "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_type": "llama3",
                        "original_max_position_embeddings": 8192}},
    "smollm2_135m": shape(576, 1536, 30, 9, 3, 8192, 49152)
    | {"model_type": "llama", "attention_bias": False, "is_llama_config": True, "mlp_bias": False, "pretraining_tp": 1,
       "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000, **SILU,
       "tie_word_embeddings": True, "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}},
    "mistral_7b": shape(4096, 14336, 32, 32, 8, 32768, 32000)
    | {"model_type": "mistral", "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, **SILU,
       "tie_word_embeddings": False},
    "qwen2_7b": shape(3584, 18944, 28, 28, 4, 131072, 152064)
    | {"model_type": "qwen2", "sliding_window": 131072, "tie_word_embeddings": False} | QWEN,
    "qwen2_0_5b": shape(896, 4864, 24, 14, 2, 131072, 151936)
    | {"model_type": "qwen2", "sliding_window": 131072, "tie_word_embeddings": True, "use_mrope": False} | QWEN,
    "qwen3_8b": shape(4096, 12288, 36, 32, 8, 40960, 151936)
    | {"model_type": "qwen3", "head_dim": 128, "sliding_window": None, "attention_bias": False, "rope_scaling": None,
       "tie_word_embeddings": False} | QWEN | {"max_window_layers": 36},
    "gemma2_9b": shape(3584, 14336, 42, 16, 8, 8192, 256000)
    | {"model_type": "gemma2", "attention_bias": False, "attn_logit_softcapping": 50.0, "eos_token_id": [1, 107],
       "cache_implementation": "hybrid", "final_logit_softcapping": 30.0, "head_dim": 256,
       "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256,
       "rms_norm_eps": 1e-06,
       "rope_theta": 10000.0, "sliding_window": 4096, "sliding_window_size": 4096, "attention_dropout": 0.0},
    "olmo2_7b": shape(4096, 11008, 32, 32, 32, 4096, 100352)
    | {"model_type": "olmo2", "attention_bias": False, "pad_token_id": 100277, "rms_norm_eps": 1e-06, **SILU,
       "rope_scaling": None, "rope_theta": 500000, "tie_word_embeddings": False},
    "qwen2_5_7b": shape(3584, 18944, 28, 28, 4, 131072, 152064)
    | {"model_type": "qwen2", "sliding_window": 131072, "tie_word_embeddings": False} | QWEN,
    "gemma3_270m": shape(640, 2048, 18, 4, 1, 32768, 262144) | GEMMA3
    | {"_sliding_window_pattern": 6, "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
       "rope_scaling": None, "sliding_window": 512},
    "gemma3_1b": shape(1152, 6912, 26, 4, 1, 32768, 262144) | GEMMA3
    | {"sliding_window_pattern": 6, "rope_scaling": None, "sliding_window": 512},
    "gemma3_4b": shape(2560, 10240, 34, 8, 4, 131072, 262208) | GEMMA3
    | {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024, "sliding_window_pattern": 6},
    "gemma3_27b": shape(5376, 21504, 62, 32, 16, 131072, 262208) | GEMMA3
    | {"head_dim": 128, "query_pre_attn_scalar": 168, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
       "sliding_window": 1024},
    "smollm3_3b": shape(2048, 11008, 36, 16, 4, 65536, 128256)
    | {"model_type": "smollm3", "rope_theta": 5000000.0, "rms_norm_eps": 1e-06, "max_window_layers": 28,
       "no_rope_layers": [1, 1, 1, 0] * 9, "no_rope_layer_interval": 4, "use_sliding_window": False, **SILU,
       "layer_types": ["full_attention"] * 36, "rope_scaling": None, "sliding_window": None, "mlp_bias": False,
       "attention_bias": False, "pretraining_tp": 2, "is_llama_config": True},
    "olmo3_7b": shape(4096, 11008, 32, 32, 32, 65536, 100278)
    | {"model_type": "olmo3", "attention_bias": False, "rms_norm_eps": 1e-06, "rope_theta": 500000, **SILU,
       "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 8, "sliding_window": 4096,
       "tie_word_embeddings": False,
       "rope_scaling": {"attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0, "factor": 8.0,
                        "original_max_position_embeddings": 8192, "rope_type": "yarn"}},
    "phi3_mini_4k": shape(3072, 8192, 32, 32, 32, 4096, 32064)
    | {"model_type": "phi3", "embd_pdrop": 0.0, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-05,
       "rope_scaling": None, "rope_theta": 10000.0, "sliding_window": 2047, "tie_word_embeddings": False, **SILU},
    "phi4_14b": shape(5120, 17920, 40, 40, 10, 16384, 100352)
    | {"model_type": "phi3", "original_max_position_embeddings": 16384, "rms_norm_eps": 1e-05, "rope_scaling": None,
       "rope_theta": 250000, "sliding_window": None, "tie_word_embeddings": False, "attention_bias": False, **SILU},
    "granite3_2b": shape(2048, 8192, 40, 32, 8, 4096, 49155)
    | {"model_type": "granite", "attention_bias": False, "attention_multiplier": 0.015625, "residual_multiplier": 0.22,
       "embedding_multiplier": 12.0, "logits_scaling": 8.0, "mlp_bias": False, "rms_norm_eps": 1e-05,
       "rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": True, **SILU},
    "granite4_micro": shape(2560, 8192, 40, 40, 8, 131072, 100352)
    | {"model_type": "granitemoehybrid", "attention_bias": False, "attention_multiplier": 0.015625, **SILU,
       "embedding_multiplier": 12, "logits_scaling": 10, "residual_multiplier": 0.22, "num_local_experts": 0,
       "num_experts_per_tok": 0, "layer_types": ["attention"] * 40, "position_embedding_type": "rope",
       "shared_intermediate_size": 8192, "rms_norm_eps": 1e-05, "rope_theta": 10000000, "tie_word_embeddings": True,
       "mamba_n_heads": 128, "mamba_d_state": 256, "normalization_function": "rmsnorm"},
    "command_r_35b": shape(8192, 22528, 40, 64, 64, 131072, 256000)
    | {"model_type": "cohere", "attention_bias": False, "layer_norm_eps": 1e-05, "logit_scale": 0.0625,
       "rope_theta": 8000000.0, "use_qk_norm": False, **SILU},
    "command_r7b": shape(4096, 14336, 32, 32, 8, 132096, 256000)
    | {"model_type": "cohere2", "attention_bias": False, "head_dim": 128, "layer_norm_eps": 1e-05,
       "logit_scale": 0.25, "rope_theta": 50000, "rope_scaling": None, "sliding_window": 4096,
       "sliding_window_pattern": 4, **SILU},
    "stablelm_3b": shape(2560, 6912, 32, 32, 32, 4096, 50304)
    | {"model_type": "stablelm", "partial_rotary_factor": 0.25, "layer_norm_eps": 1e-05, "rope_theta": 10000,
       "tie_word_embeddings": False, "use_qkv_bias": False, **SILU},
    "pythia_1_4b": {name: size for name, size in shape(2048, 8192, 24, 16, 16, 2048, 50304).items()
                    if name != "num_key_value_heads"}
    | {"model_type": "gpt_neox", "hidden_act": "gelu", "layer_norm_eps": 1e-05, "rotary_emb_base": 10000,
       "rotary_pct": 0.25, "tie_word_embeddings": False, "use_parallel_residual": True, "rope_theta": 10000,
       "partial_rotary_factor": 0.25, "rope_scaling": None, "attention_bias": True},
    "starcoder2_3b": shape(3072, 12288, 30, 24, 2, 16384, 49152)
    | {"model_type": "starcoder2", "hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-05, "use_bias": True,
       "rope_theta": 999999.4420358813, "sliding_window": 4096, "residual_dropout": 0.1, "embedding_dropout": 0.1},
    "falcon_7b": {
        "model_type": "falcon", "alibi": False, "bias": False, "hidden_size": 4544, "layer_norm_epsilon": 1e-05,
        "multi_query": True, "new_decoder_architecture": False, "num_attention_heads": 71, "num_hidden_layers": 32,
        "parallel_attn": True, "vocab_size": 65024, "apply_residual_connection_post_layernorm": False,
        "attention_dropout": 0.0, "hidden_dropout": 0.0, "initializer_range": 0.02, "use_cache": True,
    },
    "mixtral_8x7b": shape(4096, 14336, 32, 32, 8, 32768, 32000)
    | {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 8, "rms_norm_eps": 1e-05,
       "num_experts_per_tok": 2, "output_router_logits": False, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02,
       "sliding_window": None, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, **SILU},
    "olmoe_1b_7b": shape(2048, 1024, 16, 16, 16, 4096, 50304)
    | {"model_type": "olmoe", "attention_bias": False, "clip_qkv": None, "eos_token_id": 50279, "pad_token_id": 1,
       "norm_topk_prob": False, "num_experts": 64, "num_experts_per_tok": 8, "output_router_logits": False,
       "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0, "router_aux_loss_coef": 0.01,
       "tie_word_embeddings": False, **SILU},
    "qwen3_30b_a3b": shape(2048, 6144, 48, 32, 4, 40960, 151936)
    | {"model_type": "qwen3_moe", "attention_bias": False, "decoder_sparse_step": 1, "head_dim": 128,
       "mlp_only_layers": [], "moe_intermediate_size": 768, "norm_topk_prob": True, "num_experts": 128,
       "num_experts_per_tok": 8, "output_router_logits": False, "rope_scaling": None, "router_aux_loss_coef": 0.001,
       "sliding_window": None, "tie_word_embeddings": False} | QWEN | {"max_window_layers": 48},
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_the_config_of_a_real_model_is_the_published_architecture(name):
    architecture, section = to_section(REAL[name], "config.json")
    found, expected = (model_config(default.model().to_dict() | s) for s in (section, models.architecture(name)))
    assert architecture == REAL[name]["model_type"] and found.kinds == expected.kinds
    differing = [
        text for text in architecture_difference(found, expected) if not text.startswith(("rope_", "sliding_window"))
    ]
    assert not differing and architecture_of(found, architecture) == architecture


def test_every_family_has_a_real_config():
    assert {config["model_type"] for config in REAL.values()} == set(ARCHITECTURES)


def changed(name, **fields):
    return to_section(REAL[name] | fields, "config.json")


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True .* expected False"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=False is not supported; expected True"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True is not supported"),
        ("gpt2", {"activation_function": "relu"}, "activation_function='relu' is not supported; expected 'gelu_new'"),
        ("gemma2_9b", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True is not supported"),
        ("gemma2_9b", {"hidden_activation": "gelu"}, "hidden_activation='gelu' is not supported"),
        ("gemma2_9b", {"attn_logit_softcapping": 0.0}, "a soft cap of 0.0 is not supported"),
        ("llama2_7b", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported; expected 1.0"),
        ("llama2_7b", {"rope_scaling": {"type": "axial", "factor": 2.0}}, "rope_type='axial' is not supported"),
        ("llama2_7b", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary"),
        ("llama2_7b", {"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 1}}, "rope_scaling.beta_fast=1"),
        ("llama2_7b", {"rope_scaling": {"type": "yarn"}}, "rope_scaling.factor is missing"),
        ("llama2_7b", {"rope_scaling": {"type": "yarn", "factor": 2.0, "attention_factor": 0}}, "attention_factor=0"),
        ("llama3_2_1b", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "high_freq_factor is missing"),
        ("llama2_7b", {"is_causal": False}, "is_causal=False is not supported; expected True"),
        ("llama2_7b", {"layer_types": ["sliding_attention"] * 32}, "layer_types=.*: unknown"),
        ("gemma3_1b", {"rope_parameters": {"rope_type": "default"}}, "rope_parameters.rope_type is not supported"),
        ("gemma3_1b", {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
         "rope_parameters.sliding_attention: rope_type='linear' is not supported; expected default"),
        ("gemma3_1b", {"sliding_window": None}, "with a sliding_window"),
        ("olmo3_7b", {"rope_theta": 10000}, "rope_theta=10000: which layers it is for depends on the version"),
        ("smollm3_3b", {"no_rope_layers": [1, 0]}, "no_rope_layers=.*expected 1 .* for each of 36 layers"),
        ("smollm3_3b", {"layer_types": ["sliding_attention"] * 36}, "with a sliding_window"),
        ("phi3_mini_4k", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "expected default, longrope"),
        ("granite4_micro", {"layer_types": ["mamba"] * 40}, "Mamba layers are not supported"),
        ("granite4_micro", {"num_local_experts": 8}, "num_local_experts=8: mixtures of experts are not supported"),
        ("command_r_35b", {"use_qk_norm": True}, "use_qk_norm=True is not supported; expected False"),
        ("stablelm_3b", {"qk_layernorm": True}, "qk_layernorm=True is not supported; expected False"),
        ("pythia_1_4b", {"rope_theta": 300}, "rope_theta=300 is not read by transformers, which uses 10000"),
        ("falcon_7b", {"alibi": True}, "alibi=True is not supported"),
        ("falcon_7b", {"new_decoder_architecture": True, "parallel_attn": False}, "parallel_attn=False is not"),
        ("llama2_7b", {"per_layer_config": {"0": {"num_attention_heads": 8}}}, "per_layer_config=.* is not supported"),
        ("llama2_7b", {"residual_multiplier": 0.2}, "residual_multiplier=0.2: unknown, so it may change what llama"),
        ("mistral_7b", {"layer_types": ["full_attention"] * 32}, "layer_types=.*: unknown"),
        ("mistral_7b", {"attention_bias": True}, "attention_bias=True is not supported; expected False"),
        ("qwen2_7b", {"layer_types": ["chunked_attention"] * 28}, "layer_types=.* expected 'full_attention' or"),
        ("qwen3_8b", {"layer_types": ["full_attention"] * 2}, "for each of 36 layers"),
        ("qwen3_8b", {"layer_types": ["sliding_attention"] * 36}, "with a sliding_window"),
        ("olmo2_7b", {"clip_qkv": 8.0}, "clip_qkv=8.0: unknown"),
        ("olmo2_7b", {"tie_word_embeddings": "false"}, "tie_word_embeddings='false'; expected true or false"),
        ("llama3_8b", {"quantization_config": {"bits": 4}}, "quantization_config: quantized weights are not supported"),
        ("llama3_8b", {"auto_map": {"AutoModel": "x.Y"}}, "auto_map: code that comes with a model is never run"),
    ],
)  # fmt: skip
def test_a_field_that_changes_the_function_is_refused_by_name(name, fields, message):
    with pytest.raises(UserError, match=rf"config\.json: .*{message}") as caught:
        changed(name, **fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("gpt2", {"scale_attn_weights": True, "reorder_and_upcast_attn": True, "n_inner": None, "attn_pdrop": 0.5}),
        ("llama2_7b", {"attention_dropout": 0.1, "pretraining_tp": 2, "partial_rotary_factor": 1.0}),
        ("qwen2_7b", {"layer_types": ["full_attention"] * 28, "new_field_of_a_later_version": None}),
        ("gemma3_1b", {"_sliding_window_pattern": 6, "is_causal": True}),
        ("pythia_1_4b", {"classifier_dropout": 0.1, "is_decoder": True}),
    ],
)  # fmt: skip
def test_a_harmless_field_is_accepted(name, fields):
    assert changed(name, **fields)[1] == to_section(REAL[name], "config.json")[1] | changed(name)[1]


@pytest.mark.parametrize(
    ("name", "field", "read", "value"),
    [
        ("mistral_7b", "sliding_window", "sliding_window", (4096,)),
        ("gemma2_9b", "attn_logit_softcapping", "attention_softcap", 50.0),
        ("gemma2_9b", "tie_word_embeddings", "tie_embeddings", True),
        ("qwen3_8b", "head_dim", "head_dim", 128),
        ("llama2_7b", "rope_theta", "rope_theta", 10000.0),
        ("gemma2_9b", "final_logit_softcapping", "logit_softcap", 30.0),
        ("gemma3_1b", "final_logit_softcapping", "logit_softcap", 0.0),
        ("gemma3_1b", "sliding_window_pattern", "sliding_window", (512, 512, 512, 512, 512, 0)),
        ("smollm3_3b", "rope_theta", "rope_theta", 2000000.0),
        ("command_r_35b", "logit_scale", "logit_scale", 0.0625),
        ("pythia_1_4b", "rotary_pct", "rope_fraction", 0.25),
        ("mixtral_8x7b", "num_local_experts", "num_experts", 8),
        ("olmoe_1b_7b", "num_experts_per_tok", "experts_per_token", 8),
        ("qwen3_30b_a3b", "norm_topk_prob", "router_renormalize", False),
    ],
)
def test_a_missing_field_has_the_value_that_transformers_assumes(name, field, read, value):
    found = {key: entry for key, entry in REAL[name].items() if key != field}
    assert to_section(found, "config.json")[1][read] == value


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("llama2_7b", {"rope_theta": 3e4}, {"rope_parameters": {"rope_type": "default", "rope_theta": 3e4}}),
        ("llama2_7b", {"rope_scaling": {"type": "linear", "factor": 2.0}},
         {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
        ("qwen2_5_7b", {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
         {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768,
                              "rope_theta": 1e6}}),
        ("gemma3_4b", {"rope_theta": 1e6, "rope_local_base_freq": 2e4},
         {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                              "sliding_attention": {"rope_type": "default", "rope_theta": 2e4}}}),
        ("olmo3_7b", {},
         {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 8.0, "rope_theta": 5e5,
                                                 "original_max_position_embeddings": 8192},
                              "sliding_attention": {"rope_type": "default", "rope_theta": 5e5}}}),
        ("phi3_mini_4k", {"rope_scaling": {"type": "su", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}},
         {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48,
                              "rope_theta": 1e4}}),
        ("stablelm_3b", {"partial_rotary_factor": 0.5},
         {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    ],
)  # fmt: skip
def test_both_spellings_of_rotary_positions_are_read(name, old, new):
    names = ("rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor")
    without = {key: value for key, value in REAL[name].items() if key not in names}
    old_kinds, new_kinds = (
        model_config(to_section(config, "config.json")[1]).kinds for config in (REAL[name] | old, without | new)
    )
    assert old_kinds == new_kinds
