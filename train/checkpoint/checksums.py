"""A 64-bit checksum per leaf, computed on the devices; the same on every mesh and number of hosts."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from train.distributed.placement import replicated


def checksums(leaves: Mapping[str, jax.Array], mesh: Mesh | None) -> dict[str, str]:
    """Returns {path: checksum in hexadecimal} of arrays on `mesh`; None: each array on the devices it has."""
    # One program per shape: one program for all leaves takes six times as long to compile and, on a CPU, three times
    # as long to run. One leaf at a time: virtual CPU devices can deadlock when many programs are queued.
    program = _program(replicated(mesh) if mesh is not None else None)
    return {path: _hexadecimal(jax.device_get(program(leaf))) for path, leaf in leaves.items()}


def _hexadecimal(pair: tuple[np.ndarray, np.ndarray]) -> str:
    return f"{int(np.uint64(pair[0]) << np.uint64(32) | np.uint64(pair[1])):016x}"


@functools.cache
def _program(out: NamedSharding | None) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    return jax.jit(_checksum, out_shardings=out)


def _checksum(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns two sums modulo 2^32 of the words, each word multiplied by an odd number that depends on its position.

    An odd factor is invertible, so a change of one word changes the sum; addition commutes, so shards may be summed in
    any order.
    """
    if x.dtype.itemsize == 4:
        words = jax.lax.bitcast_convert_type(x, jnp.uint32)
    elif x.dtype.itemsize == 2:
        words = jax.lax.bitcast_convert_type(x, jnp.uint16).astype(jnp.uint32)
    else:
        words = x.astype(jnp.uint32)
    position = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        position = position * jnp.uint32(x.shape[axis]) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    a = _mix(position ^ jnp.uint32(0x9E3779B9)) | jnp.uint32(1)
    b = _mix(position + jnp.uint32(0x7F4A7C15)) | jnp.uint32(1)
    # One reduction over both sums lets XLA fuse the factors into it; two reductions would write them to memory.
    zero = jnp.uint32(0)
    products = ((words * a), (words * b))
    return jax.lax.reduce(products, (zero, zero), lambda s, x: (s[0] + x[0], s[1] + x[1]), tuple(range(x.ndim)))


def _mix(h: jax.Array) -> jax.Array:
    """The finalizer of MurmurHash3: every input bit affects every output bit."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
