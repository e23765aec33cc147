"""The keys and values that decoding keeps: written in place, a ring where a window forgets, small numbers if asked.

A column is a token's place in the batch, padding included; column c of a layer that keeps R of them lies at c mod R.
L layers, B batch, T new tokens, R columns kept, K kv heads, H head dim.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from model.config import ModelConfig
from model.layers import compute_dtype


class Room(NamedTuple):
    """How much a cache is to hold.

    Attributes:
        columns: of all tokens, those of the prompt included.
        chunk: tokens that one later call brings at most.
    """

    columns: int
    chunk: int = 1

    def kept(self, window: int) -> int:
        """Returns R of a layer: all columns, or as many as the oldest of a chunk's tokens still sees of its window."""
        return min(self.columns, window + self.chunk - 1) if window else self.columns


class KVCache(NamedTuple):
    """Keys and values of one layer, or of several of one window, stacked on a leading axis.

    Attributes:
        k: k_BKRH.
        v: v_BKRH.
        k_scale: k_scale_BKR, which the keys are multiplied by; None unless they are int8.
        v_scale: the same of the values.
    """

    k: jax.Array
    v: jax.Array
    k_scale: jax.Array | None = None
    v_scale: jax.Array | None = None


class LayerCache(NamedTuple):
    """One layer of a stack, which is written where it lies.

    Attributes:
        stack: of several layers.
        layer: which of them.
    """

    stack: KVCache
    layer: jax.Array


def store(config: ModelConfig, k_BTKH: jax.Array, v_BTKH: jax.Array, columns: int) -> KVCache:
    """Returns a layer's cache of `columns`: of the keys and values of columns 0 to T - 1, the last that fit."""
    T = k_BTKH.shape[1]

    def place(x: jax.Array) -> jax.Array:
        if columns >= T:
            return jnp.pad(x, [(0, 0), (0, 0), (0, columns - T), *[(0, 0)] * (x.ndim - 3)])
        return jnp.roll(x[:, :, T - columns :], T % columns, axis=2)

    return jax.tree.map(place, _packed(config, k_BTKH, v_BTKH))


def write(config: ModelConfig, cache: LayerCache, column: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array) -> KVCache:
    """Returns the stack with the keys and values of columns `column` to `column` + T - 1 in the layer."""
    T, R = k_BTKH.shape[1], cache.stack.k.shape[3]

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        if T > 1:
            places_T = (column + jnp.arange(T)) % R
            return old.at[cache.layer, :, :, places_T].set(jnp.moveaxis(new, 2, 0))
        zero = jnp.zeros((), jnp.int32)
        start = (cache.layer, zero, zero, column % R, *[zero] * (old.ndim - 4))
        return jax.lax.dynamic_update_slice(old, new[None], start)

    return jax.tree.map(put, cache.stack, _packed(config, k_BTKH, v_BTKH))


def read(config: ModelConfig, cache: LayerCache) -> tuple[jax.Array, jax.Array]:
    """Returns (k_BKRH, v_BKRH) of the layer in the compute dtype."""
    one = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, cache.layer, keepdims=False), cache.stack)

    def usual(x: jax.Array, scale: jax.Array | None) -> jax.Array:
        return (x if scale is None else x.astype(jnp.float32) * scale[..., None]).astype(compute_dtype(config))

    return usual(one.k, one.k_scale), usual(one.v, one.v_scale)


def places(kept: int, last: jax.Array, padding_B: jax.Array) -> jax.Array:
    """Returns places_BR: of the token in each of the kept columns in its own text, negative where there is none.

    Args:
        kept: R.
        last: the newest column that is written.
        padding_B: columns before each text begins.
    """
    column_R = last - (last - jnp.arange(kept)) % kept
    return column_R[None, :] - padding_B[:, None]


def _packed(config: ModelConfig, k_BTKH: jax.Array, v_BTKH: jax.Array) -> KVCache:
    """Returns keys and values as they are kept: heads first; with int8, -127 to 127 times the largest of a vector."""
    k, v = jnp.swapaxes(k_BTKH, 1, 2), jnp.swapaxes(v_BTKH, 1, 2)
    if config.cache_dtype != "int8":
        dtype = compute_dtype(config) if config.cache_dtype == "auto" else jnp.dtype(config.cache_dtype)
        return KVCache(k.astype(dtype), v.astype(dtype))

    def quantized(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = x.astype(jnp.float32)
        scale = jnp.abs(x).max(-1) / 127
        return jnp.round(x / jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)[..., None]).astype(jnp.int8), scale

    (k8, k_scale), (v8, v_scale) = quantized(k), quantized(v)
    return KVCache(k8, v8, k_scale, v_scale)
