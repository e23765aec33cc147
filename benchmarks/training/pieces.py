"""Attention as whole products and in pieces, and the loss with all logits and in chunks, on a CPU, turn by turn.

python -m benchmarks.training.pieces

Each line is the value and the gradients of one layer's attention, or of the loss with its output table.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.training.products import draw, medians
from model.attend import xla
from model.losses import LossOptions, cross_entropy
from model.pieces import attend_in_pieces
from model.tiles import Scores

# Rows, tokens, heads, kv heads, width of a head.
_ATTENTION = ((4, 512, 8, 8, 64), (1, 2048, 8, 8, 64), (16, 256, 6, 6, 32), (8, 256, 4, 1, 256))
# Rows, tokens, width, symbols.
_LOSS = ((4, 512, 512, 32_000), (16, 256, 192, 4096), (16, 256, 192, 8192))


def main() -> None:
    """Prints the medians of both forms in both dtypes."""
    for dtype in (jnp.bfloat16, jnp.float32):
        for rows, tokens, heads, kv_heads, width in _ATTENTION:
            counts = heads, kv_heads, kv_heads, heads
            inputs = [draw(i, rows, tokens, n, width).astype(dtype) for i, n in enumerate(counts)]
            whole, pieces = medians([attention(form, tokens, width) for form in (_whole, attend_in_pieces)], *inputs)
            _show(f"attention {rows} x {tokens}, {heads} x {width}, {dtype.__name__}", whole, pieces)
        for rows, tokens, width, symbols in _LOSS:
            x, table = draw(0, rows, tokens, width).astype(dtype), draw(1, symbols, width)
            whole, chunks = medians([loss(chunk) for chunk in (tokens, 0)], x, table)
            _show(f"loss {rows} x {tokens} x {width}, {symbols:,} symbols, {dtype.__name__}", whole, chunks)
    print(f"jax {jax.__version__}")


def attention(form: Callable[..., jax.Array], tokens: int, width: int) -> Callable[..., Any]:
    """Returns the compiled (q, k, v, gradient of the output) -> the output and the gradients of q, k and v."""
    scores = Scores(width**-0.5, 0.0, 0, causal=True)

    def both(q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array) -> Any:
        segments = jnp.ones((len(q), tokens), jnp.int32)
        o, gradients = jax.vjp(lambda *x: form(scores, *x, segments), q, k, v)
        return o, gradients(g)

    return jax.jit(both)


def _whole(scores: Scores, q: jax.Array, k: jax.Array, v: jax.Array, segments_BT: jax.Array) -> jax.Array:
    B, T = segments_BT.shape
    return xla(q, k, v, jnp.broadcast_to(jnp.tri(T, dtype=bool), (B, T, T)), scores.scale, scores.softcap)


def loss(chunk: int) -> Callable[..., Any]:
    """Returns the compiled (x, table) -> the loss and its gradients; a chunk of 0: the default."""

    def value(x: jax.Array, table: jax.Array) -> jax.Array:
        tokens = x.shape[:2]
        targets = jnp.arange(x.shape[0] * x.shape[1]).reshape(tokens) % len(table)
        return cross_entropy(x, table, targets, jnp.ones(tokens), LossOptions(chunk=chunk)).objective

    return jax.jit(jax.value_and_grad(value, argnums=(0, 1)))


def _show(name: str, before: float, after: float) -> None:
    print(f"{name}: {before * 1e3:.0f} and {after * 1e3:.0f} ms, ratio {before / after:.2f}", flush=True)


if __name__ == "__main__":
    main()
