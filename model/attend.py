"""Attention, softmax(q k^T) v, by one of three backends: XLA, cuDNN's flash attention (GPU) or Splash (Pallas, TPU).

XLA computes it in pieces on one CPU (`pieces.py`), and elsewhere as two whole products.

All three support segments, sliding windows, grouped heads, and causal attention or attention in both directions. They
split the batch and the heads over the mesh. Over its `context` axis, `ring.py` does the same with XLA or Splash; cuDNN,
and texts that are too short to be split evenly, split the queries and gather the keys and values.
B batch, T queries, S keys, N heads, K kv heads, G heads per kv head, H head dim.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from configs.errors import UserError
from model.config import ModelConfig
from model.context import Context, attention_mask
from model.dtypes import compute_dtype, on_one_cpu, platform
from model.pieces import QUERIES, attend_in_pieces
from model.ring import attend_over_context, uses_ring
from model.sharding import ACTIVATION_RULES, shards, spec
from model.splash_pairs import LANES, block_sizes
from model.tiles import Scores

_QUERIES = spec(("batch", "length", "heads", "activation"), ACTIVATION_RULES)
_KEYS = spec(("batch", "activation", "heads", "activation"), ACTIVATION_RULES)


def attend(
    config: ModelConfig,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    context: Context,
    window: int,
) -> jax.Array:
    """Returns o_BTNH, computed by the backend that `config.attention` selects.

    Args:
        config: the model.
        q_BTNH: queries.
        k_BSKH: keys.
        v_BSKH: values.
        context: positions and segments, which define the mask; `context.balanced` is the order of the tokens.
        window: sliding window of this layer in tokens; 0: no limit. It reaches back, and without `config.causal` also
            ahead.

    Raises:
        UserError: the backend does not support this model or this length.
    """
    B, T = q_BTNH.shape[:2]
    backend = attention_backend(config, T, context.balanced)
    if context.balanced and backend == "cudnn" and uses_ring(config, B, T):
        if config.attention == "cudnn":
            raise UserError(
                "config.model.attention='cudnn' cannot compute a ring over config.mesh.context; use "
                "config.model.context_attention='all_gather' or attention='auto'"
            )
        backend = "xla"
    scores = Scores(_scale(config), config.attention_softcap, window, config.causal)
    if context.balanced and backend != "cudnn":
        ring, splash = uses_ring(config, B, T), backend == "splash"
        return attend_over_context(scores, q_BTNH, k_BSKH, v_BSKH, context.segments_BT, ring=ring, splash=splash)
    if backend == "splash":
        return _splash(config, q_BTNH, k_BSKH, v_BSKH, context, window)
    if backend == "xla" and on_one_cpu() and T > QUERIES:
        return attend_in_pieces(scores, q_BTNH, k_BSKH, v_BSKH, context.segments_BT)
    mask_BTS = attention_mask(context, window, config.causal)
    if backend == "cudnn":
        return _cudnn(config, q_BTNH, k_BSKH, v_BSKH, mask_BTS)
    return xla(q_BTNH, k_BSKH, v_BSKH, mask_BTS, _scale(config), config.attention_softcap)


def _scale(config: ModelConfig) -> float:
    return config.query_scale or config.head_dim**-0.5


def attention_backend(config: ModelConfig, length: int, balanced: bool = True) -> str:
    """Returns "xla", "cudnn" or "splash": `config.attention`, or for "auto" the platform's fastest that fits the model.

    Args:
        config: the model.
        length: tokens per row.
        balanced: whether a `context` axis splits rows in zigzag order, as in training.

    Raises:
        UserError: `config.attention` names a backend that does not support this model or this length.
    """
    unsupported: dict[str, Callable[[ModelConfig, int, bool], str]]
    unsupported = {"xla": lambda *_: "", "cudnn": _cudnn_unsupported, "splash": _splash_unsupported}
    if config.attention == "auto":
        fastest = {"gpu": "cudnn", "tpu": "splash"}.get(platform(), "xla")
        return "xla" if unsupported[fastest](config, length, balanced) else fastest
    if reason := unsupported[config.attention](config, length, balanced):
        raise UserError(f"config.model.attention={config.attention!r} needs {reason}; use 'xla' or 'auto'")
    return config.attention


def _splash_unsupported(_: ModelConfig, length: int, balanced: bool) -> str:
    """Returns what Splash needs and does not find, or ""."""
    if platform() == "gpu":
        return "a TPU"
    if shards("length") == 1:
        return f"rows of a multiple of {LANES} tokens, got {length}" if length % LANES else ""
    multiple = 2 * LANES * shards("length")
    if length % multiple or not balanced:
        return f"rows of a multiple of {2 * LANES} x config.mesh.context = {multiple} tokens, got {length}"
    return ""


def _cudnn_unsupported(config: ModelConfig, length: int, _: bool) -> str:
    """Returns what cuDNN needs and does not find, or "" (limits of `jax.nn.dot_product_attention` and cuDNN)."""
    capability = cuda_capability() if platform() == "gpu" else None
    if capability is None:
        return "an NVIDIA GPU in this machine"
    if config.attention_softcap:
        return f"config.model.attention_softcap=0, got {config.attention_softcap}"
    if compute_dtype(config) != jnp.bfloat16:
        return f"config.model.compute_dtype='bfloat16', got {compute_dtype(config)}"
    largest = 256 if capability.startswith("9.") else 128
    if config.head_dim > largest or config.head_dim % 8:
        return f"config.model.head_dim to be a multiple of 8 and at most {largest} on this GPU, got {config.head_dim}"
    if length // shards("length") % 2:
        return f"an even number of tokens per row on each device, got {length // shards('length')}"
    return ""


def cuda_capability() -> str | None:
    """Returns the attached GPU's compute capability, e.g. "9.0", or None: lowering for cuDNN queries the device."""
    device = jax.devices()[0]
    return device.compute_capability if "cuda" in device.client.platform_version else None


