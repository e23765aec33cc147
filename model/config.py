"""`ModelConfig`: every number and switch that defines the network, validated on construction."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from configs.errors import UserError
from configs.schema import RESUMABLE, at_least, between, build, find_errors, resumable_fields
from model.rotary_kind import FLOAT32_POSITIONS, Rotary, Scaling, default_attention_factor

ROTARY_KINDS = ("rope", "local", "none")


class LayerKind(NamedTuple):
    """What may differ between the layers of a model, besides their weights.

    Attributes:
        window: sliding window in tokens; 0: full attention.
        rotary: rotary positions of queries and keys; None: no rotary positions.
        experts: whether experts take the place of the MLP.
    """

    window: int
    rotary: Rotary | None
    experts: bool = False


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A transformer; `configs/default.py` gives the meaning and unit of each field.

    Attributes:
        causal: whether a token attends only to itself and earlier tokens. It is no field of `config.model`: only
            fine-tuning a head that does not write text changes it (`config.task.attention`).
    """

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
    norm_bias: bool
    parallel: Literal["none", "one_norm", "two_norms"]
    position: Literal["rope", "learned"]
    rope_theta: float
    rope_fraction: Annotated[float, between(0.0, 1.0)]
    rope_scaling: Scaling
    rope_scaling_factor: float
    rope_original_context: int
    rope_low_frequency_factor: float
    rope_high_frequency_factor: float
    rope_beta_fast: float
    rope_beta_slow: float
    rope_round_range: bool
    rope_attention_factor: Annotated[float, at_least(0.0)]
    rope_short_factors: tuple[float, ...]
    rope_long_factors: tuple[float, ...]
    rope_layers: tuple[str, ...]
    rope_local_theta: float
    mlp: Literal["silu_gated", "gelu_gated", "gelu", "gelu_exact", "relu2"]
    qk_norm: bool
    qk_norm_joint: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    tie_embeddings: bool
    scale_embeddings: bool
    embedding_scale: float
    residual_scale: float
    logit_scale: float
    logit_softcap: float
    attention_softcap: float
    query_scale: float
    sliding_window: tuple[int, ...]
    num_experts: Annotated[int, at_least(0)]
    experts_per_token: Annotated[int, at_least(1)]
    expert_dim: Annotated[int, at_least(0)]
    shared_expert_dim: Annotated[int, at_least(0)]
    dense_layers: Annotated[int, at_least(0)]
    expert_every: Annotated[int, at_least(1)]
    router: Literal["softmax", "softmax_top", "sigmoid"]
    router_renormalize: bool
    router_bias: bool
    output_init: Literal["zero", "scaled"]
    compute_dtype: Annotated[Literal["auto", "float32", "bfloat16"], RESUMABLE]
    cache_dtype: Annotated[Literal["auto", "bfloat16", "int8"], RESUMABLE]
    attention: Annotated[Literal["auto", "xla", "cudnn", "splash"], RESUMABLE]
    context_attention: Annotated[Literal["auto", "ring", "all_gather"], RESUMABLE]
    scan_layers: Annotated[bool, RESUMABLE]
    remat: Annotated[Literal["none", "dots", "full", "offload"], RESUMABLE]
    causal: bool = True

    def __post_init__(self) -> None:
        errors = find_errors(ModelConfig, vars(self), "config.model")
        if not errors and self.num_heads % self.num_kv_heads:
            divisors = [k for k in range(1, self.num_heads + 1) if self.num_heads % k == 0]
            errors.append(
                f"config.model.num_kv_heads={self.num_kv_heads} must divide config.model.num_heads={self.num_heads}; "
                f"use one of {divisors}"
            )
        if not self.sliding_window or min(self.sliding_window) < 0:
            errors.append(
                f"config.model.sliding_window={self.sliding_window} must be a non-empty tuple of window sizes "
                "in tokens; 0 means no window"
            )
        if not errors and self.position == "rope":
            errors += _rotary_errors(self)
        if not errors and self.num_experts:
            errors += _expert_errors(self)
        if self.parallel != "none" and self.norm_position != "pre":
            errors.append(
                f"config.model.parallel={self.parallel!r} needs config.model.norm_position='pre', "
                f"got {self.norm_position!r}"
            )
        if errors:
            raise UserError("; ".join(errors))

    @property
    def windows(self) -> tuple[int, ...]:
        """The sliding window of each layer in tokens (0: none): `sliding_window` repeated over the layers."""
        pattern = self.sliding_window
        return tuple(pattern[i % len(pattern)] for i in range(self.num_layers))

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """The kind of each layer: `sliding_window` and `rope_layers`, each repeated over the layers."""
        pattern = self.rope_layers if self.position == "rope" else ("none",)
        rotary = {name: _rotary(self, name) for name in set(pattern)}
        return tuple(
            LayerKind(window, rotary[pattern[i % len(pattern)]], self._has_experts(i))
            for i, window in enumerate(self.windows)
        )

    def _has_experts(self, layer: int) -> bool:
        """Whether a layer has experts: every n-th after the first k dense ones, the last of each n."""
        after = layer - self.dense_layers
        return self.num_experts > 0 and after >= 0 and (after + 1) % self.expert_every == 0

    @property
    def expert_layers(self) -> int:
        """The number of layers with experts."""
        return sum(kind.experts for kind in self.kinds)

    @property
    def expert_width(self) -> int:
        """The hidden width of each expert."""
        return self.expert_dim or self.mlp_dim

    @property
    def period(self) -> tuple[LayerKind, ...]:
        """The shortest pattern of kinds that, repeated a whole number of times, gives `kinds`."""
        kinds = self.kinds
        sizes = (size for size in range(1, self.num_layers) if self.num_layers % size == 0)
        repeats = (kinds[:size] for size in sizes)
        return next((p for p in repeats if p * (self.num_layers // len(p)) == kinds), kinds)

    @property
    def rotaries(self) -> tuple[Rotary, ...]:
        """The different rotary kinds of the layers, in the order of their first layer."""
        return tuple(dict.fromkeys(kind.rotary for kind in self.kinds if kind.rotary is not None))

    @property
    def rotary_width(self) -> int:
        """The columns of each head that rotary positions rotate."""
        return int(self.head_dim * self.rope_fraction)

    @property
    def gated(self) -> bool:
        """Whether the MLP multiplies its hidden units by a gate (GLU variants, arXiv:2002.05202)."""
        return self.mlp.endswith("_gated")


def _expert_errors(c: ModelConfig) -> list[str]:
    """Returns one message per invalid field of a mixture of experts."""
    errors = []
    if c.experts_per_token > c.num_experts:
        errors.append(
            f"config.model.experts_per_token={c.experts_per_token} must be at most config.model.num_experts "
            f"({c.num_experts})"
        )
    if not c.expert_layers:
        errors.append(
            f"config.model.num_experts={c.num_experts} has no layer: config.model.dense_layers={c.dense_layers} and "
            f"config.model.expert_every={c.expert_every} leave none of config.model.num_layers={c.num_layers}; "
            f"expected dense_layers + expert_every of at most {c.num_layers}"
        )
    if c.mlp_bias:
        errors.append("config.model.mlp_bias=True is not supported with experts; expected False")
    return errors


def _rotary(c: ModelConfig, name: str) -> Rotary | None:
    """Returns the rotary kind that `rope_layers` calls `name`; fields that its scaling does not read are not set."""
    scaling, exact = c.rope_scaling, c.context_length > FLOAT32_POSITIONS
    if name == "none":
        return None
    if name == "local":
        return Rotary(c.rotary_width, c.rope_local_theta, exact=exact)
    if scaling == "none":
        return Rotary(c.rotary_width, c.rope_theta, exact=exact)
    fields: dict[str, Any] = {"scaling": scaling, "exact": exact}
    if scaling != "longrope":
        fields["factor"] = c.rope_scaling_factor
    if scaling != "linear":
        fields["original_context"] = c.rope_original_context
    if scaling == "llama3":
        fields |= {"low": c.rope_low_frequency_factor, "high": c.rope_high_frequency_factor}
    if scaling == "yarn":
        fields |= {"beta_fast": c.rope_beta_fast, "beta_slow": c.rope_beta_slow, "round_range": c.rope_round_range}
    if scaling == "longrope":
        fields |= {"short_factors": c.rope_short_factors, "long_factors": c.rope_long_factors}
    if scaling in ("yarn", "longrope"):
        paper = default_attention_factor(scaling, c.rope_scaling_factor, c.rope_original_context)
        fields["attention_factor"] = c.rope_attention_factor or paper
    return Rotary(c.rotary_width, c.rope_theta, **fields)


def _rotary_errors(c: ModelConfig) -> list[str]:
    """Returns one message per invalid field of rotary positions."""
    width, errors = c.rotary_width, []
    if width % 2 or width < 2:
        shown = f"config.model.head_dim={c.head_dim}"
        if c.rope_fraction != 1.0:
            shown = f"config.model.rope_fraction={c.rope_fraction} of {shown} is {width} columns, which"
        errors.append(f"{shown} must be even with rotary positions")
    if not c.rope_layers or not set(c.rope_layers) <= set(ROTARY_KINDS):
        errors.append(
            f"config.model.rope_layers={c.rope_layers} must be a non-empty tuple of "
            f"{', '.join(map(repr, ROTARY_KINDS))}"
        )
    positive = ["rope_theta", "rope_local_theta"]
    if c.rope_scaling != "none":
        positive += ["rope_scaling_factor", "rope_original_context"]
    if c.rope_scaling == "yarn":
        positive += ["rope_beta_fast", "rope_beta_slow"]
    errors += [
        f"config.model.{name}={getattr(c, name)} must be greater than 0" for name in positive if getattr(c, name) <= 0
    ]
    if c.rope_scaling == "dynamic" and width == 2:
        errors.append("config.model.rope_scaling='dynamic' needs more than 2 rotated columns per head")
    if c.rope_scaling == "longrope":
        if c.rope_original_context == 1:
            errors.append("config.model.rope_original_context=1 must be greater than 1 with rope_scaling='longrope'")
        errors += [
            f"config.model.{name} has {len(getattr(c, name))} values; expected {width // 2}, one per rotated pair"
            for name in ("rope_short_factors", "rope_long_factors")
            if len(getattr(c, name)) != width // 2 or min(getattr(c, name), default=0.0) <= 0
        ]
    return errors


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
