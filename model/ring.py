"""Attention over the `context` axis, in zigzag order (`zigzag.py`): each device attends to the keys of all.

    ring         keys and values pass from device to device, one block at a time (arXiv:2310.01889)
    all_gather   each device gathers the keys and values of all and then takes one block after the other

Both do the same work in the same pieces: a device's two halves against the two halves of another. A pair of halves
none of whose tokens see each other is skipped. With the ring, the memory of keys and values is that of two blocks
whatever the size of the axis; the gather needs all of them, but one collective in place of many.

B batch, T queries of a device, S keys of a device, N heads, K kv heads, H head dim, n devices of the axis.
"""

import dataclasses
import types
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from model import splash_pairs, tiles
from model.config import ModelConfig
from model.dtypes import compute_dtype
from model.sharding import ACTIVATION_RULES, shards, spec
from model.tiles import EMPTY, Block, Keys, Result, Scores
from model.zigzag import AXIS, halves_of

# "auto" gathers up to this many bytes of keys and values per layer and device. The gather is one collective, but its
# memory grows with the length of the row: with their gradients in float32, three times as much.
LARGEST_GATHER = 2**30


def key_bytes(config: ModelConfig, tokens: float, tensor: int, itemsize: int) -> float:
    """Returns the bytes of a layer's keys and values of these tokens, with the heads split in `tensor` parts."""
    return 2 * tokens * config.num_kv_heads // tensor * config.head_dim * itemsize


def is_ring(config: ModelConfig, gathered: float) -> bool:
    """Returns whether attention over the `context` axis is a ring: `config.context_attention`, or the rule of "auto".

    Args:
        config: the model.
        gathered: the `key_bytes` that a device would gather per layer.
    """
    return gathered > LARGEST_GATHER if config.context_attention == "auto" else config.context_attention == "ring"


def uses_ring(config: ModelConfig, rows: int, length: int) -> bool:
    """Returns `is_ring` for (rows, length) tokens on the current mesh."""
    tokens = rows // shards("batch") * length
    return is_ring(config, key_bytes(config, tokens, shards("heads"), compute_dtype(config).itemsize))


