"""The decoder-only transformer: parameters, and one function each for training, prefill and decoding.

    init_backbone(config, rng)                                    parameters, boxed with their logical axes
    forward(config, params, batch)                                training and scoring: packed rows, no cache
    prefill_layers(config, params, prompts_BP, padding_B, size)   generation: reads the prompts, fills a KV cache
    decode_layers(config, params, tokens_BT, cache)               generation: adds tokens to the cache

All three return the hidden states after the final norm; `heads.py` turns them into task outputs. Features, each
selected by a field of `ModelConfig`:

- pre-, post- or sandwich norm; RMSNorm or LayerNorm, optionally with a unit offset (Gemma)
- attention and MLP one after the other, or in parallel
- rotary positions, in any pattern over the layers, with linear, dynamic NTK, Llama 3, YaRN or LongRoPE scaling; or
  learned positions
- grouped-query attention; QK-norm per head or over all heads; logit softcap; custom query scale
- sliding windows, in any pattern over the layers
- MLP: gated SiLU or GELU, GELU, squared ReLU
- tied or untied output table; optional biases; scales of embeddings, residual branches and logits
- attention by XLA, cuDNN (GPU) or Splash (TPU); KV cache in the compute dtype, bfloat16 or int8
- float32 parameters, bfloat16 compute on accelerators; rematerialization by policy, including host offload

Layers are always stacked on a leading axis, in memory and in checkpoints, and run by one `lax.scan`, rolled or
unrolled. Each step of the scan runs one period of the layers' kinds (one layer where all are equal), because a kind, a
window and rotary positions, is static.

B batch, T length, P prompt length, D embed.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from model.attention import Attention
from model.cache import Cache, CacheSize, KVCache, LayerCache, allocate
from model.config import LayerKind, ModelConfig
from model.context import Context, make_context
from model.dtypes import compute_dtype
from model.layers import MLP, Norm, scaled
from model.sharding import constrain, is_partitioned, with_axes

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
        table = self.param("table", with_axes(init, "vocab", "vocab_embed"), (cfg.vocab_size, cfg.embed_dim))
        # Look up before casting: the gradient of a frequent token is a sum of thousands of terms and needs float32.
        x_BTD = table[tokens_BT].astype(dtype)
        if cfg.scale_embeddings:
            x_BTD = x_BTD * jnp.asarray(cfg.embed_dim**0.5, dtype)
        x_BTD = scaled(x_BTD, cfg.embedding_scale)
        if cfg.position == "learned":
            shape = (cfg.context_length, cfg.embed_dim)
            positions = self.param("positions", with_axes(init, "position", "vocab_embed"), shape)
            x_BTD += positions[positions_BT].astype(dtype)
        return x_BTD


class Block(nn.Module):
    """One decoder layer: attention and MLP, each with its norms and a residual connection."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, context: Context, kind: LayerKind, cache: LayerCache | None
    ) -> tuple[jax.Array, KVCache]:
        """Returns (x_BTD, `Attention`'s keys and values or updated cache)."""
        cfg = self.config

        def before(name: str, y: jax.Array) -> jax.Array:
            return Norm(cfg, name=name)(y) if cfg.norm_position in ("pre", "both") else y

        def after(name: str, y: jax.Array) -> jax.Array:
            return Norm(cfg, name=name)(y) if cfg.norm_position in ("post", "both") else y

        def add(x_BTD: jax.Array, y_BTD: jax.Array) -> jax.Array:
            return constrain(x_BTD + scaled(y_BTD, cfg.residual_scale), "batch", "length", "activation")

        attention, mlp = Attention(cfg, name="attention"), MLP(cfg, name="mlp")
        input_BTD = before("attention_norm", x_BTD)
        y_BTD, kv = attention(input_BTD, context, kind, cache)
        if cfg.parallel != "none":
            input_BTD = input_BTD if cfg.parallel == "one_norm" else before("mlp_norm", x_BTD)
            return add(x_BTD, y_BTD + mlp(input_BTD)), kv
        x_BTD = add(x_BTD, after("attention_post_norm", y_BTD))
        return add(x_BTD, after("mlp_post_norm", mlp(before("mlp_norm", x_BTD)))), kv


