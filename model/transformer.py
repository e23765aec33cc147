"""The transformer: parameters, and one function each for training, prefill and decoding.

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
- causal attention, or attention in both directions for heads that do not write text
- MLP: gated SiLU or GELU, GELU, squared ReLU
- mixture of experts in place of the MLP, in all layers, every n-th, or after the first k (`experts.py`)
- tied or untied output table; optional biases; scales of embeddings, residual branches and logits
- attention by XLA, cuDNN (GPU) or Splash (TPU); KV cache in the compute dtype, bfloat16 or int8
- float32 parameters, bfloat16 compute on accelerators; rematerialization by policy, including host offload

Layers are stacked on a leading axis, in training and in checkpoints, and run by one `lax.scan`, rolled or unrolled.
Each step of the scan runs one period of the layers' kinds (one layer where all are equal), because a kind (window,
rotary positions, MLP or experts) is static. MLPs and experts are stacked over the layers that have them. For generation
on a GPU, `unstacked` makes a tuple of the layers.

B batch, T length, P prompt length, D embed.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from model.attention import Attention
from model.cache import Cache, CacheSize, KVCache, LayerCache, allocate
from model.config import LayerKind, ModelConfig
from model.context import Context, make_context
from model.dtypes import compute_dtype
from model.experts import ROUTER_CHOICES, Experts, RouterSums
from model.layers import MLP, Norm, scaled
from model.sharding import constrain, is_partitioned, with_axes
from model.zigzag import from_zigzag, is_balanced, to_zigzag

Params = dict[str, Any]
Batch = Mapping[str, jax.Array]
_Carry = TypeVar("_Carry")

_MLPS = frozenset({"mlp", "experts"})
_LAYER_INPUT = "layer_input"
REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(ROUTER_CHOICES),
    ),
    "full": jax.checkpoint_policies.save_only_these_names(ROUTER_CHOICES),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[ROUTER_CHOICES],
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
    """One layer: attention and MLP, each with its norms and a residual connection."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, context: Context, kind: LayerKind, cache: LayerCache | None
    ) -> tuple[jax.Array, KVCache, RouterSums | None]:
        """Returns (x_BTD, `Attention`'s keys and values or updated cache, the sums of the router if it has one)."""
        cfg = self.config

        def before(name: str, y: jax.Array) -> jax.Array:
            return Norm(cfg, name=name)(y) if cfg.norm_position in ("pre", "both") else y

        def after(name: str, y: jax.Array) -> jax.Array:
            return Norm(cfg, name=name)(y) if cfg.norm_position in ("post", "both") else y

        def add(x_BTD: jax.Array, y_BTD: jax.Array) -> jax.Array:
            return constrain(x_BTD + scaled(y_BTD, cfg.residual_scale), "batch", "length", "activation")

        def mlp(y_BTD: jax.Array) -> tuple[jax.Array, RouterSums | None]:
            if not kind.experts:
                return MLP(cfg, name="mlp")(y_BTD), None
            output: tuple[jax.Array, RouterSums] = Experts(cfg, name="experts")(y_BTD, context.segments_BT > 0)
            return output

        attention = Attention(cfg, name="attention")
        input_BTD = before("attention_norm", x_BTD)
        y_BTD, kv = attention(input_BTD, context, kind, cache)
        if cfg.parallel != "none":
            input_BTD = input_BTD if cfg.parallel == "one_norm" else before("mlp_norm", x_BTD)
            z_BTD, sums = mlp(input_BTD)
            return add(x_BTD, y_BTD + z_BTD), kv, sums
        x_BTD = add(x_BTD, after("attention_post_norm", y_BTD))
        y_BTD, sums = mlp(before("mlp_norm", x_BTD))
        return add(x_BTD, after("mlp_post_norm", y_BTD)), kv, sums