@dataclasses.dataclass(frozen=True)
class _How:
    """Static options.

    Attributes:
        scores: which scores count, and how they are computed.
        ring: whether keys and values pass around instead of being gathered.
        splash: whether pairs of halves are computed by Splash instead of XLA.
    """

    scores: Scores
    ring: bool
    splash: bool

    @property
    def kernel(self) -> types.ModuleType:
        """The module whose `forward` and `backward` compute a pair of halves."""
        return splash_pairs if self.splash else tiles

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The (query half, key half) that may see each other; a front half never sees a back half if causal."""
        return ((0, 0), (1, 0), (1, 1)) + (() if self.scores.causal else ((0, 1),))


def attend_over_context(
    scores: Scores,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    segments_BT: jax.Array,
    *,
    ring: bool,
    splash: bool,
) -> jax.Array:
    """Returns o_BTNH of a row's queries, keys and values in zigzag order.

    Args:
        scores: which scores count, and how they are computed.
        q_BTNH: queries; these and the others are whole arrays, of all devices.
        k_BSKH: keys of the same tokens.
        v_BSKH: values.
        segments_BT: the tokens' segments.
        ring: whether keys and values pass around instead of being gathered.
        splash: whether pairs of halves are computed by Splash instead of XLA.
    """
    heads = spec(("batch", "length", "heads", "activation"), ACTIVATION_RULES)
    tokens = spec(("batch", "length"), ACTIVATION_RULES)
    local = partial(_attention, _How(scores, ring, splash))
    run = jax.shard_map(local, in_specs=(heads, heads, heads, tokens), out_specs=heads, check_vma=False)
    return run(q_BTNH, k_BSKH, v_BSKH, segments_BT)


class _Moving(NamedTuple):
    """What another device has: its keys and values, and the segments of its tokens."""

    keys: Keys
    segments_BS: jax.Array


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(how: _How, q: jax.Array, k: jax.Array, v: jax.Array, segments_BT: jax.Array) -> jax.Array:
    return _forward(how, q, k, v, segments_BT)[0]


_State = list[tuple[jax.Array, jax.Array]]  # (o_BTNH, lse_BTN) of each half, over the keys so far


def _forward(
    how: _How, q: jax.Array, k: jax.Array, v: jax.Array, segments_BT: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    q_halves, own = _halves(q), _blocks(segments_BT, jax.lax.axis_index(AXIS))

    def visit(states: _State, source: jax.Array, moving: _Moving) -> _State:
        states, keys, theirs = list(states), _halves_of_keys(moving.keys), _blocks(moving.segments_BS, source)
        for a, b in how.pairs:

            def add(state: tuple[jax.Array, jax.Array], a: int = a, b: int = b) -> tuple[jax.Array, jax.Array]:
                return _merged(state, how.kernel.forward(how.scores, q_halves[a], keys[b], own[a], theirs[b]))

            seen = tiles.is_visible(how.scores, own[a], theirs[b])
            states[a] = jax.lax.cond(seen, add, lambda state: state, states[a])
        return states

    nothing = [(jnp.zeros(x.shape, jnp.float32), jnp.full(x.shape[:-1], EMPTY, jnp.float32)) for x in q_halves]
    states = (_around if how.ring else _gathered)(visit, nothing, _Moving(Keys(k, v), segments_BT))
    o = jnp.concatenate([o for o, _ in states], axis=1).astype(q.dtype)
    lse = jnp.concatenate([lse for _, lse in states], axis=1)
    return o, (q, k, v, segments_BT, o, lse)


def _merged(state: tuple[jax.Array, jax.Array], part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Returns attention to two sets of keys from attention to each of them."""
    (o, lse), (part_o, part_lse) = state, part
    total = jnp.logaddexp(lse, part_lse)
    return o * jnp.exp(lse - total)[..., None] + part_o * jnp.exp(part_lse - total)[..., None], total


def _around(visit: Callable[..., Any], state: Any, moving: _Moving) -> Any:  # noqa: ANN401 - a tree of arrays
    """Returns the state after `visit(state, source, moving)` of all blocks, which pass around the ring."""
    n, here = shards("length"), jax.lax.axis_index(AXIS)

    def step(carry: tuple[Any, _Moving], done: jax.Array) -> tuple[tuple[Any, _Moving], None]:
        state, moving = carry
        # Does not depend on the visit, so the transfer runs beside it.
        coming = _passed_on(moving)
        return (visit(state, (here - done) % n, moving), coming), None

    (state, moving), _ = jax.lax.scan(step, (state, moving), jnp.arange(n - 1))
    return visit(state, (here + 1) % n, moving)


def _gathered(visit: Callable[..., Any], state: Any, moving: _Moving) -> Any:  # noqa: ANN401 - a tree of arrays
    """Returns the state after `visit(state, source, moving)` of all blocks, which are gathered first."""

    def step(state: Any, block: tuple[jax.Array, _Moving]) -> tuple[Any, None]:  # noqa: ANN401
        return visit(state, *block), None

    gathered = jax.tree.map(partial(jax.lax.all_gather, axis_name=AXIS), moving)
    return jax.lax.scan(step, state, (jnp.arange(shards("length")), gathered))[0]


