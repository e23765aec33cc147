"""Cross-entropy as sums, never means, over logits that exist one chunk of the row at a time.

B batch, T length, n chunks, P parts that the tokens are in, R tokens of a part in a chunk, D embed, V vocabulary (or
classes).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from model.sharding import PARAMETER_RULES, constrain, shards


class LossSums(NamedTuple):
    """Sums over tokens; the step divides by `weight` once, after accumulation and across devices.

    Attributes:
        objective: what is differentiated: weighted negative log-likelihood plus z-loss, in nats.
        nll: weighted negative log-likelihood alone, in nats; what is reported.
        weight: sum of the token weights.
    """

    objective: jax.Array
    nll: jax.Array
    weight: jax.Array


def cross_entropy(
    x_BTD: jax.Array,
    table_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    symbols: str = "vocab",
    softcap: float = 0.0,
    z_loss: float = 0.0,
    smoothing: float = 0.0,
    chunk: int = 0,
) -> LossSums:
    """Returns the `LossSums` of softmax(x table^T) against the targets.

    Args:
        x_BTD: hidden states; products run in their dtype, the softmax in float32.
        table_VD: one row an output symbol.
        targets_BT: indices into V; anything where the weight is 0.
        weights_BT: float weights, 0 for positions that are not trained on.
        symbols: the logical axis of V, "vocab" or "classes" (`model/sharding.py`).
        softcap: positive: logits become softcap * tanh(logits / softcap).
        z_loss: weight of log(Z)^2 (PaLM, arXiv:2204.02311, section 5).
        smoothing: part of each target's weight that all symbols share (arXiv:1512.00567, section 7); not in `nll`.
        chunk: positions of a row whose logits a device has at once; must divide its part of T; 0 is all of them.
    """
    objective, nll = _objective(x_BTD, table_VD, targets_BT, weights_BT, symbols, softcap, z_loss, smoothing, chunk)
    return LossSums(objective, jax.lax.stop_gradient(nll), weights_BT.sum())


def logits(x_BTD: jax.Array, table_VD: jax.Array, softcap: float = 0.0) -> jax.Array:
    """Returns logits_BTV in float32."""
    z = jnp.einsum("BTD,VD->BTV", x_BTD, table_VD.astype(x_BTD.dtype), preferred_element_type=jnp.float32)
    return softcap * jnp.tanh(z / softcap) if softcap else z


def token_nll(
    x_BTD: jax.Array, table_VD: jax.Array, targets_BT: jax.Array, *, softcap: float = 0.0, chunk: int = 0
) -> jax.Array:
    """Returns nll_BT, the negative log-likelihood of each target in nats."""
    return _forward(x_BTD, table_VD, targets_BT, "vocab", softcap, chunk, _log_z)[0]


def token_scores(
    x_BTD: jax.Array, table_VD: jax.Array, targets_BT: jax.Array, *, softcap: float = 0.0, chunk: int = 0
) -> jax.Array:
    """Returns (B, T, 2): the negative log-likelihood, in nats, of each target and of the likeliest symbol there."""
    nll_BT, _, least_BT = _forward(x_BTD, table_VD, targets_BT, "vocab", softcap, chunk, _least_nll)
    return jnp.stack([nll_BT, least_BT], axis=-1)


def _pick(logits_PRV: jax.Array, targets_PR: jax.Array) -> jax.Array:
    # A masked sum, not a gather: it stays local when V is sharded.
    hit = jax.lax.broadcasted_iota(jnp.int32, logits_PRV.shape, 2) == targets_PR[..., None]
    return jnp.where(hit, logits_PRV, 0.0).sum(-1)


class _Layout(NamedTuple):
    """Logical axes of P, of R between chunks, and of V."""

    P: str
    R: str
    V: str


def _layout(x_BTD: jax.Array, table_VD: jax.Array, symbols: str) -> _Layout:
    """Returns the layout that gathers over fsdp, which splits tokens and table alike, the one that has fewer rows.

    With the tokens gathered, the table and its float32 gradient stay split, as a large vocabulary on few devices needs;
    with the table gathered, what a device receives does not grow with the number of devices.
    """
    B, T, _ = x_BTD.shape
    if symbols == "vocab" and B * T // shards("token_groups") < len(table_VD) // shards("vocab"):
        return _Layout("token_groups", "group", "vocab_of_group")
    return _Layout("tokens", "activation", symbols)


def _split(x_BT: jax.Array, layout: _Layout, chunk: int) -> jax.Array:
    """Returns x_nPR...: n chunks, each an equal part of what every device has of each row, so that no token moves."""
    B, T, *rest = x_BT.shape
    pieces = shards("length")
    rows = shards(layout.P) // pieces
    size = min(chunk, T // pieces) or T // pieces
    x = x_BT.reshape(rows, B // rows, pieces, -1, size, *rest)
    x_nPR = jnp.moveaxis(x, (3, 0, 2), (0, 1, 2)).reshape(-1, rows * pieces, B // rows * size, *rest)
    return constrain(x_nPR, "activation", layout.P, layout.R, *("activation" for _ in rest))


def _join(x_nPR: jax.Array, layout: _Layout, B: int) -> jax.Array:
    n, P, _, *rest = x_nPR.shape
    pieces = shards("length")
    rows = P // pieces
    x = x_nPR.reshape(n, rows, pieces, B // rows, -1, *rest)
    x_BT = jnp.moveaxis(x, (0, 1, 2), (3, 0, 2)).reshape(B, -1, *rest)
    return constrain(x_BT, "batch", "length", *("activation" for _ in rest))


def _gathered(layout: _Layout, *chunk: jax.Array) -> list[jax.Array]:
    return [constrain(x, layout.P, *("activation" for _ in x.shape[1:])) for x in chunk]


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7, 8))
def _objective(
    x_BTD: jax.Array,
    table_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    symbols: str,
    softcap: float,
    z_loss: float,
    smoothing: float,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    third = _mean_nll if smoothing else _log_z
    nll_BT, log_z_BT, shared_BT = _forward(x_BTD, table_VD, targets_BT, symbols, softcap, chunk, third)
    nll = (nll_BT * weights_BT).sum()
    smoothed = ((nll_BT + smoothing * (shared_BT - nll_BT)) * weights_BT).sum() if smoothing else nll
    return smoothed + z_loss * (jnp.square(log_z_BT) * weights_BT).sum(), nll


def _log_z(logits_PRV: jax.Array, log_z_PR: jax.Array) -> jax.Array:
    return log_z_PR


def _mean_nll(logits_PRV: jax.Array, log_z_PR: jax.Array) -> jax.Array:
    return log_z_PR - logits_PRV.mean(-1)


def _least_nll(logits_PRV: jax.Array, log_z_PR: jax.Array) -> jax.Array:
    return log_z_PR - logits_PRV.max(-1)


def _forward(
    x_BTD: jax.Array,
    table_VD: jax.Array,
    targets_BT: jax.Array,
    symbols: str,
    softcap: float,
    chunk: int,
    third: Callable[[jax.Array, jax.Array], jax.Array],
) -> tuple[jax.Array, ...]:
    """Returns nll_BT, log_z_BT and what `third` makes of the logits and log_z."""
    layout = _layout(x_BTD, table_VD, symbols)
    table = constrain(table_VD.astype(x_BTD.dtype), layout.V, "activation")

    def body(_: None, xs: tuple[jax.Array, jax.Array]) -> tuple[None, tuple[jax.Array, ...]]:
        x_PRD, targets_PR = _gathered(layout, *xs)
        logits_PRV = logits(x_PRD, table, softcap)
        log_z_PR = jax.nn.logsumexp(logits_PRV, axis=-1)
        return None, (log_z_PR - _pick(logits_PRV, targets_PR), log_z_PR, third(logits_PRV, log_z_PR))

    # Where this is differentiated (preferences), a chunk's logits are made again rather than kept.
    _, sums = jax.lax.scan(
        jax.checkpoint(body), None, (_split(x_BTD, layout, chunk), _split(targets_BT, layout, chunk))
    )
    return tuple(_join(x_nPR, layout, len(x_BTD)) for x_nPR in sums)


@jax.named_scope("cross_entropy")
def _objective_fwd(
    x_BTD: jax.Array,
    table_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    symbols: str,
    softcap: float,
    z_loss: float,
    smoothing: float,
    chunk: int,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    # The objective is a sum, so its gradient needs nothing that the backward pass would bring but a scalar factor:
    # taking it here, chunk by chunk, costs three vocabulary products where recomputing the logits would cost four.
    layout = _layout(x_BTD, table_VD, symbols)
    table = constrain(table_VD.astype(x_BTD.dtype), layout.V, "activation")

    def body(grad_PVD: jax.Array, xs: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        x_PRD, targets_PR, weights_PR = _gathered(layout, *xs)
        logits_PRV = logits(x_PRD, table, softcap)
        log_z_PR = jax.nn.logsumexp(logits_PRV, axis=-1)
        nll_PR = log_z_PR - _pick(logits_PRV, targets_PR)
        objective_PR = (nll_PR + z_loss * jnp.square(log_z_PR)) * weights_PR
        if smoothing:
            objective_PR += smoothing * (log_z_PR - logits_PRV.mean(-1) - nll_PR) * weights_PR
        hit: jax.Array = jax.lax.broadcasted_iota(jnp.int32, logits_PRV.shape, 2) == targets_PR[..., None]
        if smoothing:
            hit = (1.0 - smoothing) * hit + smoothing / logits_PRV.shape[-1]
        p_PRV = jnp.exp(logits_PRV - log_z_PR[..., None])
        g_PRV = (p_PRV * (1.0 + 2.0 * z_loss * log_z_PR)[..., None] - hit) * weights_PR[..., None]
        if softcap:
            g_PRV *= 1.0 - jnp.square(logits_PRV / softcap)
        g_PRV = g_PRV.astype(x_PRD.dtype)
        grad_PRD = constrain(jnp.einsum("PRV,VD->PRD", g_PRV, table), layout.P, layout.R, "activation")
        grad_PVD += jnp.einsum("PRV,PRD->PVD", g_PRV, x_PRD, preferred_element_type=jnp.float32)
        return grad_PVD, (grad_PRD, objective_PR, nll_PR * weights_PR)

    chunks = tuple(_split(a, layout, chunk) for a in (x_BTD, targets_BT, weights_BT))
    # Each part adds up its own gradient of the table: one sum over the devices, not one a chunk.
    zeros_PVD = jnp.zeros((shards(layout.P), *table_VD.shape), jnp.float32)
    zeros_PVD = constrain(zeros_PVD, layout.P, layout.V, "activation")
    grad_PVD, (grad_nPRD, objective, nll) = jax.lax.scan(body, zeros_PVD, chunks)
    grad_VD = constrain(grad_PVD.sum(0), symbols, "vocab_embed", rules=PARAMETER_RULES).astype(table_VD.dtype)
    # The barrier has the parts summed and freed before the layers' backward pass, which is when memory is short.
    return (objective.sum(), nll.sum()), jax.lax.optimization_barrier((_join(grad_nPRD, layout, len(x_BTD)), grad_VD))


def _objective_bwd(
    symbols: str,
    softcap: float,
    z_loss: float,
    smoothing: float,
    chunk: int,
    residuals: tuple[jax.Array, jax.Array],
    cotangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, None, None]:
    grad_BTD, grad_VD = residuals
    factor = cotangents[0]
    return grad_BTD * factor.astype(grad_BTD.dtype), grad_VD * factor, None, None


_objective.defvjp(_objective_fwd, _objective_bwd)
