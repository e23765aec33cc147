"""The building blocks of a decoder layer: norms, projections and the MLP.

B batch, T length, D embed, N heads, K kv heads, H head dim, F mlp.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from model.config import ModelConfig
from model.products import weight_product
from model.quantization import is_quantized, quantized_product
from model.sharding import with_axes

# The backward pass recomputes norms and activations from their inputs: results of products, which are saved anyway.
_recomputed = partial(partial, jax.checkpoint, prevent_cse=False)


class Norm(nn.Module):
    """RMSNorm (arXiv:1910.07467) or LayerNorm over the last axis, computed in float32; returns the input's dtype."""

    config: ModelConfig
    axis: str = "norm"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `x` normalized; same shape and dtype."""
        cfg = self.config
        unit = nn.initializers.zeros if cfg.norm_unit_offset else nn.initializers.ones
        scale = self.param("scale", with_axes(unit, self.axis), x.shape[-1:])
        has_bias = cfg.norm == "layernorm" and cfg.norm_bias
        bias = self.param("bias", with_axes(nn.initializers.zeros, self.axis), x.shape[-1:]) if has_bias else None
        return _normalized(cfg, x, scale, bias)


@_recomputed(static_argnums=0)
def _normalized(cfg: ModelConfig, x: jax.Array, scale: jax.Array, bias: jax.Array | None) -> jax.Array:
    y = x.astype(jnp.float32)
    if cfg.norm == "layernorm":
        y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + cfg.norm_epsilon)
    y = y * (1.0 + scale if cfg.norm_unit_offset else scale)
    return (y if bias is None else y + bias).astype(x.dtype)


class Projection(nn.Module):
    """A linear map as an einsum with one weight, plus an optional bias; every matrix of the layers is one of these.

    Attributes:
        equation: the einsum, e.g. "BTD,DNH->BTNH".
        shape: shape of the weight.
        names: logical axes of the weight.
        std: standard deviation of the initial weight; 0 initializes it to zero.
        bias_axes: number of trailing weight axes that the bias has; 0: no bias.
    """

    equation: str
    shape: tuple[int, ...]
    names: tuple[str, ...]
    std: float
    bias_axes: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns einsum(x, kernel) + bias in the dtype of `x`."""
        kernel: Any = self.get_variable("params", "kernel")
        if is_quantized(kernel):
            y = quantized_product(self.equation, x, kernel)
        else:
            kernel = self.param("kernel", with_axes(nn.initializers.normal(self.std), *self.names), self.shape)
            y = weight_product(self.equation, x, kernel.astype(x.dtype))
        if self.has_variable("params", "lora_a"):
            y = y + self._low_rank(x)
        if self.bias_axes:
            tail = slice(len(self.shape) - self.bias_axes, None)
            bias = self.param("bias", with_axes(nn.initializers.zeros, *self.names[tail]), self.shape[tail])
            y = (y + bias).astype(x.dtype)  # the bias is added in float32: its gradient is a sum over all tokens
        return y

    def _low_rank(self, x: jax.Array) -> jax.Array:
        """Returns (x A) B with the LoRA factors that `model/adapt.py` adds beside the kernel."""
        operands, y_axes = self.equation.split("->")
        x_axes, kernel_axes = operands.split(",")
        a_axes, b_axes = (
            "".join(axis for axis in kernel_axes if (axis in x_axes) == inside) for inside in (True, False)
        )
        factors: Any = [self.get_variable("params", name) for name in ("lora_a", "lora_b")]
        a, b = (factor.astype(x.dtype) for factor in factors)
        batch_axes = "".join(axis for axis in x_axes if axis not in kernel_axes)
        low = weight_product(f"{x_axes},{a_axes}r->{batch_axes}r", x, a)
        return weight_product(f"{batch_axes}r,r{b_axes}->{y_axes}", low, b)


def scaled(x: jax.Array, factor: float) -> jax.Array:
    """Returns x times a constant that is not rounded to the dtype of `x`, in that dtype."""
    return x if factor == 1.0 else (x.astype(jnp.float32) * factor).astype(x.dtype)


def output_std(config: ModelConfig, fan_in: int) -> float:
    """Returns the initial standard deviation of a projection that writes to the residual stream.

    "zero" makes every block the identity at the start (arXiv:1901.09321); "scaled" divides by sqrt(2 * layers), so
    that the stream's variance does not grow with depth (GPT-2 report, section 2.3).
    """
    return 0.0 if config.output_init == "zero" else (2 * config.num_layers * fan_in) ** -0.5


_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu_gated": nn.silu,
    "gelu_gated": nn.gelu,
    "gelu": nn.gelu,
    "gelu_exact": partial(nn.gelu, approximate=False),
    "relu2": lambda x: jnp.square(nn.relu(x)),
}


@_recomputed(static_argnums=0)
def activated(name: str, x_BTF: jax.Array, gated_BTF: jax.Array | None = None) -> jax.Array:
    """Returns the activation of `x`, times `gated` in a gated MLP."""
    y_BTF = _ACTIVATIONS[name](x_BTF)
    return y_BTF if gated_BTF is None else y_BTF * gated_BTF


class MLP(nn.Module):
    """The feed-forward block: gated SiLU or GELU (arXiv:2002.05202), plain GELU, or squared ReLU (arXiv:2109.08668).

    Attributes:
        config: the model.
        width: hidden width; 0: `config.mlp_dim`.
    """

    config: ModelConfig
    width: int = 0

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Returns y_BTD."""
        cfg = self.config
        D, F, bias = cfg.embed_dim, self.width or cfg.mlp_dim, int(cfg.mlp_bias)
        up = Projection("BTD,DF->BTF", (D, F), ("embed", "mlp"), D**-0.5, bias, name="up")
        h_BTF = up(x_BTD)
        if cfg.gated:
            gate = Projection("BTD,DF->BTF", (D, F), ("embed", "mlp"), D**-0.5, bias, name="gate")
            h_BTF = activated(cfg.mlp, gate(x_BTD), h_BTF)
        else:
            h_BTF = activated(cfg.mlp, h_BTF)
        std = output_std(cfg, fan_in=F)
        return Projection("BTF,FD->BTD", (F, D), ("mlp", "embed"), std, bias, name="down")(h_BTF)
