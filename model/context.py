"""Who may see whom: the one mask source of every attention implementation, in packed rows and in the cache alike.

B batch, T queries, S keys, H head dim.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from model.config import ModelConfig
from model.layers import rope_frequencies


class Context(NamedTuple):
    """What attention needs to know of the tokens, the same for every layer.

    Attributes:
        positions_BT: place of each query in its own segment.
        segments_BT: which document a query belongs to; 0 is padding.
        key_positions_BS: the same of the keys; identical to `positions_BT` unless a cache is read.
        key_segments_BS: likewise.
        sin_BTH: sine of the rotary angles, H/2 columns; None with learned positions.
        cos_BTH: cosine of them.
        slot: the cache column where this call's keys begin; None unless a cache is read.
        padding_B: cache columns before each text; likewise.
    """

    positions_BT: jax.Array
    segments_BT: jax.Array
    key_positions_BS: jax.Array
    key_segments_BS: jax.Array
    sin_BTH: jax.Array | None
    cos_BTH: jax.Array | None
    slot: jax.Array | None = None
    padding_B: jax.Array | None = None


def make_context(
    config: ModelConfig,
    positions_BT: jax.Array,
    segments_BT: jax.Array,
    slot: jax.Array | None = None,
    padding_B: jax.Array | None = None,
) -> Context:
    """Returns the `Context` of some queries; of one that reads a cache, what the keys are is known to each layer."""
    sin, cos = None, None
    if config.position == "rope":
        angles_BTH = positions_BT[..., None].astype(jnp.float32) * rope_frequencies(config)
        sin, cos = jnp.sin(angles_BTH), jnp.cos(angles_BTH)
    return Context(positions_BT, segments_BT, positions_BT, segments_BT, sin, cos, slot, padding_B)


def attention_mask(context: Context, window: int) -> jax.Array:
    """Returns mask_BTS: true where a query may see a key.

    Same segment, not in the future, and within `window` tokens (0 is unlimited). Padding sees
    padding, so that no softmax runs over an empty row.
    """
    q, k = context.positions_BT[:, :, None], context.key_positions_BS[:, None, :]
    mask_BTS = (context.segments_BT[:, :, None] == context.key_segments_BS[:, None, :]) & (k <= q)
    return mask_BTS & (q - k < window) if window else mask_BTS