def xla(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_BTS: jax.Array, scale: float, softcap: float
) -> jax.Array:
    """Returns softmax(scale * q k^T) v as o_BTNH, the softmax in float32 (arXiv:1706.03762, equation 1).

    A positive `softcap` bounds the logits by softcap * tanh(logits / softcap) (Gemma 2, arXiv:2408.00118, section 2).
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    logits = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
    weights = _weights(logits, mask_BTS, scale, softcap).astype(v_BSKH.dtype)
    return jnp.einsum("BKGTS,BSKH->BTKGH", weights, v_BSKH).reshape(B, T, N, H)


def _weights(logits_BKGTS: jax.Array, mask_BTS: jax.Array, scale: float, softcap: float) -> jax.Array:
    logits_BKGTS = logits_BKGTS * scale
    if softcap:
        logits_BKGTS = softcap * jnp.tanh(logits_BKGTS / softcap)
    logits_BKGTS = jnp.where(mask_BTS[:, None, None], logits_BKGTS, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(logits_BKGTS, axis=-1)


def attend_cached(
    config: ModelConfig, q_BTNH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, context: Context, window: int
) -> jax.Array:
    """Returns what `xla` does, for keys and values in the cache's layout (heads first), without transposing them."""
    B, T, N, H = q_BTNH.shape
    K, S = k_BKSH.shape[1:3]
    heads = ((0, 1), (0, 1))
    # X = G x T: all queries of a kv head form one matrix.
    q_BKXH = jnp.moveaxis(q_BTNH.reshape(B, T, K, N // K, H), 1, 3).reshape(B, K, -1, H)
    products = jax.lax.dot_general(k_BKSH, q_BKXH, (((3,), (3,)), heads), preferred_element_type=jnp.float32)
    logits_BKGTS = jnp.swapaxes(products, 2, 3).reshape(B, K, N // K, T, S)
    weights = _weights(logits_BKGTS, attention_mask(context, window), _scale(config), config.attention_softcap)
    weights_BKXS = weights.reshape(B, K, -1, S).astype(v_BKSH.dtype)
    o_BKXH = jax.lax.dot_general(weights_BKXS, v_BKSH, (((3,), (2,)), heads))
    return jnp.moveaxis(o_BKXH.reshape(B, K, N // K, T, H), 3, 1).reshape(B, T, N, H)


def _cudnn(
    config: ModelConfig, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_BTS: jax.Array
) -> jax.Array:
    """CuDNN's flash attention: the mask is passed as a bias, and the causal flag lets cuDNN skip blocks.

    The bias is one (T, S) plane per row, shared by all heads. cuDNN's packed layout needs no bias, but JAX keeps it
    private, and it requires Hopper, a fixed number of segments per row, and rows that no `context` axis splits. The
    sliding window stays in the mask because cuDNN before 9.10.2 rejects a window together with a bias. The mask is
    boolean because JAX 0.12 then computes no gradient for the bias, which would cost a (T, S) plane per head.
    """

    def local(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
        causal = config.causal and q.shape[1] == k.shape[1]
        return jax.nn.dot_product_attention(
            q, k, v, mask=mask[:, None], is_causal=causal, scale=_scale(config), implementation="cudnn"
        )

    mask = spec(("batch", "length", "activation"), ACTIVATION_RULES)
    return _sharded(local, (_QUERIES, _KEYS, _KEYS, mask))(q_BTNH, k_BSKH, v_BSKH, mask_BTS)


def _splash(
    config: ModelConfig,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    context: Context,
    window: int,
) -> jax.Array:
    """Splash attention: skips blocks outside the window; masks segments in the kernel."""
    # Imported here because only TPUs need it and the import takes about 0.1 s.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    T, N = q_BTNH.shape[1:3]
    size, ahead = (T, T), 0 if config.causal else window - 1
    whole = splash.CausalMask(size) if config.causal else splash.FullMask(size)
    mask = splash.LocalMask(size, (window - 1, ahead), 0) if window else whole
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * (N // shards("heads"))),
        block_sizes=block_sizes(T),
        attn_logits_soft_cap=config.attention_softcap or None,
        head_shards=1,
        q_seq_shards=1,
        interpret=platform() != "tpu",  # tests run the kernel on a CPU
    )

    def local(kernel: Any, q: jax.Array, k: jax.Array, v: jax.Array, *segments: jax.Array) -> jax.Array:  # noqa: ANN401
        heads_first = [jnp.moveaxis(x, 2, 1) for x in (q, k, v)]
        o_BNTH = jax.vmap(kernel)(*heads_first, splash.SegmentIds(*segments))
        return jnp.moveaxis(o_BNTH, 1, 2)

    blocks = None
    if not jax.sharding.get_abstract_mesh().empty:
        blocks = jax.tree.map(lambda _: PartitionSpec(), kernel)
    segments, key_segments = PartitionSpec(*_QUERIES[:2]), PartitionSpec(*_KEYS[:2])
    inputs = (blocks, _QUERIES, _KEYS, _KEYS, segments, key_segments)
    q_BTNH = q_BTNH * _scale(config)
    return _sharded(local, inputs)(kernel, q_BTNH, k_BSKH, v_BSKH, context.segments_BT, context.key_segments_BS)


def _sharded(local: Callable[..., jax.Array], inputs: tuple[Any, ...]) -> Callable[..., jax.Array]:
    """Returns `local` run on each device's shard, because XLA cannot partition a hand-written kernel."""
    if jax.sharding.get_abstract_mesh().empty:
        return local
    return jax.shard_map(local, in_specs=inputs, out_specs=_QUERIES, check_vma=False)