def init_backbone(config: ModelConfig, rng: jax.Array) -> Params:
    """Returns the backbone's float32 parameters, boxed with their logical axes (`nn.meta.unbox` removes the boxes)."""
    config = dataclasses.replace(config, attention="xla")  # only shapes matter here, and the kernels reject one token
    embed_rng, layers_rng = jax.random.split(rng)
    tokens_BT = jnp.zeros((1, 1), jnp.int32)
    context = make_context(config, tokens_BT, tokens_BT)
    x_BTD = jnp.zeros((1, 1, config.embed_dim))

    def init_layer(kind: LayerKind, layer_rng: jax.Array) -> Params:
        return Block(config).init(layer_rng, x_BTD, context, kind, None)["params"]

    kinds, rngs = config.kinds, jax.random.split(layers_rng, config.num_layers)
    layers: Params = {}
    for kind in {kind.experts: kind for kind in kinds}.values():
        own = jax.vmap(partial(init_layer, kind))(rngs)
        for name in _MLPS.intersection(own) if 0 < config.expert_layers < config.num_layers else ():
            indices = np.array([i for i, other in enumerate(kinds) if other.experts == kind.experts])
            own[name] = jax.tree.map(lambda x, indices=indices: x[indices], own[name])
        layers |= own
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
    """Returns x_BTD of `forward_with_routers`."""
    return forward_with_routers(config, params, batch)[0]


