"""Products with a weight, in the form whose gradient is fast on one CPU.

The gradient of a weight is x^T g, a sum over tokens. Where tokens have two axes, batch and length, XLA reorders the
axes of g for that sum, and computes g anew, slowly, into this copy. In float32 a product is therefore one of two
matrices.

XLA also folds the transpose of x into that sum. Its bfloat16 kernels for CPUs (JAX 0.12) take plain products only, so
it then leaves this one to a library that is 2 to 5 times slower. In bfloat16 x^T is therefore a copy, which costs about
a hundredth of the product.

Accelerators and programs of several devices are compiled as if this file were not there.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from model.dtypes import on_one_cpu


def weight_product(equation: str, x: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns einsum(x, weight) in their dtype.

    Args:
        equation: e.g. "BTD,DNH->BTNH".
        x: its axes are the tokens', then the weight's inputs.
        weight: its axes are the inputs, then the outputs.
    """
    if _copies(x):
        return _with_copied_transpose(equation, x, weight)
    return _of_matrices(equation, x, weight) if on_one_cpu() else jnp.einsum(equation, x, weight)


def token_sum(equation: str, x: jax.Array, y: jax.Array, dtype: jnp.dtype | type = jnp.float32) -> jax.Array:
    """Returns einsum(x, y) in `dtype`, a sum over tokens: the gradient of a weight."""
    if _copies(x):
        equation, x = _summed_axes_last(equation, x)
    return jnp.einsum(equation, x, y, preferred_element_type=dtype)


def _of_matrices(equation: str, x: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns einsum(x, weight) as a product of two matrices; R rows, I inputs, O outputs."""
    x_axes, weight_axes = equation.split("->")[0].split(",")
    inputs = sum(axis in x_axes for axis in weight_axes)
    w_IO = weight.reshape(math.prod(weight.shape[:inputs]), -1)
    y_RO = x.reshape(-1, len(w_IO)) @ w_IO
    return y_RO.reshape(*x.shape[: x.ndim - inputs], *weight.shape[inputs:])


def _copies(x: jax.Array) -> bool:
    """Returns whether transposes of `x` are copied."""
    return x.dtype == jnp.bfloat16 and on_one_cpu()


def _summed_axes_last(equation: str, x: jax.Array) -> tuple[str, jax.Array]:
    """Returns the einsum with the axes of its first operand reordered, and a copy of `x` with these axes.

    The selection changes no value. XLA would remove a barrier, or a product by 1, before it folds transposes; it cannot
    know that this operation does nothing.
    """
    operands, output = equation.split("->")
    x_axes, y_axes = operands.split(",")
    order = "".join(sorted(x_axes, key=lambda axis: axis not in output))
    x = jnp.einsum(f"{x_axes}->{order}", x)
    return f"{order},{y_axes}->{output}", jnp.where(jnp.isnan(x), jnp.asarray(jnp.nan, x.dtype), x)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _with_copied_transpose(equation: str, x: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.einsum(equation, x, weight)


def _forward(equation: str, x: jax.Array, weight: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return jnp.einsum(equation, x, weight), (x, weight)


def _backward(equation: str, operands: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, weight = operands
    axes, y_axes = equation.split("->")
    x_axes, weight_axes = axes.split(",")
    return (
        jnp.einsum(f"{y_axes},{weight_axes}->{x_axes}", g, weight),
        token_sum(f"{x_axes},{y_axes}->{weight_axes}", x, g, weight.dtype),
    )


_with_copied_transpose.defvjp(_forward, _backward)
