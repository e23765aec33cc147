"""The order of a row's tokens over the `context` axis in which causal attention is the same work on every device.

A row is cut into 2 n halves, n being the size of the axis. In the order of the text, device i has the halves 2 i and
2 i + 1, and the last device attends to almost all keys while the first attends to almost none. In zigzag order, device
i has the halves i and 2 n - 1 - i, one from the front and one from the back (Llama 3, arXiv:2407.21783, section 3.3.2).
The layers run in this order; what comes before and after them has the order of the text.

B batch, T length.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from model.sharding import ACTIVATION_RULES, shards, spec

(AXIS,) = ACTIVATION_RULES["length"]


def is_balanced(rows: int, length: int) -> bool:
    """Returns whether the layers run in zigzag order: the mesh has a `context` axis, and divides rows and halves.

    Training requires it (`check_batch`); only texts that are scored or generated may be shorter.
    """
    return shards("length") > 1 and length % (2 * shards("length")) == 0 and rows % shards("batch") == 0


def to_zigzag(x_BT: jax.Array) -> jax.Array:
    """Returns x_BT..., split over the mesh like a batch, in zigzag order; each device sends its two halves."""
    return _moved(_spread, x_BT)


def from_zigzag(x_BT: jax.Array) -> jax.Array:
    """Returns x_BT... in the order of the text: the inverse of `to_zigzag`."""
    return _moved(_collected, x_BT)


def halves_of(device: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the indices of the two halves of a device of the axis, in the order of the text."""
    return device, 2 * shards("length") - 1 - device


def _moved(function: Callable[[jax.Array], jax.Array], x_BT: jax.Array) -> jax.Array:
    part = spec(("batch", "length", *("activation" for _ in x_BT.shape[2:])), ACTIVATION_RULES)
    return jax.shard_map(function, in_specs=part, out_specs=part, check_vma=False)(x_BT)


def _routes() -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Returns (from, to) of the devices' even halves and of their odd ones; each is a permutation of the devices."""
    n = shards("length")
    homes = [min(half, 2 * n - 1 - half) for half in range(2 * n)]
    return [(i, homes[2 * i]) for i in range(n)], [(i, homes[2 * i + 1]) for i in range(n)]


def _spread(x_BT: jax.Array) -> jax.Array:
    even, odd = (
        jax.lax.ppermute(half, AXIS, route) for half, route in zip(jnp.split(x_BT, 2, axis=1), _routes(), strict=True)
    )
    # A front half has its device's number, so the front half of an even device is an even one.
    is_even = jax.lax.axis_index(AXIS) % 2 == 0
    return jnp.concatenate([jnp.where(is_even, even, odd), jnp.where(is_even, odd, even)], axis=1)


def _collected(x_BT: jax.Array) -> jax.Array:
    front, back = jnp.split(x_BT, 2, axis=1)
    is_even = jax.lax.axis_index(AXIS) % 2 == 0
    halves = jnp.where(is_even, front, back), jnp.where(is_even, back, front)
    routes = ([(there, here) for here, there in route] for route in _routes())
    return jnp.concatenate(
        [jax.lax.ppermute(half, AXIS, route) for half, route in zip(halves, routes, strict=True)], axis=1
    )
