"""Every field of a Hugging Face config.json is read, or is harmless, or is refused by name.

A field that is not read could change what the model computes without a word, so a field that no page lists is refused
too. A field that the file lacks has the value of the class in `transformers`, which may differ from ours.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from configs.errors import UserError
from model.config import ModelConfig
from model.huggingface.weights import Row

REQUIRED: Any = ...
Values = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of config.json that gives one field of `config.model`, or several with the same value.

    Attributes:
        ours: names in `config.model`, separated by spaces.
        default: the value in the class of `transformers`; REQUIRED: a file without it is refused.
        read: their value -> ours.
        write: our value -> theirs.
        choices: {their value: ours}, where only these are supported; the first with our value is written.
    """

    ours: str
    default: Any = REQUIRED
    read: Callable[[Any], Any] = lambda value: value
    write: Callable[[Any], Any] = lambda value: value
    choices: Mapping[Any, Any] = dataclasses.field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The names in `config.model`."""
        return self.ours.split()

    def to_ours(self, name: str, value: object) -> dict[str, Any]:
        """Returns the fields of `config.model` that `value` of the field `name` gives."""
        if not self.choices:
            return dict.fromkeys(self.names, self.read(value))
        if not isinstance(value, str | bool | None) or value not in self.choices:
            raise UserError(f"{name}={value!r:.60} is not supported; expected {' or '.join(map(repr, self.choices))}")
        return dict.fromkeys(self.names, self.choices[value])

    def to_theirs(self, config: ModelConfig) -> object:
        """Returns the value to write, or of choices the first if none has our value."""
        value = getattr(config, self.names[-1])
        if not self.choices:
            return self.write(value)
        return next((theirs for theirs, ours in self.choices.items() if ours == value), next(iter(self.choices)))


@dataclasses.dataclass(frozen=True)
class Section:
    """Fields of config.json that are read together.

    Attributes:
        defaults: {their field: the value in the class of `transformers`}.
        read: the values of all fields -> fields of `config.model`.
        write: the model -> these fields of config.json.
    """

    defaults: Mapping[str, Any]
    read: Callable[[Values], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]


_BOTH_HEADS = ("SequenceClassification", "TokenClassification")


@dataclasses.dataclass(frozen=True)
class Family:
    """A `model_type` of `transformers`.

    Attributes:
        prefix: of the names of its classes, e.g. "Llama".
        published: a model of `configs/models.py`, whose fields are those that config.json does not give.
        fields: {field of config.json: `Field`}.
        table: the model -> the rows of its weights, without the output table.
        sections: fields of config.json that are read together.
        fixed: fields of `config.model` that the class fixes and that `published` does not have.
        only: {field: the one value that is supported}.
        harmless: fields that change nothing.
        heads: the heads that `transformers` has, besides a language model's.
        head_prefix: of the names of their classes, where it is another one.
        causal_lm: end of the name of the language model's class.
        output: name of the output table.
        fused: the rows where one tensor contains all experts of a layer, which `transformers` reads and writes too;
            None: a family without experts.
    """

    prefix: str
    published: str
    fields: Mapping[str, Field]
    table: Callable[[ModelConfig], list[Row]]
    sections: tuple[Section, ...]
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    only: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    harmless: frozenset[str] = frozenset()
    heads: tuple[str, ...] = _BOTH_HEADS
    head_prefix: str = ""
    causal_lm: str = "ForCausalLM"
    output: str = "lm_head.weight"
    fused: Callable[[ModelConfig], list[Row]] | None = None

    @property
    def defaults(self) -> dict[str, Any]:
        """{each field of config.json that is read: the value that `transformers` assumes}."""
        found = {name: field.default for name, field in self.fields.items()}
        for section in self.sections:
            found |= section.defaults
        return found


# Fields with one value that our models have; any other value is another function. null counts as this value.
_ONLY: dict[str, Any] = {
    "is_encoder_decoder": False, "add_cross_attention": False, "use_bidirectional_attention": False, "is_causal": True,
    "partial_rotary_factor": 1.0, "rope_interleaved": False, "use_mrope": False, "attention_bias": False,
    "mlp_bias": False, "use_sliding_window": False, "pruned_heads": {}, "per_layer_config": {},
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
    attention_dropout attn_pdrop embd_pdrop resid_pdrop hidden_dropout residual_dropout embedding_dropout
    classifier_dropout initializer_range n_ctx
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


def checked(family: str, config: Values, defaults: Values, only: Values, harmless: frozenset[str]) -> dict[str, Any]:
    """Returns the value of each field of `defaults`; for a missing one, its default.

    Args:
        family: the `model_type`.
        config: the contents of config.json.
        defaults: {field that is read: its default}.
        only: fields of the family with one supported value, besides those of all families.
        harmless: fields of the family that change nothing, besides those of all families.

    Raises:
        UserError: a field is missing that has no default, has a value that is not supported, or is unknown.
    """
    missing = [name for name, default in defaults.items() if default is REQUIRED and config.get(name) is None]
    if missing:
        raise UserError(f"{missing[0]!r} is missing; expected a config.json of {family}")
    errors = [
        f"{name}={config[name]!r:.60}; expected true or false"
        for name, default in defaults.items()
        if isinstance(default, bool) and not isinstance(config.get(name, default), bool)
    ]
    supported = {**_ONLY, **only}
    unknown = []
    for name, value in config.items():
        if value is None or name in defaults or name in _HARMLESS or name in harmless:
            continue
        if name in _REFUSED:
            errors.append(f"{name}: {_REFUSED[name]}")
        elif name not in supported:
            unknown.append(f"{name}={value!r:.60}")
        elif value != supported[name]:
            errors.append(f"{name}={value!r:.60} is not supported; expected {supported[name]!r}")
    if unknown:
        listed = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        errors.append(
            f"{listed}: unknown, so it may change what {family} computes; "
            "remove it from config.json if transformers does not read it"
        )
    if errors:
        raise UserError("; ".join(errors))
    return {name: config.get(name, default) for name, default in defaults.items()}
