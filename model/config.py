"""`ModelConfig`: every number and switch that defines the network, validated on construction."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from configs.errors import UserError
from configs.schema import RESUMABLE, at_least, build, find_errors, resumable_fields


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer; `configs/default.py` gives the meaning and unit of each field."""

    vocab_size: Annotated[int, at_least(1)]
    embed_dim: Annotated[int, at_least(1)]
    num_layers: Annotated[int, at_least(1)]
    num_heads: Annotated[int, at_least(1)]
    num_kv_heads: Annotated[int, at_least(1)]
    head_dim: Annotated[int, at_least(1)]
    mlp_dim: Annotated[int, at_least(1)]
    context_length: Annotated[int, at_least(1)]
    norm: Literal["rmsnorm", "layernorm"]
    norm_position: Literal["pre", "post", "both"]
    norm_epsilon: float
    norm_unit_offset: bool
    position: Literal["rope", "learned"]
    rope_theta: float
    rope_scaling: Literal["none", "llama3"]
    rope_scaling_factor: float
    rope_low_frequency_factor: float
    rope_high_frequency_factor: float
    rope_original_context: int
    mlp: Literal["silu_gated", "gelu_gated", "gelu", "relu2"]
    qk_norm: bool
    qk_norm_joint: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    tie_embeddings: bool
    scale_embeddings: bool
    logit_softcap: float
    attention_softcap: float
    query_scale: float
    sliding_window: tuple[int, ...]
    output_init: Literal["zero", "scaled"]
    compute_dtype: Annotated[Literal["auto", "float32", "bfloat16"], RESUMABLE]
    cache_dtype: Annotated[Literal["auto", "bfloat16", "int8"], RESUMABLE]
    attention: Annotated[Literal["auto", "xla", "cudnn", "splash"], RESUMABLE]
    scan_layers: Annotated[bool, RESUMABLE]
    remat: Annotated[Literal["none", "dots", "full", "offload"], RESUMABLE]

    def __post_init__(self) -> None:
        errors = find_errors(ModelConfig, vars(self), "config.model")
        if not errors and self.num_heads % self.num_kv_heads:
            divisors = [k for k in range(1, self.num_heads + 1) if self.num_heads % k == 0]
            errors.append(
                f"config.model.num_kv_heads={self.num_kv_heads} must divide config.model.num_heads={self.num_heads}; "
                f"use one of {divisors}"
            )
        if self.position == "rope" and self.head_dim % 2:
            errors.append(f"config.model.head_dim={self.head_dim} must be even with rotary positions")
        if not self.sliding_window or min(self.sliding_window) < 0:
            errors.append(
                f"config.model.sliding_window={self.sliding_window} must be a non-empty tuple of window sizes "
                "in tokens; 0 means no window"
            )
        if errors:
            raise UserError("; ".join(errors))

    @property
    def windows(self) -> tuple[int, ...]:
        """The sliding window of each layer in tokens (0: none): `sliding_window` repeated over the layers."""
        pattern = self.sliding_window
        return tuple(pattern[i % len(pattern)] for i in range(self.num_layers))

    @property
    def window_period(self) -> tuple[int, ...]:
        """The shortest pattern of windows that, repeated a whole number of times, gives `windows`."""
        sizes = (size for size in range(1, self.num_layers) if self.num_layers % size == 0)
        repeats = (self.windows[:size] for size in sizes)
        return next((p for p in repeats if p * (self.num_layers // len(p)) == self.windows), self.windows)

    @property
    def gated(self) -> bool:
        """Whether the MLP multiplies its hidden units by a gate (GLU variants, arXiv:2002.05202)."""
        return self.mlp.endswith("_gated")


# Fields that change how a model runs on a machine, not what it computes; two runs of one checkpoint may differ in them.
EXECUTION_FIELDS = tuple(resumable_fields(ModelConfig))


def model_config(section: Mapping[str, Any]) -> ModelConfig:
    """Returns the `ModelConfig` of `config.model`; `head_dim` 0 becomes embed_dim / num_heads.

    Raises:
        UserError: a field is unknown, missing, of the wrong type or out of range.
    """
    values = dict(section)
    if values.get("head_dim") == 0 and values.get("num_heads"):
        if values["embed_dim"] % values["num_heads"]:
            raise UserError(
                f"config.model.num_heads={values['num_heads']} must divide config.model.embed_dim={values['embed_dim']}"
                "; or set config.model.head_dim"
            )
        values["head_dim"] = values["embed_dim"] // values["num_heads"]
    return build(ModelConfig, values, "config.model")


def architecture_difference(ours: ModelConfig, theirs: ModelConfig) -> list[str]:
    """Returns "field: ours != theirs" for each differing field that changes what the network computes."""
    names = [f.name for f in dataclasses.fields(ModelConfig) if f.name not in EXECUTION_FIELDS]
    pairs = [(name, getattr(ours, name), getattr(theirs, name)) for name in names]
    return [f"{name}: {a!r} != {b!r}" for name, a, b in pairs if a != b]
