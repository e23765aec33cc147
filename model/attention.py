"""Self-attention with grouped heads, for packed rows and for decoding with a cache: one mask source for both.

B batch, T queries, S keys, D embed, N heads, K kv heads, G heads a kv head, H head dim.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from model.config import ModelConfig
from model.layers import Norm, Projection, output_std, rotate


class KVCache(NamedTuple):
    """Keys and values of one layer (or of all, stacked on a leading axis): k_BSKH and v_BSKH."""

    k: jax.Array
    v: jax.Array


class Context(NamedTuple):
    """What attention needs to know of the tokens, the same for every layer.

    Attributes:
        positions_BT: place of each query in its own segment.
        segments_BT: which document a query belongs to; 0 is padding.
        key_positions_BS: the same of the keys; identical to `positions_BT` unless a cache is read.
        key_segments_BS: likewise.
        sin_BTH: sine of the rotary angles, H/2 columns; None with learned positions.
        cos_BTH: cosine of them.
        slot: the cache column where this call's keys begin; None without a cache.
    """

    positions_BT: jax.Array
    segments_BT: jax.Array
    key_positions_BS: jax.Array
    key_segments_BS: jax.Array
    sin_BTH: jax.Array | None
    cos_BTH: jax.Array | None
    slot: jax.Array | None


def attention_mask(context: Context, window: jax.Array | None) -> jax.Array:
    """Returns mask_BTS: true where a query may see a key.

    Same segment, not in the future, and within `window` tokens (a scalar; 0 or None is unlimited). Padding sees
    padding, so that no softmax runs over an empty row.
    """
    q, k = context.positions_BT[:, :, None], context.key_positions_BS[:, None, :]
    mask_BTS = (context.segments_BT[:, :, None] == context.key_segments_BS[:, None, :]) & (k <= q)
    if window is not None:
        mask_BTS &= (window == 0) | (q - k < window)
    return mask_BTS


def attend(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_BTS: jax.Array, scale: float, softcap: float
) -> jax.Array:
    """Returns softmax(scale * q k^T) v as o_BTNH, the softmax in float32 (arXiv:1706.03762, equation 1).

    A positive `softcap` bounds the logits by softcap * tanh(logits / softcap) (Gemma 2, arXiv:2408.00118, section 2).
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    logits = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32) * scale
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    logits = jnp.where(mask_BTS[:, None, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v_BSKH.dtype)
    return jnp.einsum("BKGTS,BSKH->BTKGH", weights, v_BSKH).reshape(B, T, N, H)


class Attention(nn.Module):
    """Projections, QK-norm, rotary positions, attention and the output projection of one layer."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, context: Context, window: jax.Array | None, cache: KVCache | None
    ) -> tuple[jax.Array, KVCache | None]:
        """Returns (y_BTD, the cache with this call's keys and values written at `context.slot`)."""
        cfg = self.config
        D, N, K, H = cfg.embed_dim, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim

        def project(name: str, heads: int, axis: str) -> jax.Array:
            names = ("embed", axis, "head_dim")
            bias = 2 if cfg.qkv_bias else 0
            return Projection("BTD,DNH->BTNH", (D, heads, H), names, D**-0.5, bias, name=name)(x_BTD)

        q_BTNH, k_BTKH = project("query", N, "heads"), project("key", K, "kv_heads")
        v_BTKH = project("value", K, "kv_heads")
        if cfg.qk_norm:
            q_BTNH = Norm(cfg, axis="head_dim", name="query_norm")(q_BTNH)
            k_BTKH = Norm(cfg, axis="head_dim", name="key_norm")(k_BTKH)
        if context.sin_BTH is not None and context.cos_BTH is not None:
            q_BTNH = rotate(q_BTNH, context.sin_BTH, context.cos_BTH)
            k_BTKH = rotate(k_BTKH, context.sin_BTH, context.cos_BTH)
        if cache is not None and context.slot is not None:
            cache = KVCache(
                *(
                    jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), context.slot, axis=1)
                    for old, new in zip(cache, (k_BTKH, v_BTKH), strict=True)
                )
            )
        k, v = (k_BTKH, v_BTKH) if cache is None else cache
        scale = cfg.query_scale or H**-0.5
        o_BTNH = attend(q_BTNH, k, v, attention_mask(context, window), scale, cfg.attention_softcap)
        std, bias = output_std(cfg, fan_in=N * H), int(cfg.output_bias)
        out = Projection("BTNH,NHD->BTD", (N, H, D), ("heads", "head_dim", "embed"), std, bias, name="output")
        return out(o_BTNH), cache
