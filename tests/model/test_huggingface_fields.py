"""config.json: what real models' files say is understood; what would change the function is refused by name."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest

from configs import models
from configs.errors import UserError
from model.config import architecture_difference, model_config
from model.huggingface import ARCHITECTURES
from model.huggingface_config import to_section
from model.huggingface_fields import READ

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "huggingface"
HAS_TRANSFORMERS = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def shape(width, mlp, layers, heads, kv_heads, context, vocab):
    return {
        "hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "max_position_embeddings": context, "vocab_size": vocab,
        "initializer_range": 0.02, "use_cache": True, "transformers_version": "4.42.4", "torch_dtype": "bfloat16",
    }  # fmt: skip


SILU = {"hidden_act": "silu", "attention_dropout": 0.0}
QWEN = {"max_window_layers": 28, "use_sliding_window": False, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0} | SILU
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
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_the_config_of_a_real_model_is_the_published_architecture(name):
    architecture, section = to_section(REAL[name], "config.json")
    expected = models.architecture(name)
    unused = ("rope_scaling_factor", "rope_low_frequency_factor", "rope_high_frequency_factor", "rope_original_context")
    differing = {
        field: (section[field], value)
        for field, value in expected.items()
        if section[field] != value and not (field in unused and section["rope_scaling"] == "none")
    }
    differing = {name: pair for name, pair in differing.items() if name != "sliding_window" or any(pair[0])}
    if name == "gemma2_9b":
        assert section["sliding_window"] == (4096, 0)
    assert architecture == REAL[name]["model_type"] and not differing


def changed(name, **fields):
    return to_section(REAL[name] | fields, "config.json")


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True .* expected False"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=False is not supported; expected True"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True is not supported"),
        ("gpt2", {"activation_function": "gelu"}, "the activation 'gelu' is not supported"),
        ("gemma2_9b", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True is not supported"),
        ("gemma2_9b", {"hidden_activation": "gelu"}, "the activation 'gelu' is not supported"),
        ("llama2_7b", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported; expected 1.0"),
        ("llama2_7b", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type='linear' is not supported"),
        ("llama2_7b", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary"),
        ("llama3_2_1b", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "high_freq_factor is missing"),
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
    ],
)
def test_a_missing_field_has_the_value_that_transformers_assumes(name, field, read, value):
    found = {key: entry for key, entry in REAL[name].items() if key != field}
    assert to_section(found, "config.json")[1][read] == value


@pytest.mark.skipif(not HAS_TRANSFORMERS, reason="torch and transformers are not installed")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_transformers_writes_is_read_and_its_defaults_are_ours(architecture):
    import transformers

    written = json.loads(transformers.AutoConfig.for_model(architecture).to_json_string(use_diff=False))
    to_section(written, "config.json")
    bare = {name: written[name] for name, default in READ[architecture].items() if default is ...}
    found, expected = (
        model_config(to_section(fields, "config.json")[1]) for fields in (bare | {"model_type": architecture}, written)
    )
    assert found.windows == expected.windows
    assert architecture_difference(found, dataclasses.replace(expected, sliding_window=found.sliding_window)) == []


@pytest.mark.skipif(not HAS_TRANSFORMERS, reason="torch and transformers are not installed")
@pytest.mark.parametrize("folder", sorted(path.name for path in GOLDEN.iterdir()))
def test_a_field_that_is_accepted_without_effect_has_none_in_transformers(folder):
    import torch
    import transformers

    config = json.loads((GOLDEN / folder / "config.json").read_text())
    _, section = to_section(config, "config.json")
    ids = torch.arange(3, 23)[None]

    def logits(fields):
        torch.manual_seed(0)
        made = transformers.AutoConfig.for_model(**fields)
        model = transformers.AutoModelForCausalLM.from_config(made, attn_implementation="eager")
        weights = {n: torch.randn(x.shape, generator=torch.manual_seed(len(n))) for n, x in model.state_dict().items()}
        model.load_state_dict(weights)
        with torch.no_grad():
            return model.eval().float()(ids).logits

    expected = logits(config)
    tried = []
    for field, value in config.items():
        if field in ("model_type", "architectures", "transformers_version", "dtype", "pad_token_id"):
            continue
        other = not value if isinstance(value, bool) else value * 2 if isinstance(value, int | float) else value
        if other == value:
            continue
        try:
            read = to_section(config | {field: other}, "config.json")[1]
        except UserError:
            continue
        if read == section:
            tried.append(field)
            torch.testing.assert_close(logits(config | {field: other}), expected, atol=1e-4, rtol=1e-4)
    assert len(tried) > 3
