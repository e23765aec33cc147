"""Gradients of weights on a CPU, as XLA computes them and in the forms of `model/products.py`, turn by turn.

python -m benchmarks.training.products

First one product in bfloat16, then forward and backward pass of a gated MLP in float32: with all of its weights
trained, and with those of LoRA of rank 16 beside frozen ones.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from model.layers import activated
from model.products import weight_product

_TOKENS = (4, 512)
_SHAPES = ((512, 1408), (1408, 512), (512, 512))
_EMBED, _MLP, _RANK = 640, 2048, 16
_EQUATION = "BTI,IO->BTO"
_TURNS, _CALLS = 9, 3

Product = Callable[[str, jax.Array, jax.Array], jax.Array]


def main() -> None:
    """Prints the medians of both forms."""
    for rows, columns in _SHAPES:
        x, weight, g = (
            draw(i, *shape).astype(jnp.bfloat16)
            for i, shape in enumerate(((*_TOKENS, rows), (rows, columns), (*_TOKENS, columns)))
        )
        plain, own = medians([weight_gradient(product) for product in (jnp.einsum, weight_product)], weight, x, g)
        work = 2 * x.size * columns / 1e9
        print(
            f"{rows} x {columns}: folded {work / plain:.0f} GFLOP/s, copied {work / own:.0f}, ratio {plain / own:.2f}",
            flush=True,
        )
    shapes = {"gate": (_EMBED, _MLP), "up": (_EMBED, _MLP), "down": (_MLP, _EMBED)}
    kernels = {name: draw(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    factors = {name: (draw(3, rows, _RANK), draw(4, _RANK, columns)) for name, (rows, columns) in shapes.items()}
    x = draw(5, *_TOKENS, _EMBED)
    for title, gradient in (("all weights", mlp_gradient), ("LoRA", lora_gradient)):
        plain, own = medians([gradient(product) for product in (jnp.einsum, weight_product)], x, kernels, factors)
        print(
            f"MLP, {title}: {plain * 1e3:.0f} ms, as matrices {own * 1e3:.0f} ms, ratio {plain / own:.2f}", flush=True
        )
    print(f"jax {jax.__version__}")


def draw(seed: int, *shape: int) -> jax.Array:
    """Returns small normal numbers."""
    return 0.05 * jax.random.normal(jax.random.key(seed), shape)


def weight_gradient(product: Product) -> Callable[..., Any]:
    """Returns the compiled gradient (weight, x, g) -> weight's."""
    return jax.jit(lambda weight, x, g: jax.vjp(lambda w: product("BTD,DF->BTF", x, w), weight)[1](g)[0])


def mlp_gradient(product: Product) -> Callable[..., Any]:
    """Returns the compiled gradient (x, kernels, factors) -> of x and kernels."""
    return jax.jit(
        jax.grad(lambda x, kernels, _: _mlp(lambda name, x: product(_EQUATION, x, kernels[name]), x), (0, 1))
    )


def lora_gradient(product: Product) -> Callable[..., Any]:
    """Returns the compiled gradient (x, kernels, factors) -> of x and factors."""

    def loss(x: jax.Array, kernels: dict[str, jax.Array], factors: dict[str, Any]) -> jax.Array:
        def of(name: str, x: jax.Array) -> jax.Array:
            a, b = factors[name]
            return product(_EQUATION, x, kernels[name]) + product(_EQUATION, product(_EQUATION, x, a), b)

        return _mlp(of, x)

    return jax.jit(jax.grad(loss, (0, 2)))


def _mlp(product: Callable[[str, jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    return jnp.square(product("down", activated("gelu_gated", product("gate", x), product("up", x)))).sum()


def medians(sides: Sequence[Callable[..., Any]], *operands: Any) -> list[float]:
    """Returns the median seconds of each side."""
    seconds: list[list[float]] = [[] for _ in sides]
    for turn in range(_TURNS + 1):
        for side, times in zip(sides, seconds, strict=True):
            start = time.perf_counter()
            for _ in range(_CALLS):
                jax.block_until_ready(side(*operands))
            if turn:
                times.append((time.perf_counter() - start) / _CALLS)
    return [statistics.median(times) for times in seconds]


if __name__ == "__main__":
    main()
