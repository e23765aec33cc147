"""Attention on one CPU, in pieces whose scores stay in its caches, in rows of up to some thousand tokens.

The scores of all heads, queries and keys would pass through memory many times. Here some heads are taken at a time, and
of them some queries with only the keys that they can see. The backward pass computes the scores anew from the logarithm
of each softmax's denominator (arXiv:2307.08691, algorithm 2), with the keys first: then no product sums over the first
axis of a matrix, for which XLA would transpose the scores or leave its fast kernels (`products.py`).

B batch, T tokens of a row, N heads, K kv heads, G heads per kv head, H head dim, n kv heads of all rows at a time, C
queries of a piece, S keys of a piece.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from model.tiles import EMPTY, Scores, scaled_and_capped, within

QUERIES = 128  # of a piece; rows of so many tokens or fewer are no faster in pieces
_MOST_PIECES = 16  # of a row, because each is compiled: 2,048 tokens take seconds, instead of one
_BYTES = 2**21  # of a piece's scores; of 1, 2 and 4 MB the fastest in bfloat16, on two cores with 1 MB of cache each


class _Span(NamedTuple):
    """A piece's queries, and the keys that some of them can see."""

    queries: slice
    keys: slice


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend_in_pieces(
    scores: Scores, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, segments_BT: jax.Array
) -> jax.Array:
    """Returns o_BTNH of rows whose tokens are in the order of the text.

    Args:
        scores: which scores count, and how they are computed.
        q_BTNH: queries.
        k_BTKH: keys of the same tokens.
        v_BTKH: values.
        segments_BT: the tokens' segments; each is contiguous.
    """
    return _forward(scores, q_BTNH, k_BTKH, v_BTKH, segments_BT)[0]


class _Saved(NamedTuple):
    """What the backward pass reads of all heads, each array with the kv heads of all rows first."""

    q_nGTH: jax.Array
    k_nTH: jax.Array
    v_nTH: jax.Array
    segments_nT: jax.Array
    o_nGTH: jax.Array
    lse_nGT: jax.Array


