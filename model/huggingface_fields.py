"""Every field of a Hugging Face config.json is read, or is harmless, or is refused by name.

A field that is not read could change what the model computes without a word, so a field that this page does not list
is refused too.
"""

from collections.abc import Mapping
from typing import Any

from configs.errors import UserError

_REQUIRED: Any = ...
_LLAMA: dict[str, Any] = dict.fromkeys(
    (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "max_position_embeddings", "rms_norm_eps",
    ),
    _REQUIRED,
) | {
    "num_key_value_heads": None, "head_dim": None, "hidden_act": "silu", "tie_word_embeddings": False,
    "rope_theta": 10000.0, "rope_scaling": None, "rope_parameters": None,
}  # fmt: skip
_WINDOWS = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None}
# The fields that `huggingface_config` reads, each with the value that transformers assumes where a file lacks it.
READ: dict[str, dict[str, Any]] = {
    "gpt2": dict.fromkeys(("vocab_size", "n_embd", "n_layer", "n_head", "n_positions", "layer_norm_epsilon"), _REQUIRED)
    | {"n_inner": None, "activation_function": "gelu_new", "tie_word_embeddings": True},
    "llama": _LLAMA | {"attention_bias": False, "mlp_bias": False},
    "mistral": _LLAMA | {"num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": _LLAMA | _WINDOWS | {"num_key_value_heads": 32},
    "qwen3": _LLAMA | _WINDOWS | {"num_key_value_heads": 32, "head_dim": 128, "attention_bias": False},
    "gemma2": {name: value for name, value in _LLAMA.items() if name != "hidden_act"}
    | {"hidden_activation": "gelu_pytorch_tanh", "num_key_value_heads": 4, "head_dim": 256, "attention_bias": False}
    | {"tie_word_embeddings": True, "sliding_window": 4096, "layer_types": None}
    | {"query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "olmo2": _LLAMA | {"attention_bias": False},
}

# Fields with one value that our models have; any other value is another function. null counts as this value.
_ONLY: dict[str, Any] = {
    "is_encoder_decoder": False, "add_cross_attention": False, "use_bidirectional_attention": False,
    "partial_rotary_factor": 1.0, "rope_interleaved": False, "use_mrope": False, "attention_bias": False,
    "mlp_bias": False, "use_sliding_window": False, "pruned_heads": {}, "per_layer_config": {},
    "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
}  # fmt: skip
_REFUSED = {
    "quantization_config": "quantized weights are not supported; import the model that was quantized",
    "auto_map": "code that comes with a model is never run; remove it if the model's class in transformers is enough",
}
# Fields that change training, the output's form, the generation or nothing, but not the function of the weights. Those
# of generation are in generation_config.json, from which transformers reads them.
_HARMLESS = frozenset(
    """
    _name_or_path name_or_path _commit_hash _from_model_config transformers_version transformers.js_config architectures
    model_type torch_dtype dtype is_decoder is_llama_config is_composition torchscript use_bfloat16 unsloth_fixed
    unsloth_version tokenizer_class _attn_implementation attn_implementation _attn_implementation_autoset
    attention_dropout attn_pdrop embd_pdrop resid_pdrop hidden_dropout classifier_dropout initializer_range n_ctx
    pretraining_tp reorder_and_upcast_attn gradient_checkpointing use_cache cache_implementation
    chunk_size_feed_forward cross_attention_hidden_size tie_encoder_decoder tie_last_hidden_states
    token_classification_bias tf_legacy_loss sliding_window_size
    summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
    output_attentions output_hidden_states output_scores output_past return_dict return_dict_in_generate
    id2label label2id num_labels problem_type finetuning_task task_specific_params prefix
    bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id
    do_sample temperature top_k top_p typical_p repetition_penalty length_penalty diversity_penalty max_length
    min_length max_new_tokens num_beams num_beam_groups num_return_sequences early_stopping no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids suppress_tokens begin_suppress_tokens forced_bos_token_id
    forced_eos_token_id remove_invalid_values exponential_decay_length_penalty
    """.split()
)
_HARMLESS_IN = {"gemma2": {"hidden_act"}}  # transformers reads hidden_activation


def fields_of(architecture: str, config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the value of each field that `huggingface_config` reads; for a missing one, that of transformers.

    Raises:
        UserError: a field is missing that has no default, has a value that is not supported, or is unknown.
    """
    read = READ[architecture]
    missing = [name for name, default in read.items() if default is _REQUIRED and config.get(name) is None]
    if missing:
        raise UserError(f"{where}: {missing[0]!r} is missing; expected a config.json of {architecture}")
    harmless = _HARMLESS | _HARMLESS_IN.get(architecture, set())
    others = {name: value for name, value in config.items() if name not in read and name not in harmless}
    errors = [
        f"{name}={config[name]!r:.60}; expected true or false"
        for name, default in read.items()
        if isinstance(default, bool) and not isinstance(config.get(name, default), bool)
    ]
    unknown = []
    for name, value in others.items():
        if value is None:
            continue
        if name in _REFUSED:
            errors.append(f"{name}: {_REFUSED[name]}")
        elif name not in _ONLY:
            unknown.append(f"{name}={value!r:.60}")
        elif value != _ONLY[name]:
            errors.append(f"{name}={value!r:.60} is not supported; expected {_ONLY[name]!r}")
    if unknown:
        listed = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        errors.append(
            f"{listed}: unknown, so it may change what {architecture} computes; "
            "remove it from config.json if transformers does not read it"
        )
    if errors:
        raise UserError(f"{where}: {'; '.join(errors)}")
    return {name: config.get(name, default) for name, default in read.items()}
