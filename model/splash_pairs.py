"""Splash attention (Pallas, TPU) of one half of a row to another: what `tiles` computes with XLA, by a kernel.

Splash's masks are static, but which halves a device multiplies depends on the device. Of their masks only a few differ:
all tokens of one half see all of the other, or the boundary of the causal mask or of the window cuts through. There is
one kernel for each, and the distance of the halves selects it.

B batch, T queries, S keys, N heads, H head dim.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from model.dtypes import platform
from model.tiles import EMPTY, Block, Keys, Result, Scores

LANES = 128  # width of a TPU vector register; Splash's block sizes are multiples of it
LARGEST_BLOCK = 512


def forward(scores: Scores, q_BTNH: jax.Array, own: Keys, queries: Block, keys: Block) -> tuple[jax.Array, jax.Array]:
    """Returns what `tiles.forward` does, for two halves of the same size, some of whose tokens see each other."""

    def run(kernel: Any, q: jax.Array, k: jax.Array, v: jax.Array, *ids: jax.Array) -> tuple[jax.Array, jax.Array]:  # noqa: ANN401
        o_NTH, (lse_NT,) = kernel(q, k, v, _splash().SegmentIds(*ids))
        return o_NTH.astype(jnp.float32), lse_NT

    q_BNTH = _heads_first(q_BTNH * scores.scale)
    arguments = q_BNTH, *map(_heads_first, own), queries.segments_BT, keys.segments_BT
    o_BNTH, lse_BNT = _switch(scores, q_BTNH, queries, keys, True, run, arguments)
    # Queries that see no key have a score of about -1e38, or no sum at all where the kernel skips their block.
    some = lse_BNT > EMPTY
    o_BNTH, lse_BNT = jnp.where(some[..., None], o_BNTH, 0.0), jnp.where(some, lse_BNT, EMPTY)
    return _heads_first(o_BNTH), jnp.swapaxes(lse_BNT, 1, 2)


def backward(
    scores: Scores, q_BTNH: jax.Array, own: Keys, queries: Block, keys: Block, result: Result
) -> tuple[jax.Array, Keys]:
    """Returns what `tiles.backward` does.

    The kernels of the backward pass take the denominator of the whole softmax, not only of these keys. JAX offers them
    only inside Splash's own gradient, whose function of the residuals is called here (JAX 0.10 and 0.12).
    """
    backward_of = _splash().splash_attention_kernel._splash_attention_bwd

    def run(
        kernel: Any,  # noqa: ANN401
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        o: jax.Array,
        do: jax.Array,
        lse: jax.Array,
        *ids: jax.Array,
    ) -> tuple[jax.Array, ...]:
        kwargs = dict(kernel.kwargs) | {"save_residuals": False}
        infos = kernel.dq_mask_info, kernel.dkv_mask_info
        residuals = q, k, v, _splash().SegmentIds(*ids), None, o, lse, *infos
        _, _, _, dq, dk, dv, *_ = backward_of(*(kwargs[name] for name in _KWARGS), residuals, do)
        return tuple(x.astype(jnp.float32) for x in (dq, dk, dv))

    q_BNTH, do_BNTH = _heads_first(q_BTNH * scores.scale), _heads_first(result.do_BTNH)
    o_BNTH, lse_BNT = _heads_first(result.o_BTNH), jnp.swapaxes(result.lse_BTN, 1, 2)
    ids = queries.segments_BT, keys.segments_BT
    arguments = q_BNTH, *map(_heads_first, own), o_BNTH, do_BNTH.astype(q_BNTH.dtype), lse_BNT, *ids
    dq, dk, dv = map(_heads_first, _switch(scores, q_BTNH, queries, keys, False, run, arguments))
    return dq * scores.scale, Keys(dk, dv)


_KWARGS = (
    *("save_residuals", "mask_value", "is_mqa", "block_sizes", "residual_checkpoint_name", "mask_function"),
    *("attn_logits_soft_cap", "interpret"),
)


class _Distance(NamedTuple):
    """The bounds of query column - key column that the mask admits; None: no bound."""

    low: int | None
    high: int | None

    def admits(self, low: int, high: int) -> str:
        """Returns whether distances from low to high are admitted: "all", "some" or "none" of them."""
        below = self.low is not None and high < self.low
        above = self.high is not None and low > self.high
        if below or above:
            return "none"
        cut = (self.low is not None and low < self.low) or (self.high is not None and high > self.high)
        return "some" if cut else "all"


def _admitted(scores: Scores) -> _Distance:
    furthest = scores.window - 1 if scores.window else None
    return _Distance(0 if scores.causal else furthest and -furthest, furthest)


def _switch(
    scores: Scores,
    q_BTNH: jax.Array,
    queries: Block,
    keys: Block,
    residuals: bool,
    run: Callable[..., Any],
    arguments: tuple[jax.Array, ...],
) -> Any:  # noqa: ANN401 - the outputs of the kernels
    """Returns `run(kernel, *arguments)` of each row, with the kernel for the distance of the two halves."""
    size, admitted = q_BTNH.shape[1], _admitted(scores)
    # Beyond these distances of the halves, in halves, the mask no longer changes.
    reach = 1 + (-(-scores.window // size) if scores.window else 0)
    kernels: list[Any] = []
    table: list[int] = []
    for distance in range(-reach, reach + 1):
        kind = admitted.admits(distance * size - size + 1, distance * size + size - 1)
        key = (distance * size, *admitted) if kind == "some" else (0, None, None)
        if kind == "none":
            table.append(0)
            continue
        if key not in kernels:
            kernels.append(key)
        table.append(kernels.index(key))
    branches = [
        functools.partial(_on_rows, run, _kernel(scores, size, q_BTNH.shape[2], key, residuals)) for key in kernels
    ]
    index = jnp.clip((queries.start - keys.start) // size, -reach, reach) + reach
    return jax.lax.switch(jnp.asarray(table, jnp.int32)[index], branches, *arguments)


def _on_rows(run: Callable[..., Any], kernel: Any, *arguments: jax.Array) -> Any:  # noqa: ANN401 - the outputs of a kernel
    return jax.vmap(functools.partial(run, kernel))(*arguments)


def _kernel(scores: Scores, size: int, heads: int, key: tuple[int, int | None, int | None], residuals: bool) -> Any:  # noqa: ANN401
    splash = _splash()
    offset, low, high = key
    shape = size, size
    bounded = low is not None or high is not None
    mask = splash.LocalMask(shape, (high, low if low is None else -low), offset) if bounded else splash.FullMask(shape)
    return splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=block_sizes(size),
        save_residuals=residuals,
        attn_logits_soft_cap=scores.softcap or None,
        head_shards=1,
        q_seq_shards=1,
        interpret=platform() != "tpu",  # tests run the kernel on a CPU
    )


def block_sizes(length: int) -> Any:  # noqa: ANN401 - Splash's type
    """Returns Splash's block sizes for rows of a multiple of 128 tokens."""
    block = next(block for block in (LARGEST_BLOCK, 256, LANES) if length % block == 0)
    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    return _splash().BlockSizes(**dict.fromkeys(names, block))


def _splash() -> Any:  # noqa: ANN401 - a module
    # Imported here because only TPUs need it and the import takes about 0.1 s.
    return importlib.import_module("jax.experimental.pallas.ops.tpu.splash_attention")


def _heads_first(x_BTNH: jax.Array) -> jax.Array:
    """Returns x_BNTH, and x_BTNH of x_BNTH."""
    return jnp.swapaxes(x_BTNH, 1, 2)