def forward_with_routers(config: ModelConfig, params: Params, batch: Batch) -> tuple[jax.Array, RouterSums | None]:
    """Returns the hidden states of packed rows, for training and scoring, and what the routers did.

    They are x_BTD after the final norm, and the `RouterSums` of the layers with experts, stacked; None without experts.

    Args:
        config: the model.
        params: `{"embedding", "layers", "final_norm"}`, unboxed.
        batch: tokens_BT, segment_ids_BT (0 is padding) and positions_BT, as "tokens", "segment_ids", "positions".
    """
    tokens_BT = batch["tokens"]
    balanced = is_balanced(*tokens_BT.shape)
    context = make_context(config, batch["positions"], batch["segment_ids"], balanced)

    def block(kind: LayerKind, x_BTD: jax.Array, layer_params: Params) -> tuple[jax.Array, RouterSums | None]:
        x_BTD = checkpoint_name(x_BTD, _LAYER_INPUT)
        x_BTD, _, sums = _apply_block(config, layer_params, x_BTD, context, kind)
        return x_BTD, sums

    if config.remat != "none":
        block = jax.checkpoint(
            block, policy=REMAT_POLICIES[config.remat], prevent_cse=not config.scan_layers, static_argnums=0
        )

    def period(x_BTD: jax.Array, scanned: tuple[Params, jax.Array]) -> tuple[jax.Array, RouterSums | None]:
        found = []
        for kind, layer_params in _layers_of_period(config, scanned[0]):
            x_BTD, sums = block(kind, x_BTD, layer_params)
            found += [sums] if kind.experts else []
        return x_BTD, jax.tree.map(lambda *sums: jnp.stack(sums), *found) if found else None

    x_BTD = _embed(config, params, to_zigzag(tokens_BT) if balanced else tokens_BT, context)
    x_BTD, routers = _run_periods(config, params, period, x_BTD, unroll=not config.scan_layers)
    # Heads and losses read the order of the text; putting one residual stream back costs little beside the layers.
    x_BTD = from_zigzag(x_BTD) if balanced else x_BTD
    return _final_norm(config, params, x_BTD), jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), routers)


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

    Raises:
        ValueError: tokens attend to later ones, so that no cache can be filled token by token.
    """
    if not config.causal:
        raise ValueError("a model with attention in both directions cannot generate text")
    if config.attention != "xla":
        # Prompt lengths may not suit the attention kernel of training.
        config = dataclasses.replace(config, attention="auto")
    context = _text_context(config, jnp.arange(prompts_BP.shape[1]) - padding_B[:, None])

    def period(x_BPD: jax.Array, scanned: tuple[Params, jax.Array]) -> tuple[jax.Array, tuple[KVCache, ...]]:
        caches = []
        for kind, layer_params in _layers_of_period(config, scanned[0]):
            x_BPD, kv, _ = _apply_block(config, layer_params, x_BPD, context, kind)
            caches.append(allocate(config, kv.k, kv.v, size.columns_of(kind.window)))
        return x_BPD, tuple(caches)

    x_BPD = _embed(config, params, prompts_BP, context)
    x_BPD, stacks = _run_periods(config, params, period, x_BPD)
    return _final_norm(config, params, x_BPD), Cache(stacks, jnp.asarray(prompts_BP.shape[1]), padding_B)


def decode_layers(
    config: ModelConfig, params: Params, tokens_BT: jax.Array, cache: Cache, lengths_B: jax.Array | None = None
) -> tuple[jax.Array, Cache]:
    """Returns (x_BTD after the final norm, the cache with the tokens appended).

    Args:
        config: the model.
        params: the backbone's.
        tokens_BT: the next T tokens of each text; T is at most `CacheSize.chunk`.
        cache: of the texts so far.
        lengths_B: the texts' lengths where the last of `tokens_BT` are padding, for rotations that depend on the length
            of a text; None: all of them are tokens.
    """
    T = tokens_BT.shape[1]
    context = _text_context(config, cache.column[..., None] + jnp.arange(T) - cache.padding_B[:, None], lengths_B)

    def period(
        carry: tuple[jax.Array, tuple[KVCache, ...]], scanned: tuple[Params, jax.Array]
    ) -> tuple[tuple[jax.Array, tuple[KVCache, ...]], None]:
        (x_BTD, stacks), (layers, index) = carry, scanned
        updated = []
        for stack, (kind, layer_params) in zip(stacks, _layers_of_period(config, layers), strict=True):
            layer_cache = LayerCache(stack, index, cache.column, cache.padding_B)
            x_BTD, stack, _ = _apply_block(config, layer_params, x_BTD, context, kind, layer_cache)
            updated.append(stack)
        return (x_BTD, tuple(updated)), None

    x_BTD = _embed(config, params, tokens_BT, context)
    (x_BTD, stacks), _ = _run_periods(config, params, period, (x_BTD, cache.stacks))
    return _final_norm(config, params, x_BTD), Cache(stacks, cache.column + T, cache.padding_B)


def unstacked(config: ModelConfig, params: Params) -> Params:
    """Returns a backbone's parameters with a tuple of layers, for generation and scoring on a GPU.

    There, a scan copies each layer's matrices out of the stack before it multiplies by them, which takes longer than
    the product with a few rows does.
    """
    kinds = config.kinds
    return {**params, "layers": tuple(_layer(kinds, params["layers"], i) for i in range(len(kinds)))}


def _run_periods(
    config: ModelConfig,
    params: Params,
    period: Callable[[_Carry, tuple[Any, Any]], tuple[_Carry, Any]],
    carry: _Carry,
    unroll: bool = False,
) -> tuple[_Carry, Any]:
    """Returns `lax.scan` of `period` over (the layers of a period, its index); unstacked layers are one period."""
    if isinstance(params["layers"], tuple):
        carry, outputs = period(carry, (params["layers"], 0))
        return carry, jax.tree.map(lambda x: x[None], outputs)
    indices = jnp.arange(config.num_layers // len(config.period))
    return jax.lax.scan(period, carry, (_periods(config, params), indices), unroll=unroll)


def _text_context(config: ModelConfig, positions_BT: jax.Array, lengths_B: jax.Array | None = None) -> Context:
    """Returns the context of one text per row, with padding at negative positions."""
    lengths_BT = None if lengths_B is None else jnp.broadcast_to(lengths_B[:, None], positions_BT.shape)
    segments_BT = (positions_BT >= 0).astype(jnp.int32)
    return make_context(config, jnp.maximum(positions_BT, 0), segments_BT, lengths_BT=lengths_BT)


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
) -> tuple[jax.Array, KVCache, RouterSums | None]:
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
    periods = config.num_layers // size
    return jax.tree.map(lambda x: x.reshape(periods, -1, *x.shape[1:]), params["layers"])


def _layers_of_period(config: ModelConfig, layers: Params | tuple[Params, ...]) -> Iterator[tuple[LayerKind, Params]]:
    """Yields (kind, parameters) of each layer of one period; unstacked layers are one period."""
    if isinstance(layers, tuple):
        yield from zip(config.kinds, layers, strict=True)
        return
    kinds = config.period
    for index, kind in enumerate(kinds):
        yield kind, layers if len(kinds) == 1 else _layer(kinds, layers, index)


def _layer(kinds: Sequence[LayerKind], layers: Params, index: int) -> Params:
    """Returns the parameters of one of these layers; MLPs and experts are stacked over the layers that have them."""
    kind = kinds[index]
    other = "mlp" if kind.experts else "experts"
    among = sum(before.experts == kind.experts for before in kinds[:index])
    return {
        name: jax.tree.map(lambda x, i=among if name in _MLPS else index: x[i], part)
        for name, part in layers.items()
        if name != other
    }