def init_backbone(config: ModelConfig, rng: jax.Array) -> Params:
    """Returns the backbone's float32 parameters, boxed with their logical axes (`nn.meta.unbox` removes the boxes)."""
    config = dataclasses.replace(config, attention="xla")  # only shapes matter here, and the kernels reject one token
    embed_rng, layers_rng = jax.random.split(rng)
    tokens_BT = jnp.zeros((1, 1), jnp.int32)
    context = make_context(config, tokens_BT, tokens_BT)
    x_BTD = jnp.zeros((1, 1, config.embed_dim))

    def init_layer(layer_rng: jax.Array) -> Params:
        return Block(config).init(layer_rng, x_BTD, context, config.kinds[0], None)["params"]

    layers = jax.vmap(init_layer)(jax.random.split(layers_rng, config.num_layers))
    stacked = jax.tree.map(
        lambda box: box.add_axis(0, {nn.PARTITION_NAME: "layers"}),
        layers,
        is_leaf=is_partitioned,
    )
    return {
        "embedding": Embedding(config).init(embed_rng, tokens_BT, tokens_BT)["params"],
        "layers": stacked,
        "final_norm": Norm(config).init(embed_rng, x_BTD)["params"],
    }


def in_compute_dtype(config: ModelConfig, params: Params) -> Params:
    """Returns the parameters with the layers' matrices in the compute dtype.

    XLA keeps such a copy anyway. Differentiating with respect to it gives a bfloat16 gradient, in half the memory of
    the float32 gradient, whose values would be the same.
    """
    dtype = compute_dtype(config)

    def cast(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype) if path[-1].key == "kernel" else leaf

    layers = jax.tree_util.tree_map_with_path(cast, params["backbone"]["layers"])
    return {**params, "backbone": {**params["backbone"], "layers": layers}}


def forward(config: ModelConfig, params: Params, batch: Batch) -> jax.Array:
    """Returns x_BTD, the hidden states of packed rows after the final norm; for training and scoring.

    Args:
        config: the model.
        params: `{"embedding", "layers", "final_norm"}`, unboxed.
        batch: tokens_BT, segment_ids_BT (0 is padding) and positions_BT, as "tokens", "segment_ids", "positions".
    """
    context = make_context(config, batch["positions"], batch["segment_ids"])

    def block(kind: LayerKind, x_BTD: jax.Array, layer_params: Params) -> jax.Array:
        x_BTD = checkpoint_name(x_BTD, _LAYER_INPUT)
        return _apply_block(config, layer_params, x_BTD, context, kind)[0]

    if config.remat != "none":
        block = jax.checkpoint(
            block, policy=REMAT_POLICIES[config.remat], prevent_cse=not config.scan_layers, static_argnums=0
        )

    def period(x_BTD: jax.Array, layers: Params) -> tuple[jax.Array, None]:
        for kind, layer_params in _layers_of_period(config, layers):
            x_BTD = block(kind, x_BTD, layer_params)
        return x_BTD, None

    x_BTD = _embed(config, params, batch["tokens"], context)
    x_BTD, _ = jax.lax.scan(period, x_BTD, _periods(config, params), unroll=not config.scan_layers)
    return _final_norm(config, params, x_BTD)


def prefill_layers(
    config: ModelConfig, params: Params, prompts_BP: jax.Array, padding_B: jax.Array, size: CacheSize
) -> tuple[jax.Array, Cache]:
    """Returns (x_BPD after the final norm, a cache that contains the prompts' keys and values).

    Args:
        config: the model.
        params: the backbone's.
        prompts_BP: prompts, each at the end of its row.
        padding_B: number of padding tokens before each prompt.
        size: size of the cache to allocate.
    """
    if config.attention != "xla":
        # Prompt lengths may not suit the attention kernel of training.
        config = dataclasses.replace(config, attention="auto")
    context = _text_context(config, jnp.arange(prompts_BP.shape[1]) - padding_B[:, None])

    def period(x_BPD: jax.Array, layers: Params) -> tuple[jax.Array, tuple[KVCache, ...]]:
        caches = []
        for kind, layer_params in _layers_of_period(config, layers):
            x_BPD, kv = _apply_block(config, layer_params, x_BPD, context, kind)
            caches.append(allocate(config, kv.k, kv.v, size.columns_of(kind.window)))
        return x_BPD, tuple(caches)

    x_BPD = _embed(config, params, prompts_BP, context)
    x_BPD, stacks = jax.lax.scan(period, x_BPD, _periods(config, params))
    return _final_norm(config, params, x_BPD), Cache(stacks, jnp.asarray(prompts_BP.shape[1]), padding_B)


