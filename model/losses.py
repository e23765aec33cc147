"""Cross-entropy as sums, never means, over logits that exist one chunk of the row at a time.

B batch, T length, C chunk of T, D embed, V vocabulary (or classes).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp


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
    softcap: float = 0.0,
    z_loss: float = 0.0,
    chunk: int = 0,
) -> LossSums:
    """Returns the `LossSums` of softmax(x table^T) against the targets.

    Args:
        x_BTD: hidden states; products run in their dtype, the softmax in float32.
        table_VD: one row an output symbol.
        targets_BT: indices into V; anything where the weight is 0.
        weights_BT: float weights, 0 for positions that are not trained on.
        softcap: positive: logits become softcap * tanh(logits / softcap).
        z_loss: weight of log(Z)^2 (PaLM, arXiv:2204.02311, section 5).
        chunk: positions a row whose logits exist at once; must divide T; 0 is the whole row.
    """
    objective, nll = _objective(x_BTD, table_VD, targets_BT, weights_BT, softcap, z_loss, chunk)
    return LossSums(objective, jax.lax.stop_gradient(nll), weights_BT.sum())


def logits(x_BTD: jax.Array, table_VD: jax.Array, softcap: float = 0.0) -> jax.Array:
    """Returns logits_BTV in float32."""
    z = jnp.einsum("BTD,VD->BTV", x_BTD, table_VD.astype(x_BTD.dtype), preferred_element_type=jnp.float32)
    return softcap * jnp.tanh(z / softcap) if softcap else z


def token_nll(
    x_BTD: jax.Array, table_VD: jax.Array, targets_BT: jax.Array, *, softcap: float = 0.0, chunk: int = 0
) -> jax.Array:
    """Returns nll_BT, the negative log-likelihood of each target in nats."""
    return _forward(x_BTD, table_VD, targets_BT, softcap, chunk)[0]


def _pick(logits_BCV: jax.Array, targets_BC: jax.Array) -> jax.Array:
    # A masked sum, not a gather: it stays local when V is sharded.
    hit = jax.lax.broadcasted_iota(jnp.int32, logits_BCV.shape, 2) == targets_BC[..., None]
    return jnp.where(hit, logits_BCV, 0.0).sum(-1)


def _split(x_BT: jax.Array, chunk: int) -> jax.Array:
    """Returns x_BT... as (T / chunk, B, chunk, ...)."""
    B, T = x_BT.shape[:2]
    size = chunk or T
    return jnp.moveaxis(x_BT.reshape(B, T // size, size, *x_BT.shape[2:]), 1, 0)


def _join(x_nBC: jax.Array) -> jax.Array:
    x_BnC = jnp.moveaxis(x_nBC, 0, 1)
    return x_BnC.reshape(x_BnC.shape[0], -1, *x_BnC.shape[3:])


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _objective(
    x_BTD: jax.Array,
    table_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    softcap: float,
    z_loss: float,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    nll_BT, log_z_BT = _forward(x_BTD, table_VD, targets_BT, softcap, chunk)
    nll = (nll_BT * weights_BT).sum()
    return nll + z_loss * (jnp.square(log_z_BT) * weights_BT).sum(), nll


def _forward(
    x_BTD: jax.Array, table_VD: jax.Array, targets_BT: jax.Array, softcap: float, chunk: int
) -> tuple[jax.Array, jax.Array]:
    def body(_: None, xs: tuple[jax.Array, jax.Array]) -> tuple[None, tuple[jax.Array, jax.Array]]:
        logits_BCV = logits(xs[0], table_VD, softcap)
        log_z_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
        return None, (log_z_BC - _pick(logits_BCV, xs[1]), log_z_BC)

    _, (nll, log_z) = jax.lax.scan(body, None, (_split(x_BTD, chunk), _split(targets_BT, chunk)))
    return _join(nll), _join(log_z)


def _objective_fwd(
    x_BTD: jax.Array,
    table_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    softcap: float,
    z_loss: float,
    chunk: int,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    # The objective is a sum, so its gradient needs nothing that the backward pass would bring but a scalar factor:
    # taking it here, chunk by chunk, costs three vocabulary products where recomputing the logits would cost four.
    table = table_VD.astype(x_BTD.dtype)

    def body(grad_VD: jax.Array, xs: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        x_BCD, targets_BC, weights_BC = xs
        logits_BCV = logits(x_BCD, table, softcap)
        log_z_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
        nll_BC = log_z_BC - _pick(logits_BCV, targets_BC)
        sums = ((nll_BC * weights_BC).sum(), (jnp.square(log_z_BC) * weights_BC).sum())
        hit = jax.lax.broadcasted_iota(jnp.int32, logits_BCV.shape, 2) == targets_BC[..., None]
        p_BCV = jnp.exp(logits_BCV - log_z_BC[..., None])
        g_BCV = (p_BCV * (1.0 + 2.0 * z_loss * log_z_BC)[..., None] - hit) * weights_BC[..., None]
        if softcap:
            g_BCV *= 1.0 - jnp.square(logits_BCV / softcap)
        g_BCV = g_BCV.astype(x_BCD.dtype)
        grad_BCD = jnp.einsum("BCV,VD->BCD", g_BCV, table)
        grad_VD += jnp.einsum("BCV,BCD->VD", g_BCV, x_BCD, preferred_element_type=jnp.float32)
        return grad_VD, (grad_BCD, *sums)

    chunks = tuple(_split(a, chunk) for a in (x_BTD, targets_BT, weights_BT))
    zeros_VD = jnp.zeros(table_VD.shape, jnp.float32)
    grad_VD, (grad_nBCD, nll, log_z_squared) = jax.lax.scan(body, zeros_VD, chunks)
    objective = nll.sum() + z_loss * log_z_squared.sum()
    return (objective, nll.sum()), (_join(grad_nBCD), grad_VD.astype(table_VD.dtype))


def _objective_bwd(
    softcap: float,
    z_loss: float,
    chunk: int,
    residuals: tuple[jax.Array, jax.Array],
    cotangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, None, None]:
    grad_BTD, grad_VD = residuals
    factor = cotangents[0]
    return grad_BTD * factor.astype(grad_BTD.dtype), grad_VD * factor, None, None


_objective.defvjp(_objective_fwd, _objective_bwd)
