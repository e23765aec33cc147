"""The attention layer: projections, rotary positions and the cache around `attend`.

B batch, T queries, S keys, D embed, N heads, K kv heads, H head dim.
"""

from typing import NamedTuple

import jax
from flax import linen as nn

from model.attend import attend
from model.config import ModelConfig
from model.context import Context
from model.layers import Norm, Projection, output_std, rotate

# Names attention's own products in profiles and to whoever counts FLOPs.
SCOPE = "attend"


class KVCache(NamedTuple):
    """Keys and values of one layer (or of all, stacked on a leading axis): k_BSKH and v_BSKH."""

    k: jax.Array
    v: jax.Array


class Attention(nn.Module):
    """Projections, QK-norm, rotary positions, attention and the output projection of one layer."""

    config: ModelConfig

    def _normed(self, name: str, x_BTNH: jax.Array) -> jax.Array:
        """Returns queries or keys after their norm: of each head alone, or of all heads as one vector."""
        if not self.config.qk_norm_joint:
            return Norm(self.config, axis="head_dim", name=name)(x_BTNH)
        flat = Norm(self.config, name=name)(x_BTNH.reshape(*x_BTNH.shape[:2], -1))
        return flat.reshape(x_BTNH.shape)

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
            q_BTNH, k_BTKH = self._normed("query_norm", q_BTNH), self._normed("key_norm", k_BTKH)
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
        with jax.named_scope(SCOPE):
            o_BTNH = attend(cfg, q_BTNH, k, v, context, window)
        std, bias = output_std(cfg, fan_in=N * H), int(cfg.output_bias)
        out = Projection("BTNH,NHD->BTD", (N, H, D), ("heads", "head_dim", "embed"), std, bias, name="output")
        return out(o_BTNH), cache
