"""Attention of a block of queries to a block of keys, in memory that does not grow with their product.

Both blocks are cut into chunks. A pair of chunks is multiplied only if some query of the one attends to some key of the
other; the softmax is accumulated with a running maximum (arXiv:2205.14135, algorithm 1). `forward` also returns the
logarithm of each softmax's denominator, from which parts over different keys are merged and gradients are computed.

B batch, T queries, S keys, N heads, K kv heads, G heads per kv head, H head dim, n chunks, C tokens per chunk.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# The logarithm of an empty sum. It is finite, so that a difference of two is not NaN.
EMPTY = -1e30
_LARGEST_CHUNK, _SMALLEST_CHUNK = 512, 64
_PADDING = jnp.iinfo(jnp.int32).max


@dataclasses.dataclass(frozen=True)
class Scores:
    """How scores are computed and which of them count; static.

    Attributes:
        scale: factor of q k^T.
        softcap: scores become softcap * tanh(scores / softcap); 0: off.
        window: sliding window in tokens; 0: no limit.
        causal: whether queries attend to earlier keys only.
    """

    scale: float
    softcap: float
    window: int
    causal: bool


class Block(NamedTuple):
    """Consecutive tokens of a row.

    Attributes:
        segments_BT: each token's segment; 0 is padding.
        start: column of the first token in the row.
    """

    segments_BT: jax.Array
    start: jax.Array


class Keys(NamedTuple):
    """The keys and values of a block, or their gradients."""

    k_BSKH: jax.Array
    v_BSKH: jax.Array


def is_visible(scores: Scores, queries: Block, keys: Block) -> jax.Array:
    """Returns whether a query may attend to a key: true if one does; the ids of segments rise along a row."""
    (q_lo, q_hi), (k_lo, k_hi) = (_range(block.segments_BT) for block in (queries, keys))
    q_last, k_last = (block.start + block.segments_BT.shape[1] - 1 for block in (queries, keys))
    visible = jnp.any((q_lo <= k_hi) & (k_lo <= q_hi))
    if scores.causal:
        visible &= keys.start <= q_last
    if scores.window:
        visible &= queries.start - k_last < scores.window
    if scores.window and not scores.causal:
        visible &= keys.start - q_last < scores.window
    return visible


def _range(segments_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Padding follows the last segment.
    ids_BT = jnp.where(segments_BT == 0, _PADDING, segments_BT)
    return ids_BT.min(1), ids_BT.max(1)


def forward(scores: Scores, q_BTNH: jax.Array, own: Keys, queries: Block, keys: Block) -> tuple[jax.Array, jax.Array]:
    """Returns (o_BTNH, lse_BTN) in float32: attention to these keys alone, and the logarithm of its denominator.

    Queries that attend to none of the keys have o = 0 and lse = `EMPTY`.
    """
    key_chunks = _key_chunks(own, keys)

    def of_queries(_: None, chunk: tuple[jax.Array, Block]) -> tuple[None, tuple[jax.Array, jax.Array]]:
        q_BKGCH, block = chunk

        def add(state: _Softmax, chunk: tuple[Keys, Block]) -> tuple[_Softmax, None]:
            keys, key_block = chunk
            return jax.lax.cond(
                is_visible(scores, block, key_block),
                lambda state: _added(scores, state, q_BKGCH, keys, _mask(scores, block, key_block)),
                lambda state: state,
                state,
            ), None

        empty = jnp.zeros(q_BKGCH.shape[:-1], jnp.float32)
        state = _Softmax(jnp.zeros(q_BKGCH.shape, jnp.float32), empty, empty + EMPTY)
        state, _ = jax.lax.scan(add, state, key_chunks)
        total = jnp.maximum(state.total_BKGC, jnp.finfo(jnp.float32).tiny)
        some = state.total_BKGC > 0
        return None, (state.o_BKGCH / total[..., None], jnp.where(some, state.max_BKGC + jnp.log(total), EMPTY))

    chunks = _query_chunks(q_BTNH, own.k_BSKH.shape[2]), _block_chunks(queries)
    _, (o_nBKGCH, lse_nBKGC) = jax.lax.scan(of_queries, None, chunks)
    return _joined(o_nBKGCH), _joined(lse_nBKGC[..., None])[..., 0]


class _Softmax(NamedTuple):
    """Sums over the keys so far: of exp(score - max) v, of exp(score - max), and the largest score."""

    o_BKGCH: jax.Array
    total_BKGC: jax.Array
    max_BKGC: jax.Array


def _added(scores: Scores, state: _Softmax, q_BKGCH: jax.Array, keys: Keys, mask_BCS: jax.Array) -> _Softmax:
    z, _ = _logits(scores, q_BKGCH, keys.k_BSKH)
    largest = jnp.maximum(state.max_BKGC, jnp.where(mask_BCS[:, None, None], z, EMPTY).max(-1))
    p_BKGCS = jnp.where(mask_BCS[:, None, None], jnp.exp(z - largest[..., None]), 0.0)
    rescale = jnp.exp(state.max_BKGC - largest)
    o_BKGCH = jnp.einsum(
        "BKGCS,BSKH->BKGCH", p_BKGCS.astype(keys.v_BSKH.dtype), keys.v_BSKH, preferred_element_type=jnp.float32
    )
    return _Softmax(state.o_BKGCH * rescale[..., None] + o_BKGCH, state.total_BKGC * rescale + p_BKGCS.sum(-1), largest)


class Result(NamedTuple):
    """What the backward pass reads about a block of queries, over all keys.

    Attributes:
        o_BTNH: the output.
        do_BTNH: its gradient.
        lse_BTN: logarithm of each softmax's denominator.
    """

    o_BTNH: jax.Array
    do_BTNH: jax.Array
    lse_BTN: jax.Array


def backward(
    scores: Scores, q_BTNH: jax.Array, own: Keys, queries: Block, keys: Block, result: Result
) -> tuple[jax.Array, Keys]:
    """Returns (dq_BTNH, the gradients of keys and values) in float32: what these queries and keys add to each."""
    K = own.k_BSKH.shape[2]
    key_chunks = _key_chunks(own, keys)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), key_chunks[0])

    def of_queries(total: Keys, chunk: Any) -> tuple[Keys, jax.Array]:  # noqa: ANN401 - queries, three arrays, a block
        q_BKGCH, do_BKGCH, lse_BKGC1, inner_BKGC1, block = chunk

        def add(dq: jax.Array, chunk: tuple[tuple[Keys, Block], Keys]) -> tuple[jax.Array, Keys]:
            (keys, key_block), gradients = chunk

            def added(dq: jax.Array, gradients: Keys) -> tuple[jax.Array, Keys]:
                z, slope = _logits(scores, q_BKGCH, keys.k_BSKH)
                seen = _mask(scores, block, key_block)[:, None, None]
                p = jnp.where(seen, jnp.exp(z - lse_BKGC1), 0.0)
                dp = _product("BKGCH,BSKH->BKGCS", do_BKGCH, keys.v_BSKH)
                ds = (p * (dp - inner_BKGC1) * slope).astype(q_BKGCH.dtype)
                dk = _product("BKGCS,BKGCH->BSKH", ds, q_BKGCH)
                dv = _product("BKGCS,BKGCH->BSKH", p.astype(do_BKGCH.dtype), do_BKGCH)
                dq += _product("BKGCS,BSKH->BKGCH", ds, keys.k_BSKH)
                return dq, Keys(gradients.k_BSKH + dk, gradients.v_BSKH + dv)

            visible = is_visible(scores, block, key_block)
            return jax.lax.cond(visible, added, lambda dq, gradients: (dq, gradients), dq, gradients)

        zero = jnp.zeros(q_BKGCH.shape, jnp.float32)
        dq, total = jax.lax.scan(add, zero, (key_chunks, total))
        return total, dq

    inner_BTN1 = (result.o_BTNH.astype(jnp.float32) * result.do_BTNH).sum(-1, keepdims=True)
    columns = q_BTNH, result.do_BTNH.astype(q_BTNH.dtype), result.lse_BTN[..., None], inner_BTN1
    chunks = *(_query_chunks(x, K) for x in columns), _block_chunks(queries)
    total, dq_nBKGCH = jax.lax.scan(of_queries, zeros, chunks)
    return _joined(dq_nBKGCH), jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(own.k_BSKH.shape), total)


def _logits(scores: Scores, q_BKGCH: jax.Array, k_BSKH: jax.Array) -> tuple[jax.Array, jax.Array | float]:
    """Returns (the scores of each query and key, their derivatives with respect to q k^T)."""
    return scaled_and_capped(scores, _product("BKGCH,BSKH->BKGCS", q_BKGCH, k_BSKH))


def scaled_and_capped(scores: Scores, products: jax.Array) -> tuple[jax.Array, jax.Array | float]:
    """Returns (the scores of these q k^T, scaled and capped, and their derivatives with respect to them)."""
    z = products * scores.scale
    if not scores.softcap:
        return z, scores.scale
    ratio = jnp.tanh(z / scores.softcap)
    return scores.softcap * ratio, scores.scale * (1.0 - jnp.square(ratio))


def _product(formula: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(formula, a, b, preferred_element_type=jnp.float32)


def _mask(scores: Scores, queries: Block, keys: Block) -> jax.Array:
    """Returns mask_BTS. Columns order a segment's tokens as positions do, because segments are contiguous."""
    q, k = (block.start + jnp.arange(block.segments_BT.shape[1], dtype=jnp.int32) for block in (queries, keys))
    same_BTS = queries.segments_BT[:, :, None] == keys.segments_BT[:, None, :]
    return same_BTS & within(scores, q[:, None] - k)


