"""Quantized kernels of a frozen base model: int8 with a scale per output, or NF4 with a scale per block of 64 inputs.

A quantized kernel is a dict in the kernel's place. L layers (absent inside a layer), I input axes, O output axes:

    int8   "codes" int8 (L, I, O), "scales" float32 (L, O)                 code * scale, with the largest at 127
    nf4    "codes" uint8 (L, I, O) with the last input axis halved,        level[code] * scale
           "block_scales" bfloat16 (L, blocks, O)

NF4 (QLoRA, arXiv:2305.14314, section 3) has 16 levels: quantiles of a normal distribution, scaled to [-1, 1], one of
them 0. The inputs of an output are divided into blocks of 64 in their order; a byte holds weight i of a block in its
low four bits and weight i + 32 in its high ones. That is 4.25 bits per weight. The scales themselves are not quantized
(the paper's "double quantization").
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from configs.errors import UserError
from model.adaptation import Quantization
from model.products import weight_product
from model.sharding import BLOCK_SCALES, is_partitioned

Kernel = dict[str, Any]

BLOCK = 64
# arXiv:2305.14314, appendix E.
NF4_LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_LARGEST = 127
_CODES, _SCALES = "codes", "scales"


def is_quantized(kernel: object) -> bool:
    """Returns whether what is called "kernel" is a quantized one."""
    return isinstance(kernel, dict)


def quantize_layers(layers: dict[str, Any], how: Quantization) -> dict[str, Any]:
    """Returns the stacked layers with every kernel quantized, boxed ones with their axes; quantized ones stay.

    Raises:
        UserError: a kernel of experts, or one whose inputs do not divide into blocks.
    """

    def leaf(name: str, kernel: Any) -> Kernel:  # noqa: ANN401 - an array, boxed or not
        inputs = _input_axes(name)
        if not is_partitioned(kernel):
            return _stacked(partial(quantize, how=how, inputs=inputs, name=name), kernel)
        if "experts" in kernel.names:
            raise UserError(
                f"config.adapt.base_quantization={how!r} is not supported for {name!r}, a matrix of the model's "
                "experts; expected 'none'"
            )
        names, make = kernel.names, type(kernel)
        found = _stacked(partial(quantize, how=how, inputs=inputs, name=name), kernel.value)
        outputs = names[1 + inputs :]
        axes = {_CODES: names, _SCALES: ("layers", *outputs), BLOCK_SCALES: ("layers", names[1], *outputs)}
        return {key: make(value, axes[key]) for key, value in found.items()}

    return _map_kernels(layers, lambda name, kernel: kernel if is_quantized(kernel) else leaf(name, kernel))


def dequantize_layers(layers: dict[str, Any]) -> dict[str, Any]:
    """Returns the stacked layers with every quantized kernel as the float32 array that the model computes with."""

    def leaf(name: str, kernel: Any) -> Any:  # noqa: ANN401 - an array or a quantized kernel
        if not is_quantized(kernel):
            return kernel
        return _stacked(partial(dequantize, inputs=_input_axes(name), dtype=jnp.float32), kernel)

    return _map_kernels(layers, leaf)


def quantize(kernel: jax.Array, how: Quantization, inputs: int, name: str = "kernel") -> Kernel:
    """Returns one layer's kernel, quantized; its first `inputs` axes are summed over in the product.

    Raises:
        UserError: the inputs of an NF4 kernel do not divide into blocks; the error has its `name`.
    """
    shape, kernel = kernel.shape, kernel.astype(jnp.float32)
    if how == "int8":
        scales = jnp.abs(kernel).max(tuple(range(inputs))) / _LARGEST
        codes = jnp.round(kernel / _nonzero(scales)).clip(-_LARGEST, _LARGEST).astype(jnp.int8)
        return {_CODES: codes, _SCALES: scales}
    flat = kernel.reshape(-1, *shape[inputs:])
    if len(flat) % BLOCK or shape[inputs - 1] % 2:
        raise UserError(
            f"config.adapt.base_quantization='nf4' needs a multiple of {BLOCK} inputs in every matrix, but {name!r} "
            f"has {len(flat)}; use 'int8'"
        )
    blocks = flat.reshape(-1, BLOCK, *shape[inputs:])
    scales = jnp.abs(blocks).max(1).astype(jnp.bfloat16)
    unit = blocks / _nonzero(scales.astype(jnp.float32))[:, None]
    middles = [(low + high) / 2 for low, high in itertools.pairwise(NF4_LEVELS)]
    codes = sum(((unit > middle).astype(jnp.uint8) for middle in middles), jnp.zeros(unit.shape, jnp.uint8))
    low, high = jnp.split(codes, 2, axis=1)
    return {_CODES: (low | high << 4).reshape(_halved(shape, inputs)), BLOCK_SCALES: scales}


def dequantize(kernel: Kernel, inputs: int, dtype: jnp.dtype | type) -> jax.Array:
    """Returns one layer's kernel, computed in float32 and rounded to `dtype` once."""
    codes = kernel[_CODES]
    if _SCALES in kernel:
        return (codes.astype(jnp.float32) * kernel[_SCALES]).astype(dtype)
    outputs = codes.shape[inputs:]
    packed = codes.reshape(-1, BLOCK // 2, *outputs)
    levels = _level(jnp.concatenate([packed & 15, packed >> 4], axis=1))
    values = levels * kernel[BLOCK_SCALES].astype(jnp.float32)[:, None]
    shape = (*codes.shape[: inputs - 1], 2 * codes.shape[inputs - 1], *outputs)
    return values.reshape(shape).astype(dtype)


# Without the checkpoint, the backward pass would keep the dequantized kernels of all layers.
@partial(jax.checkpoint, static_argnums=0)
def quantized_product(equation: str, x: jax.Array, kernel: Kernel) -> jax.Array:
    """Returns einsum(x, the dequantized kernel) in the dtype of `x`; the kernel is dequantized in each pass again."""
    x_axes, kernel_axes = equation.split("->")[0].split(",")
    inputs = sum(axis in x_axes for axis in kernel_axes)
    return weight_product(equation, x, dequantize(kernel, inputs, x.dtype))


def _level(codes: jax.Array) -> jax.Array:
    """Returns the level of each code by four rounds of selects: a TPU looks up a table one element at a time."""
    levels: list[Any] = [jnp.float32(level) for level in NF4_LEVELS]
    for bit in range(4):
        is_set = (codes >> bit & 1).astype(bool)
        levels = [jnp.where(is_set, high, low) for low, high in zip(levels[::2], levels[1::2], strict=True)]
    found: jax.Array = levels[0]
    return found


def _stacked(function: Callable[[Any], Any], kernel: Any) -> Any:  # noqa: ANN401 - trees of arrays
    """Returns `function` of each layer, stacked: one layer at a time, so that no intermediate value is whole."""
    return jax.lax.map(function, kernel)


def _map_kernels(tree: dict[str, Any], function: Callable[[str, Any], Any], name: str = "") -> dict[str, Any]:
    """Returns the tree with each kernel replaced by `function(name of its module, kernel)`."""
    return {
        key: function(name, part)
        if key == "kernel"
        else _map_kernels(part, function, key)
        if isinstance(part, dict)
        else part
        for key, part in tree.items()
    }


def _input_axes(name: str) -> int:
    """Returns the number of input axes of the projection called `name`: attention's output reads heads x head_dim."""
    return 2 if name == "output" else 1


def _halved(shape: tuple[int, ...], inputs: int) -> tuple[int, ...]:
    return (*shape[: inputs - 1], shape[inputs - 1] // 2, *shape[inputs:])


def _nonzero(scales: jax.Array) -> jax.Array:
    """Returns the scales to divide by: 1 where all weights are zero."""
    return jnp.where(scales > 0, scales, 1.0)