def decode_layers(config: ModelConfig, params: Params, tokens_BT: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    """Returns (x_BTD after the final norm, the cache with the tokens appended).

    Args:
        config: the model.
        params: the backbone's.
        tokens_BT: the next T tokens of each text; T is at most `CacheSize.chunk`.
        cache: of the texts so far.
    """
    T = tokens_BT.shape[1]
    context = _text_context(config, cache.column + jnp.arange(T) - cache.padding_B[:, None])

    def period(
        carry: tuple[jax.Array, tuple[KVCache, ...]], scanned: tuple[Params, jax.Array]
    ) -> tuple[tuple[jax.Array, tuple[KVCache, ...]], None]:
        (x_BTD, stacks), (layers, index) = carry, scanned
        updated = []
        for stack, (kind, layer_params) in zip(stacks, _layers_of_period(config, layers), strict=True):
            layer_cache = LayerCache(stack, index, cache.column, cache.padding_B)
            x_BTD, stack = _apply_block(config, layer_params, x_BTD, context, kind, layer_cache)
            updated.append(stack)
        return (x_BTD, tuple(updated)), None

    layers = _periods(config, params)
    indices = jnp.arange(config.num_layers // len(config.period))
    x_BTD = _embed(config, params, tokens_BT, context)
    (x_BTD, stacks), _ = jax.lax.scan(period, (x_BTD, cache.stacks), (layers, indices))
    return _final_norm(config, params, x_BTD), Cache(stacks, cache.column + T, cache.padding_B)


def _text_context(config: ModelConfig, positions_BT: jax.Array) -> Context:
    """Returns the context of one text per row, with padding at negative positions."""
    return make_context(config, jnp.maximum(positions_BT, 0), (positions_BT >= 0).astype(jnp.int32))


def _embed(config: ModelConfig, params: Params, tokens_BT: jax.Array, context: Context) -> jax.Array:
    x_BTD: Any = Embedding(config).apply({"params": params["embedding"]}, tokens_BT, context.positions_BT)
    return constrain(x_BTD, "batch", "length", "activation")


def _apply_block(
    config: ModelConfig,
    params: Params,
    x_BTD: jax.Array,
    context: Context,
    kind: LayerKind,
    cache: LayerCache | None = None,
) -> tuple[jax.Array, KVCache]:
    output: Any = Block(config).apply({"params": params}, x_BTD, context, kind, cache)
    return output


def _final_norm(config: ModelConfig, params: Params, x_BTD: jax.Array) -> jax.Array:
    normed: Any = Norm(config).apply({"params": params["final_norm"]}, x_BTD)
    # The scale of the logits is applied here, once for every head and every way to compute them.
    return scaled(normed, config.logit_scale)


def _periods(config: ModelConfig, params: Params) -> Params:
    """Returns the stacked layers as `lax.scan` reads them: one period of kinds per step."""
    size = len(config.period)
    if size == 1:
        # An extra axis of 1 would make XLA copy each layer's matrices before it reads them on a CPU.
        return params["layers"]
    return jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), params["layers"])


def _layers_of_period(config: ModelConfig, layers: Params) -> Iterator[tuple[LayerKind, Params]]:
    """Yields (kind, parameters) of each layer of one period."""
    kinds = config.period
    for index, kind in enumerate(kinds):
        yield kind, layers if len(kinds) == 1 else jax.tree.map(lambda x, index=index: x[index], layers)
