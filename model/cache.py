"""The KV cache: updated in place; a ring buffer for sliding-window layers; optionally bfloat16 or int8.

The rows of a batch share one column index, since prompts are aligned at their ends; only in `model.slots`, where texts
start at different times, each row has its own. A layer that keeps R columns stores column c at index c mod R.
L layers, B batch, T new tokens, R columns kept, K kv heads, H head dim.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from model.config import ModelConfig
from model.dtypes import cache_dtype, compute_dtype


class CacheSize(NamedTuple):
    """How many columns to allocate.

    Attributes:
        columns: all columns of the batch: the prompt's and the new tokens'.
        chunk: the most tokens that one later `decode_layers` call adds.
    """

    columns: int
    chunk: int = 1

    def columns_of(self, window: int) -> int:
        """Returns R of a layer: all columns, or the most that its window covers for any token of a chunk."""
        return min(self.columns, window + self.chunk - 1) if window else self.columns


class KVCache(NamedTuple):
    """Keys and values of one layer, or of several layers with the same window, stacked on a leading axis.

    Attributes:
        k: k_BKRH.
        v: v_BKRH.
        k_scale: k_scale_BKR, which int8 keys are multiplied by; None for other dtypes.
        v_scale: v_scale_BKR, which int8 values are multiplied by; None for other dtypes.
    """

    k: jax.Array
    v: jax.Array
    k_scale: jax.Array | None = None
    v_scale: jax.Array | None = None


class Cache(NamedTuple):
    """The KV cache of a whole model and a batch of texts.

    Attributes:
        stacks: for each layer of `config.period`, the caches of all layers that it repeats to, stacked.
        column: the next column to be written, one for the batch, or column_B.
        padding_B: number of padding columns before each text.
    """

    stacks: tuple[KVCache, ...]
    column: jax.Array
    padding_B: jax.Array


class LayerCache(NamedTuple):
    """One layer's part of a `Cache`, kept inside its stack so that it is updated in place.

    Attributes:
        stack: the layers' stacked caches.
        layer: index of this layer in the stack.
        column: the next column to be written, one for the batch, or column_B.
        padding_B: number of padding columns before each text.
    """

    stack: KVCache
    layer: jax.Array
    column: jax.Array
    padding_B: jax.Array


def allocate(config: ModelConfig, k_BTKH: jax.Array, v_BTKH: jax.Array, columns: int) -> KVCache:
    """Returns a layer's new cache of `columns` columns, filled with the last of these T keys and values that fit."""
    T = k_BTKH.shape[1]

    def place(x: jax.Array) -> jax.Array:
        if columns >= T:
            return jnp.pad(x, [(0, 0), (0, 0), (0, columns - T), *[(0, 0)] * (x.ndim - 3)])
        return jnp.roll(x[:, :, T - columns :], T % columns, axis=2)

    return jax.tree.map(place, _encode(config, k_BTKH, v_BTKH))


def write(config: ModelConfig, cache: LayerCache, k_BTKH: jax.Array, v_BTKH: jax.Array) -> KVCache:
    """Returns the stack with these keys and values in columns `cache.column` to `cache.column` + T - 1 of the layer."""
    T, R = k_BTKH.shape[1], cache.stack.k.shape[3]

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        if cache.column.ndim:
            rows_B1 = jnp.arange(len(cache.column))[:, None]
            indices_BT = (cache.column[:, None] + jnp.arange(T)) % R
            return old.at[cache.layer, rows_B1, :, indices_BT].set(jnp.moveaxis(new, 2, 1))
        if T > 1:
            indices_T = (cache.column + jnp.arange(T)) % R
            return old.at[cache.layer, :, :, indices_T].set(jnp.moveaxis(new, 2, 0))
        zero = jnp.zeros((), jnp.int32)
        start = (cache.layer, zero, zero, cache.column % R, *[zero] * (old.ndim - 4))
        return jax.lax.dynamic_update_slice(old, new[None], start)

    return jax.tree.map(put, cache.stack, _encode(config, k_BTKH, v_BTKH))


def read(config: ModelConfig, cache: LayerCache) -> tuple[jax.Array, jax.Array]:
    """Returns (k_BKRH, v_BKRH) of the layer in the compute dtype."""
    one = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, cache.layer, keepdims=False), cache.stack)

    def decoded(x: jax.Array, scale: jax.Array | None) -> jax.Array:
        return (x if scale is None else x.astype(jnp.float32) * scale[..., None]).astype(compute_dtype(config))

    return decoded(one.k, one.k_scale), decoded(one.v, one.v_scale)


def cached_positions(size: int, last: jax.Array, padding_B: jax.Array) -> jax.Array:
    """Returns positions_BR: the position, within its text, of the token in each cache column; negative if empty.

    Args:
        size: R.
        last: the newest column that is written, one for the batch, or last_B.
        padding_B: number of padding columns before each text.
    """
    last = last[..., None]
    return last - (last - jnp.arange(size)) % size - padding_B[:, None]


def _encode(config: ModelConfig, k_BTKH: jax.Array, v_BTKH: jax.Array) -> KVCache:
    """Returns keys and values in the cache's layout (heads first) and dtype; int8 has one scale per vector."""
    k, v = jnp.swapaxes(k_BTKH, 1, 2), jnp.swapaxes(v_BTKH, 1, 2)
    if config.cache_dtype != "int8":
        dtype = cache_dtype(config)
        return KVCache(k.astype(dtype), v.astype(dtype))

    def quantized(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = x.astype(jnp.float32)
        scale = jnp.abs(x).max(-1) / 127
        return jnp.round(x / jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)[..., None]).astype(jnp.int8), scale

    (k8, k_scale), (v8, v_scale) = quantized(k), quantized(v)
    return KVCache(k8, v8, k_scale, v_scale)
