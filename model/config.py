"""`ModelConfig`: every number and switch that defines the network, validated when it is built."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from configs.errors import UserError
from configs.schema import build

# How a model runs on a machine, not what it computes: free to differ between two runs of one checkpoint.
EXECUTION_FIELDS = ("compute_dtype", "cache_dtype", "attention", "scan_layers", "remat")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer; field meanings and units stand in `configs/default.py`."""

    vocab_size: int
    embed_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    context_length: int
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
    compute_dtype: Literal["auto", "float32", "bfloat16"]
    cache_dtype: Literal["auto", "bfloat16", "int8"]
    attention: Literal["auto", "xla", "cudnn", "splash"]
    scan_layers: bool
    remat: Literal["none", "dots", "full", "offload"]

    def __post_init__(self) -> None:
        faults = [
            f"config.model.{name} is {getattr(self, name)}; legal: at least 1"
            for name in (
                *("vocab_size", "embed_dim", "num_layers", "num_heads"),
                *("num_kv_heads", "head_dim", "mlp_dim", "context_length"),
            )
            if getattr(self, name) < 1
        ]
        if not faults and self.num_heads % self.num_kv_heads:
            legal = [k for k in range(1, self.num_heads + 1) if self.num_heads % k == 0]
            faults.append(
                f"config.model.num_kv_heads is {self.num_kv_heads}; legal for {self.num_heads} heads: {legal}"
            )
        if self.position == "rope" and self.head_dim % 2:
            faults.append(f"config.model.head_dim is {self.head_dim}; legal: an even number, for rotary positions")
        if not self.sliding_window or min(self.sliding_window) < 0:
            faults.append(
                f"config.model.sliding_window is {self.sliding_window}; legal: window lengths, 0 meaning global"
            )
        if faults:
            raise UserError("; ".join(faults))

    @property
    def windows(self) -> tuple[int, ...]:
        """The sliding window of each layer in tokens, 0 meaning global: the pattern repeated over the layers."""
        pattern = self.sliding_window
        return tuple(pattern[i % len(pattern)] for i in range(self.num_layers))

    @property
    def window_period(self) -> tuple[int, ...]:
        """The shortest run of layers' windows whose repetition, a whole number of times, is `windows`."""
        sizes = (size for size in range(1, self.num_layers) if self.num_layers % size == 0)
        repeats = (self.windows[:size] for size in sizes)
        return next((p for p in repeats if p * (self.num_layers // len(p)) == self.windows), self.windows)

    @property
    def gated(self) -> bool:
        """Whether the MLP multiplies a gate into its hidden units (GLU variants, arXiv:2002.05202)."""
        return self.mlp.endswith("_gated")


def model_config(section: Mapping[str, Any]) -> ModelConfig:
    """Returns the `ModelConfig` of `config.model`, with `head_dim` 0 filled in as embed_dim / num_heads.

    Raises:
        UserError: a field is unknown, missing, mistyped or out of range.
    """
    values = dict(section)
    if values.get("head_dim") == 0 and values.get("num_heads"):
        if values["embed_dim"] % values["num_heads"]:
            raise UserError(
                f"config.model.num_heads is {values['num_heads']}; "
                f"legal: a divisor of embed_dim {values['embed_dim']}, or set head_dim"
            )
        values["head_dim"] = values["embed_dim"] // values["num_heads"]
    return build(ModelConfig, values, "config.model")


def architecture_difference(ours: ModelConfig, theirs: ModelConfig) -> list[str]:
    """Returns "field: ours != theirs" for each field that changes what the network computes."""
    names = [f.name for f in dataclasses.fields(ModelConfig) if f.name not in EXECUTION_FIELDS]
    pairs = [(name, getattr(ours, name), getattr(theirs, name)) for name in names]
    return [f"{name}: {a!r} != {b!r}" for name, a, b in pairs if a != b]


def matmul_parameters(config: ModelConfig) -> int:
    """Returns the number of weights that multiply an activation of every token, the vocabulary matrix included."""
    attention = config.embed_dim * config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    mlp = config.embed_dim * config.mlp_dim * (3 if config.gated else 2)
    return config.num_layers * (attention + mlp) + config.vocab_size * config.embed_dim


def training_flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """Returns model FLOPs a token of one training step: forward and backward, no rematerialisation.

    6 per matmul weight, plus 12 * layers * heads * head_dim * context for QK and AV (PaLM, arXiv:2204.02311,
    appendix B), where context is the mean number of keys a causal query sees in its window.
    """
    keys = visible_pairs(config, sequence_length) * config.num_layers * sequence_length
    return 6 * matmul_parameters(config) + 12 * config.num_heads * config.head_dim * keys


def visible_pairs(config: ModelConfig, sequence_length: int) -> float:
    """Returns which part of all (query, key) pairs of a row the causal windows show, the mean over the layers."""
    keys = sum(_mean_keys(window, sequence_length) for window in config.windows)
    return keys / (config.num_layers * sequence_length)


def _mean_keys(window: int, length: int) -> float:
    reach = min(window or length, length)
    return (reach * (reach + 1) / 2 + (length - reach) * reach) / length
