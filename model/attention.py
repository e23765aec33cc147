"""The attention layer: projections, QK-norm, rotary positions and the KV cache around `attend`.

B batch, T queries, S keys, D embed, N heads, K kv heads, H head dim.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from model.attend import attend, attend_cached
from model.cache import KVCache, LayerCache, cached_positions, read, write
from model.config import LayerKind, ModelConfig
from model.context import Context
from model.layers import Norm, Projection, output_std
from model.rotary import rotate, rotate_cached

# Names the attention products in profiles; the planner finds them by this name to count their FLOPs.
SCOPE = "attend"


class Attention(nn.Module):
    """Projections, QK-norm, rotary positions, attention and the output projection of one layer."""

    config: ModelConfig

    def _normed(self, name: str, x_BTNH: jax.Array) -> jax.Array:
        """Returns normalized queries or keys: each head alone, or all heads as one vector (`qk_norm_joint`)."""
        if not self.config.qk_norm_joint:
            return Norm(self.config, axis="head_dim", name=name)(x_BTNH)
        flat = Norm(self.config, name=name)(x_BTNH.reshape(*x_BTNH.shape[:2], -1))
        return flat.reshape(x_BTNH.shape)

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, context: Context, kind: LayerKind, cache: LayerCache | None
    ) -> tuple[jax.Array, KVCache]:
        """Returns (y_BTD, the updated stack of `cache`); without a cache, (y_BTD, this call's keys and values)."""
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
        rotary, raw_BTKH = kind.rotary, k_BTKH
        if rotary is not None:
            sin_BTH, cos_BTH = context.rotations[cfg.rotaries.index(rotary)]
            q_BTNH, k_BTKH = rotate(q_BTNH, sin_BTH, cos_BTH), rotate(k_BTKH, sin_BTH, cos_BTH)
        # Where the angles depend on the length of the text, those of cached keys change as it grows.
        kept_BTKH = raw_BTKH if rotary is not None and rotary.needs_length else k_BTKH
        if cache is None:
            kv = KVCache(kept_BTKH, v_BTKH)
            with jax.named_scope(SCOPE):
                o_BTNH = attend(cfg, q_BTNH, k_BTKH, v_BTKH, context, kind.window)
        else:
            kv = write(cfg, cache, kept_BTKH, v_BTKH)
            k_BKSH, v_BKSH = read(cfg, cache._replace(stack=kv))
            positions_BS = cached_positions(k_BKSH.shape[2], cache.column + x_BTD.shape[1] - 1, cache.padding_B)
            segments_BS = (positions_BS >= 0).astype(jnp.int32)
            if rotary is not None and rotary.needs_length:
                k_BKSH = rotate_cached(rotary, k_BKSH, positions_BS, context.lengths_BT[:, -1:])
            context = context._replace(key_positions_BS=positions_BS, key_segments_BS=segments_BS)
            o_BTNH = attend_cached(cfg, q_BTNH, k_BKSH, v_BKSH, context, kind.window)
        std, bias = output_std(cfg, fan_in=N * H), int(cfg.output_bias)
        out = Projection("BTNH,NHD->BTD", (N, H, D), ("heads", "head_dim", "embed"), std, bias, name="output")
        return out(o_BTNH), kv
