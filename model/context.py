"""The attention mask: one definition for packed training rows and for the KV cache, used by every backend.

B batch, T queries, S keys, H head dim.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from model.config import ModelConfig
from model.layers import rope_frequencies


class Context(NamedTuple):
    """What attention reads about the tokens besides their states; the same for every layer.

    Attributes:
        positions_BT: each query's position within its segment.
        segments_BT: each query's segment (document); 0 is padding.
        key_positions_BS: each key's position; equal to `positions_BT` unless the keys come from a cache.
        key_segments_BS: each key's segment; equal to `segments_BT` unless the keys come from a cache.
        sin_BTH: sine of the rotary angles, H/2 columns; None with learned positions.
        cos_BTH: cosine of the rotary angles, H/2 columns; None with learned positions.
    """

    positions_BT: jax.Array
    segments_BT: jax.Array
    key_positions_BS: jax.Array
    key_segments_BS: jax.Array
    sin_BTH: jax.Array | None
    cos_BTH: jax.Array | None


def make_context(config: ModelConfig, positions_BT: jax.Array, segments_BT: jax.Array) -> Context:
    """Returns the `Context` of tokens that attend to each other; for a cache, each layer replaces the key fields."""
    sin, cos = None, None
    if config.position == "rope":
        angles_BTH = positions_BT[..., None].astype(jnp.float32) * rope_frequencies(config)
        sin, cos = jnp.sin(angles_BTH), jnp.cos(angles_BTH)
    return Context(positions_BT, segments_BT, positions_BT, segments_BT, sin, cos)


def attention_mask(context: Context, window: int) -> jax.Array:
    """Returns mask_BTS: true where a query attends to a key.

    That is a key of the same segment, not later than the query, and within `window` tokens (0: no limit). Padding
    attends to padding, so that no softmax runs over an empty row.
    """
    q, k = context.positions_BT[:, :, None], context.key_positions_BS[:, None, :]
    mask_BTS = (context.segments_BT[:, :, None] == context.key_segments_BS[:, None, :]) & (k <= q)
    return mask_BTS & (q - k < window) if window else mask_BTS