def within(scores: Scores, distance: jax.Array) -> jax.Array:
    """Returns whether a query attends to a key of its segment that stands `distance` columns before it."""
    near = distance >= 0 if scores.causal else jnp.ones(distance.shape, bool)
    if scores.window:
        near &= distance < scores.window
    if scores.window and not scores.causal:
        near &= distance > -scores.window
    return near


def chunk_of(size: int) -> int:
    """Returns the tokens per chunk of a block: its largest divisor that is not too large, or all if that is small."""
    chunk = next(c for c in range(min(_LARGEST_CHUNK, size), 0, -1) if size % c == 0)
    return chunk if chunk >= _SMALLEST_CHUNK else size


def _query_chunks(x_BTNH: jax.Array, K: int) -> jax.Array:
    B, T, N, H = x_BTNH.shape
    x_BnCKGH = x_BTNH.reshape(B, -1, chunk_of(T), K, N // K, H)
    return jnp.transpose(x_BnCKGH, (1, 0, 3, 4, 2, 5))


def _joined(x_nBKGCH: jax.Array) -> jax.Array:
    """Returns x_BTNH, the inverse of `_query_chunks`."""
    n, B, K, G, C, H = x_nBKGCH.shape
    return jnp.transpose(x_nBKGCH, (1, 0, 4, 2, 3, 5)).reshape(B, n * C, K * G, H)


def _key_chunks(own: Keys, keys: Block) -> tuple[Keys, Block]:
    B, S, *rest = own.k_BSKH.shape
    shape = B, -1, chunk_of(S), *rest
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(shape), 1, 0), own), _block_chunks(keys)


def _block_chunks(block: Block) -> Block:
    B, T = block.segments_BT.shape
    segments_BnC = block.segments_BT.reshape(B, -1, chunk_of(T))
    starts_n = block.start + chunk_of(T) * jnp.arange(segments_BnC.shape[1], dtype=jnp.int32)
    return Block(jnp.moveaxis(segments_BnC, 1, 0), starts_n)
