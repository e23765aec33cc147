"""The gradient of a weight in bfloat16 on a CPU, as XLA folds it and as `model/products.py` writes it, turn by turn.

python -m benchmarks.training.products
"""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from model.products import weight_product

_TOKENS = (4, 512)
_SHAPES = ((512, 1408), (1408, 512), (512, 512))
_TURNS, _CALLS = 9, 3


def gradient_of(product: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Returns the compiled gradient (x, g, weight) -> weight's."""

    def gradient(x: jax.Array, g: jax.Array, weight: jax.Array) -> jax.Array:
        found: jax.Array = jax.vjp(lambda weight: product("BTD,DF->BTF", x, weight), weight)[1](g)[0]
        return found

    return jax.jit(gradient)


def main() -> None:
    """Prints the medians of both forms for each shape of the weight."""
    sides = [gradient_of(product) for product in (jnp.einsum, weight_product)]
    for rows, columns in _SHAPES:
        x, g, weight = (
            jax.random.normal(jax.random.key(i), shape).astype(jnp.bfloat16)
            for i, shape in enumerate(((*_TOKENS, rows), (*_TOKENS, columns), (rows, columns)))
        )
        seconds: list[list[float]] = [[], []]
        for turn in range(_TURNS + 1):
            for side, times in zip(sides, seconds, strict=True):
                start = time.perf_counter()
                for _ in range(_CALLS):
                    side(x, g, weight).block_until_ready()
                if turn:
                    times.append((time.perf_counter() - start) / _CALLS)
        work = 2 * x.size * columns / 1e9
        folded, copied = (work / statistics.median(times) for times in seconds)
        print(
            f"{rows} x {columns}: folded {folded:.0f} GFLOP/s, copied {copied:.0f}, ratio {copied / folded:.2f}",
            flush=True,
        )
    print(f"jax {jax.__version__}")


if __name__ == "__main__":
    main()
