"""The attention mask: one definition for packed training rows and for the KV cache, used by every backend.

B batch, T queries, S keys, H head dim.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from model.config import ModelConfig
from model.rotary import rotation
from model.zigzag import to_zigzag


class Context(NamedTuple):
    """What attention reads about the tokens besides their states; the same for every layer.

    Attributes:
        positions_BT: each query's position within its segment.
        segments_BT: each query's segment (document); 0 is padding.
        key_positions_BS: each key's position; equal to `positions_BT` unless the keys come from a cache.
        key_segments_BS: each key's segment; equal to `segments_BT` unless the keys come from a cache.
        lengths_BT: number of tokens of each query's segment.
        balanced: whether the tokens are in zigzag order over the `context` axis (`zigzag.py`).
        rotations: (sin_BTH, cos_BTH) of each of the model's rotary kinds, in the order of `config.rotaries`.
    """

    positions_BT: jax.Array
    segments_BT: jax.Array
    key_positions_BS: jax.Array
    key_segments_BS: jax.Array
    lengths_BT: jax.Array
    balanced: bool
    rotations: tuple[tuple[jax.Array, jax.Array], ...]


def make_context(
    config: ModelConfig,
    positions_BT: jax.Array,
    segments_BT: jax.Array,
    balanced: bool = False,
    lengths_BT: jax.Array | None = None,
) -> Context:
    """Returns the `Context` of tokens that attend to each other; for a cache, each layer replaces the key fields.

    Args:
        config: the model.
        positions_BT: each token's position within its segment, in the order of the text.
        segments_BT: each token's segment.
        balanced: whether the `Context` is that of the same tokens in zigzag order.
        lengths_BT: the length of each token's segment; None: its last position + 1.
    """
    if lengths_BT is None:
        lengths_BT = segment_lengths(positions_BT, segments_BT)
    if balanced:
        positions_BT, segments_BT, lengths_BT = map(to_zigzag, (positions_BT, segments_BT, lengths_BT))
    rotations = tuple(rotation(rotary, positions_BT, lengths_BT) for rotary in config.rotaries)
    return Context(positions_BT, segments_BT, positions_BT, segments_BT, lengths_BT, balanced, rotations)


def segment_lengths(positions_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """Returns the length of each token's segment, which is its last position + 1; segments are contiguous."""
    T = positions_BT.shape[1]
    ends_BT = jnp.pad(segments_BT[:, 1:] != segments_BT[:, :-1], ((0, 0), (0, 1)), constant_values=True)
    last_BT = jax.lax.cummin(jnp.where(ends_BT, jnp.arange(T), T), axis=1, reverse=True)
    return jnp.take_along_axis(positions_BT, last_BT, axis=1) + 1


def attention_mask(context: Context, window: int, causal: bool = True) -> jax.Array:
    """Returns mask_BTS: true where a query attends to a key.

    That is a key of the same segment, not later than the query if `causal`, and within `window` tokens (0: no limit),
    on both sides if not `causal`. Padding attends to padding, so that no softmax runs over an empty row.
    """
    q, k = context.positions_BT[:, :, None], context.key_positions_BS[:, None, :]
    mask_BTS = context.segments_BT[:, :, None] == context.key_segments_BS[:, None, :]
    if causal:
        mask_BTS &= k <= q
    if window:
        mask_BTS &= q - k < window
    if window and not causal:
        mask_BTS &= k - q < window
    return mask_BTS
