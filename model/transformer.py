"""The decoder as two pure functions: `init_backbone(config, rng)` and `backbone(config, params, batch)`.

Layers are stacked on a leading axis, on disk and in memory, and run by one `lax.scan` that is rolled or unrolled.
B batch, T length, S keys, D embed, L layers.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from model.attention import Attention
from model.cache import KVCache, LayerCache, Room, store
from model.config import ModelConfig
from model.context import Context, make_context
from model.layers import MLP, Norm, axes, compute_dtype
from model.sharding import constrain

Params = dict[str, Any]
Batch = Mapping[str, jax.Array]

_LAYER_INPUT = "layer_input"
REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_LAYER_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


class Embedding(nn.Module):
    """Token (and learned position) embedding: tokens -> the residual stream."""

    config: ModelConfig

    @nn.compact
    def __call__(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Returns x_BTD in the compute dtype."""
        cfg, init = self.config, nn.initializers.normal(0.02)
        dtype = compute_dtype(cfg)
        table = self.param("table", axes(init, "vocab", "vocab_embed"), (cfg.vocab_size, cfg.embed_dim))
        # Rows are picked before they are cast: the gradient of a frequent token, a sum of thousands, needs float32.
        x_BTD = table[tokens_BT].astype(dtype)
        if cfg.scale_embeddings:
            x_BTD = x_BTD * jnp.asarray(cfg.embed_dim**0.5, dtype)
        if cfg.position == "learned":
            shape = (cfg.context_length, cfg.embed_dim)
            positions = self.param("positions", axes(init, "position", "vocab_embed"), shape)
            x_BTD += positions[positions_BT].astype(dtype)
        return x_BTD


class Block(nn.Module):
    """One decoder layer: attention and MLP, each with its norms and its residual."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, context: Context, window: int, cache: LayerCache | None
    ) -> tuple[jax.Array, KVCache]:
        """Returns (x_BTD, what `Attention` keeps)."""
        cfg = self.config

        def before(name: str, y: jax.Array) -> jax.Array:
            return Norm(cfg, name=name)(y) if cfg.norm_position in ("pre", "both") else y

        def after(name: str, y: jax.Array) -> jax.Array:
            return Norm(cfg, name=name)(y) if cfg.norm_position in ("post", "both") else y

        attention = Attention(cfg, name="attention")
        y_BTD, kept = attention(before("attention_norm", x_BTD), context, window, cache)
        x_BTD = constrain(x_BTD + after("attention_post_norm", y_BTD), "batch", "length", "activation")
        y_BTD = MLP(cfg, name="mlp")(before("mlp_norm", x_BTD))
        x_BTD = constrain(x_BTD + after("mlp_post_norm", y_BTD), "batch", "length", "activation")
        return x_BTD, kept


def init_backbone(config: ModelConfig, rng: jax.Array) -> Params:
    """Returns the backbone's parameters in float32, each boxed with its logical axes (`nn.meta.unbox` opens them)."""
    config = dataclasses.replace(config, attention="xla")  # shapes alone count, and no kernel takes one token
    embed_rng, layers_rng = jax.random.split(rng)
    tokens_BT = jnp.zeros((1, 1), jnp.int32)
    context = make_context(config, tokens_BT, tokens_BT)
    x_BTD = jnp.zeros((1, 1, config.embed_dim))

    def init_layer(layer_rng: jax.Array) -> Params:
        return Block(config).init(layer_rng, x_BTD, context, 0, None)["params"]

    layers = jax.vmap(init_layer)(jax.random.split(layers_rng, config.num_layers))
    stacked = jax.tree.map(
        lambda box: box.add_axis(0, {nn.PARTITION_NAME: "layers"}),
        layers,
        is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned),
    )
    return {
        "embedding": Embedding(config).init(embed_rng, tokens_BT, tokens_BT)["params"],
        "layers": stacked,
        "final_norm": Norm(config).init(embed_rng, x_BTD)["params"],
    }