def _backward(
    how: _How, residuals: tuple[jax.Array, ...], do: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, segments_BT, o, lse = residuals
    q_halves, own = _halves(q), _blocks(segments_BT, jax.lax.axis_index(AXIS))
    results = [Result(*parts) for parts in zip(_halves(o), _halves(do), _halves(lse), strict=True)]

    def visit(dq: list[jax.Array], source: jax.Array, moving: _Moving, gradients: Keys) -> tuple[list[jax.Array], Keys]:
        dq, keys, theirs = list(dq), _halves_of_keys(moving.keys), _blocks(moving.segments_BS, source)
        sums = _halves_of_keys(gradients)
        for a, b in how.pairs:

            def add(dq: jax.Array, total: Keys, a: int = a, b: int = b) -> tuple[jax.Array, Keys]:
                pair = q_halves[a], keys[b], own[a], theirs[b]
                part, of_keys = how.kernel.backward(how.scores, *pair, results[a])
                return dq + part, jax.tree.map(jnp.add, total, of_keys)

            seen = tiles.is_visible(how.scores, own[a], theirs[b])
            dq[a], sums[b] = jax.lax.cond(seen, add, lambda dq, total: (dq, total), dq[a], sums[b])
        return dq, jax.tree.map(lambda *halves: jnp.concatenate(halves, axis=1), *sums)

    zeros = [jnp.zeros(x.shape, jnp.float32) for x in q_halves]
    backward = _around_backward if how.ring else _gathered_backward
    dq, (dk, dv) = backward(visit, zeros, _Moving(Keys(k, v), segments_BT))
    return jnp.concatenate(dq, axis=1).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


def _around_backward(visit: Callable[..., Any], dq: Any, moving: _Moving) -> tuple[Any, Keys]:  # noqa: ANN401
    """Returns (dq, the gradients of keys and values), which follow their block around the ring and arrive at home."""
    n, here = shards("length"), jax.lax.axis_index(AXIS)

    def step(carry: tuple[Any, _Moving, Keys], done: jax.Array) -> tuple[tuple[Any, _Moving, Keys], None]:
        dq, moving, gradients = carry
        coming = _passed_on(moving)
        dq, gradients = visit(dq, (here - done) % n, moving, gradients)
        return (dq, coming, _passed_on(gradients)), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), moving.keys)
    (dq, moving, gradients), _ = jax.lax.scan(step, (dq, moving, zeros), jnp.arange(n - 1))
    dq, gradients = visit(dq, (here + 1) % n, moving, gradients)
    return dq, _passed_on(gradients)


def _gathered_backward(visit: Callable[..., Any], dq: Any, moving: _Moving) -> tuple[Any, Keys]:  # noqa: ANN401
    """Returns (dq, the gradients of keys and values): of all devices' blocks, summed over the devices."""
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), moving.keys)

    def step(dq: Any, block: tuple[jax.Array, _Moving]) -> tuple[Any, Keys]:  # noqa: ANN401
        result: tuple[Any, Keys] = visit(dq, *block, zeros)
        return result

    gathered = jax.tree.map(partial(jax.lax.all_gather, axis_name=AXIS), moving)
    dq, gradients = jax.lax.scan(step, dq, (jnp.arange(shards("length")), gathered))
    return dq, jax.tree.map(partial(jax.lax.psum_scatter, axis_name=AXIS), gradients)


_attention.defvjp(_forward, _backward)


def _passed_on(tree: Any) -> Any:  # noqa: ANN401 - a tree of arrays
    """Returns what the device before this one has."""
    n = shards("length")
    return jax.tree.map(lambda x: jax.lax.ppermute(x, AXIS, [(i, (i + 1) % n) for i in range(n)]), tree)


def _halves(x_BT: jax.Array) -> list[jax.Array]:
    return jnp.split(x_BT, 2, axis=1)


def _halves_of_keys(keys: Keys) -> list[Keys]:
    return [Keys(*half) for half in zip(*map(_halves, keys), strict=True)]


def _blocks(segments_BT: jax.Array, device: jax.Array) -> list[Block]:
    """Returns the two halves of a device as blocks of the row."""
    size = segments_BT.shape[1] // 2
    return [
        Block(half_BT, size * place) for half_BT, place in zip(_halves(segments_BT), halves_of(device), strict=True)
    ]