def _forward(
    scores: Scores, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, segments_BT: jax.Array
) -> tuple[jax.Array, _Saved]:
    K = k_BTKH.shape[2]
    inputs = _by_head(q_BTNH, K), _by_head(k_BTKH, K)[:, 0], _by_head(v_BTKH, K)[:, 0], jnp.repeat(segments_BT, K, 0)

    def some_heads(inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        pieces = [_forward_piece(scores, span, *inputs) for span in _spans(scores, q_BTNH.shape[1])]
        o, lse = (jnp.concatenate(parts, axis=2) for parts in zip(*pieces, strict=True))
        return o, lse

    o_nGTH, lse_nGT = _over_heads(some_heads, inputs)
    return _by_token(o_nGTH, len(q_BTNH)), _Saved(*inputs, o_nGTH, lse_nGT)


def _forward_piece(
    scores: Scores, span: _Span, q_nGTH: jax.Array, k_nTH: jax.Array, v_nTH: jax.Array, segments_nT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns (o_nGCH, lse_nGC)."""
    q_nGCH, k_nSH, v_nSH = q_nGTH[:, :, span.queries], k_nTH[:, span.keys], v_nTH[:, span.keys]
    z_nGCS, _ = scaled_and_capped(scores, _split(_product("nXH,nSH->nXS", _flat(q_nGCH), k_nSH), q_nGCH))
    z_nGCS = jnp.where(_mask(scores, span, segments_nT, keys_first=False)[:, None], z_nGCS, EMPTY)
    largest_nGC1 = z_nGCS.max(-1, keepdims=True)
    p_nGCS = jnp.exp(z_nGCS - largest_nGC1)
    total_nGC1 = p_nGCS.sum(-1, keepdims=True)
    o_nGCH = _split(_product("nXS,nSH->nXH", _flat(p_nGCS.astype(v_nSH.dtype)), v_nSH), q_nGCH) / total_nGC1
    return o_nGCH.astype(q_nGTH.dtype), (largest_nGC1 + jnp.log(total_nGC1))[..., 0]


class _Inputs(NamedTuple):
    """What the backward pass reads of some heads.

    `inner_nGT` is the inner product of the output and its gradient. The transposed keys come from outside the loop over
    heads: XLA would fold a transpose next to the product, and then compute it without its fast kernels.
    """

    q_nGTH: jax.Array
    do_nGTH: jax.Array
    lse_nGT: jax.Array
    inner_nGT: jax.Array
    k_nTH: jax.Array
    k_nHT: jax.Array
    v_nTH: jax.Array
    segments_nT: jax.Array


def _backward(scores: Scores, saved: _Saved, do_BTNH: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    B, T, N, _ = do_BTNH.shape
    q_nGTH, k_nTH, v_nTH, segments_nT, o_nGTH, lse_nGT = saved
    do_nGTH = _by_head(do_BTNH, N // q_nGTH.shape[1])
    inner_nGT = (o_nGTH.astype(jnp.float32) * do_nGTH).sum(-1)
    k_nHT = jnp.swapaxes(k_nTH, 1, 2)

    def some_heads(inputs: _Inputs) -> tuple[jax.Array, jax.Array, jax.Array]:
        dk_nTH = dv_nTH = jnp.zeros(inputs.k_nTH.shape, jnp.float32)
        dq = []
        for span in _spans(scores, T):
            dq_nGHC, dk_nSH, dv_nSH = _backward_piece(scores, span, inputs)
            dk_nTH, dv_nTH = dk_nTH.at[:, span.keys].add(dk_nSH), dv_nTH.at[:, span.keys].add(dv_nSH)
            dq.append(dq_nGHC.astype(q_nGTH.dtype))
        return jnp.concatenate(dq, axis=3), dk_nTH.astype(k_nTH.dtype), dv_nTH.astype(v_nTH.dtype)

    inputs = _Inputs(q_nGTH, do_nGTH, lse_nGT, inner_nGT, k_nTH, k_nHT, v_nTH, segments_nT)
    dq_nGHT, dk_nTH, dv_nTH = _over_heads(some_heads, inputs)
    dq_BTNH = _by_token(jnp.swapaxes(dq_nGHT, 2, 3), B)
    return dq_BTNH, _by_token(dk_nTH[:, None], B), _by_token(dv_nTH[:, None], B), None


def _backward_piece(scores: Scores, span: _Span, inputs: _Inputs) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns what the piece adds to the gradients: (dq_nGHC, dk_nSH, dv_nSH) in float32."""
    q_nGCH, do_nGCH, lse_nGC, inner_nGC = (x[:, :, span.queries] for x in inputs[:4])
    k_nSH, k_nHS, v_nSH = inputs.k_nTH[:, span.keys], inputs.k_nHT[..., span.keys], inputs.v_nTH[:, span.keys]
    q_nXH, do_nXH = _flat(q_nGCH), _flat(do_nGCH)
    n, G, C, H = q_nGCH.shape

    def by_group(x_nSX: jax.Array) -> jax.Array:
        return x_nSX.reshape(n, -1, G, C)

    z_nSGC, slope = scaled_and_capped(scores, by_group(_product("nSH,nXH->nSX", k_nSH, q_nXH)))
    mask_nS1C = _mask(scores, span, inputs.segments_nT, keys_first=True)[:, :, None]
    p_nSGC = jnp.where(mask_nS1C, jnp.exp(z_nSGC - lse_nGC[:, None]), 0.0)
    dp_nSGC = by_group(_product("nSH,nXH->nSX", v_nSH, do_nXH))
    ds_nSX = (p_nSGC * (dp_nSGC - inner_nGC[:, None]) * slope).astype(q_nXH.dtype).reshape(n, -1, G * C)
    dv_nSH = _product("nSX,nXH->nSH", p_nSGC.astype(do_nXH.dtype).reshape(n, -1, G * C), do_nXH)
    dk_nSH = _product("nSX,nXH->nSH", ds_nSX, q_nXH)
    dq_nHX = _product("nHS,nSX->nHX", k_nHS, ds_nSX)
    return jnp.swapaxes(dq_nHX.reshape(n, H, G, C), 1, 2), dk_nSH, dv_nSH


attend_in_pieces.defvjp(_forward, _backward)


def _spans(scores: Scores, T: int) -> list[_Span]:
    """Returns the pieces of a row."""
    size, window = _queries(T), scores.window or T
    spans = []
    for start in range(0, T, size):
        end = min(start + size, T)
        last = end if scores.causal else min(end + window - 1, T)
        spans.append(_Span(slice(start, end), slice(max(start - window + 1, 0), last)))
    return spans


def _queries(T: int) -> int:
    """Returns the queries of a piece."""
    return max(QUERIES, -(-T // _MOST_PIECES))


def _mask(scores: Scores, span: _Span, segments_nT: jax.Array, *, keys_first: bool) -> jax.Array:
    """Returns mask_nCS, or mask_nSC, computed in this order because its transpose would take longer."""
    (q_nC, c), (k_nS, s) = ((segments_nT[:, part], jnp.arange(part.start, part.stop)) for part in span)
    if keys_first:
        return (k_nS[:, :, None] == q_nC[:, None]) & within(scores, c - s[:, None])
    return (q_nC[:, :, None] == k_nS[:, None]) & within(scores, c[:, None] - s)


def _over_heads(function: Callable[[Any], Any], inputs: Any) -> Any:  # noqa: ANN401 - trees of arrays
    """Returns `function` of inputs whose first is q_nGTH, applied to as many kv heads at a time as `_BYTES` allow."""
    heads, G, T, _ = jax.tree.leaves(inputs)[0].shape
    most = _BYTES // (4 * G * _queries(T) * T)
    n = next(n for n in range(min(max(most, 1), heads), 0, -1) if heads % n == 0)
    groups = jax.tree.map(lambda x: x.reshape(-1, n, *x.shape[1:]), inputs)
    return jax.tree.map(lambda x: x.reshape(heads, *x.shape[2:]), jax.lax.map(function, groups))


def _by_head(x_BTNH: jax.Array, K: int) -> jax.Array:
    """Returns x_nGTH, with K kv heads per row."""
    B, T, N, H = x_BTNH.shape
    return jnp.moveaxis(x_BTNH.reshape(B, T, K, N // K, H), 1, 3).reshape(B * K, N // K, T, H)


def _by_token(x_nGTH: jax.Array, B: int) -> jax.Array:
    """Returns x_BTNH, the inverse of `_by_head`."""
    _, G, T, H = x_nGTH.shape
    return jnp.moveaxis(x_nGTH.reshape(B, -1, G, T, H), 3, 1).reshape(B, T, -1, H)


def _flat(x_nGCH: jax.Array) -> jax.Array:
    """Returns x_nXH: the queries of a kv head as one matrix, X = G x C."""
    return x_nGCH.reshape(len(x_nGCH), -1, x_nGCH.shape[-1])


def _split(x_nXH: jax.Array, like_nGCH: jax.Array) -> jax.Array:
    """Returns x_nGCH, the inverse of `_flat`."""
    return x_nXH.reshape(*like_nGCH.shape[:3], -1)


def _product(formula: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(formula, a, b, preferred_element_type=jnp.float32)