def in_compute_dtype(config: ModelConfig, params: Params) -> Params:
    """Returns the parameters with the layers' matrices as the matrix products read them.

    XLA keeps such a copy anyway; to differentiate with respect to it stores a bfloat16 gradient in half the memory of
    the float32 one that is its conversion.
    """
    dtype = compute_dtype(config)

    def cast(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype) if path[-1].key == "kernel" else leaf

    layers = jax.tree_util.tree_map_with_path(cast, params["backbone"]["layers"])
    return {**params, "backbone": {**params["backbone"], "layers": layers}}


def backbone(config: ModelConfig, params: Params, batch: Batch) -> jax.Array:
    """Returns x_BTD, the final-norm hidden states of packed rows.

    Args:
        config: the model.
        params: `{"embedding", "layers", "final_norm"}`, unboxed.
        batch: tokens_BT, segment_ids_BT (0 is padding) and positions_BT, as "tokens", "segment_ids", "positions".
    """
    context = make_context(config, batch["positions"], batch["segment_ids"])
    return run_layers(config, params, batch["tokens"], context)[0]


def run_layers(
    config: ModelConfig,
    params: Params,
    tokens_BT: jax.Array,
    context: Context,
    cache: tuple[KVCache, ...] = (),
    room: Room | None = None,
) -> tuple[jax.Array, tuple[KVCache, ...]]:
    """Returns (x_BTD after the final norm, the cache): embedding, layers, norm.

    Layers whose windows differ are unrolled within the scan's body, a period of them at a time.

    Args:
        config: the model.
        params: of the backbone.
        tokens_BT: tokens.
        context: who may see whom.
        cache: of the tokens before, a stack for each layer of `config.window_period`; comes back with these too.
        room: of the cache to begin; None: of none.
    """
    x_BTD: Any = Embedding(config).apply({"params": params["embedding"]}, tokens_BT, context.positions_BT)
    x_BTD = constrain(x_BTD, "batch", "length", "activation")
    period = config.window_period

    def layer(window: int, x_BTD: Any, layer_params: Params, cache: LayerCache | None) -> Any:  # noqa: ANN401 - Linen's apply has no narrower type
        x_BTD = checkpoint_name(x_BTD, _LAYER_INPUT)
        return Block(config).apply({"params": layer_params}, x_BTD, context, window, cache)

    if config.remat != "none":
        layer = jax.checkpoint(
            layer, policy=REMAT_POLICIES[config.remat], prevent_cse=not config.scan_layers, static_argnums=0
        )

    def layers(carry: tuple[Any, tuple[KVCache, ...]], scanned: tuple[Params, jax.Array]) -> Any:  # noqa: ANN401
        (x_BTD, cache), (stacked, index) = carry, scanned
        kept = []
        for number, window in enumerate(period):
            layer_params = jax.tree.map(lambda x, number=number: x[number], stacked) if len(period) > 1 else stacked
            x_BTD, kv = layer(window, x_BTD, layer_params, LayerCache(cache[number], index) if cache else None)
            kept.append(kv if room is None else store(config, kv.k, kv.v, room.kept(window)))
        return ((x_BTD, tuple(kept)), ()) if cache else ((x_BTD, ()), tuple(kept) if room else ())

    steps = config.num_layers // len(period)
    stacked = params["layers"]
    if len(period) > 1:  # an axis of 1 would have XLA copy each layer's matrices before it reads them on a CPU
        stacked = jax.tree.map(lambda x: x.reshape(steps, len(period), *x.shape[1:]), stacked)
    # Writing reads one layer after the other anyway; only the backward pass gains by having them unrolled.
    unroll = not config.scan_layers and not cache and room is None
    (x_BTD, cache), begun = jax.lax.scan(layers, (x_BTD, cache), (stacked, jnp.arange(steps)), unroll=unroll)
    normed: Any = Norm(config).apply({"params": params["final_norm"]}, x_BTD)
    return normed, cache or begun
