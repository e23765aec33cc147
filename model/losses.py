"""Cross-entropy from hidden states, as sums (never means); only one chunk of the logits exists at a time.

Rows are cut into chunks of positions, and each chunk's logits, loss terms and gradient are computed before the next
chunk's. `_token_terms` and `_logit_gradient` are the mathematics; the rest distributes it over chunks and devices.

B batch, T length, n chunks, P parts that the tokens are split into over devices, R tokens per part and chunk, D embed,
V vocabulary or classes.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from model.dtypes import on_one_cpu
from model.experts import RouterSums
from model.products import token_sum
from model.sharding import PARAMETER_RULES, constrain, shards


class LossSums(NamedTuple):
    """Sums over tokens; the training step divides by `weight` once, after accumulation and across devices.

    Attributes:
        objective: what is differentiated: the weighted negative log-likelihood plus z-loss and smoothing, in nats.
        nll: the weighted negative log-likelihood alone, in nats; what is reported.
        weight: the sum of the token weights.
        routers: the sums of the routers of a model with experts.
    """

    objective: jax.Array
    nll: jax.Array
    weight: jax.Array
    routers: RouterSums | None = None


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """How the cross-entropy is computed; static and hashable.

    Attributes:
        symbols: logical axis of V (`model/sharding.py`).
        softcap: logits become softcap * tanh(logits / softcap); 0: off.
        z_loss: weight of log(Z)^2 (PaLM, arXiv:2204.02311, section 5); 0: off.
        smoothing: fraction of each target's weight that is spread over all symbols (arXiv:1512.00567, section 7); not
            part of `LossSums.nll`; 0: off.
        chunk: positions of a row whose logits exist at a time on a device; must divide the device's part of T; 0: all,
            on one CPU those of 2^22 logits, but of at least 512 tokens.
        few_targets: positions with a weight come first, and chunks without any are skipped; `chunk` is by default an
            eighth of the device's part of T.
    """

    symbols: Literal["vocab", "classes"] = "vocab"
    softcap: float = 0.0
    z_loss: float = 0.0
    smoothing: float = 0.0
    chunk: int = 0
    few_targets: bool = False


_DEFAULT = LossOptions()
_Carry = TypeVar("_Carry")
_Output = TypeVar("_Output")
_SKIPPABLE_PARTS = 8
# On one CPU: chunks of so many logits, which its caches hold, but of no fewer tokens, as each reads the whole table.
_CACHED_LOGITS, _FEWEST_TOKENS = 2**22, 512


def cross_entropy(
    x_BTD: jax.Array,
    table_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    options: LossOptions = _DEFAULT,
) -> LossSums:
    """Returns the `LossSums` of softmax(x table^T) against the targets.

    Args:
        x_BTD: hidden states; matrix products run in their dtype, the softmax in float32.
        table_VD: the output table, one row per symbol.
        targets_BT: indices into V; ignored where the weight is 0.
        weights_BT: float weights; 0 excludes a position from the loss.
        options: softcap, z-loss, smoothing and chunk size.
    """
    if options.few_targets:
        x_BTD, targets_BT, weights_BT = _weighted_first(weights_BT, x_BTD, targets_BT, weights_BT)
    objective, nll = _objective(x_BTD, table_VD, targets_BT, weights_BT, options)
    return LossSums(objective, jax.lax.stop_gradient(nll), weights_BT.sum())


def logits(x_BTD: jax.Array, table_VD: jax.Array, softcap: float = 0.0) -> jax.Array:
    """Returns logits_BTV in float32."""
    z = jnp.einsum("BTD,VD->BTV", x_BTD, table_VD.astype(x_BTD.dtype), preferred_element_type=jnp.float32)
    return softcap * jnp.tanh(z / softcap) if softcap else z


def token_nll(
    x_BTD: jax.Array, table_VD: jax.Array, targets_BT: jax.Array, *, softcap: float = 0.0, chunk: int = 0
) -> jax.Array:
    """Returns nll_BT, the negative log-likelihood of each target in nats; `chunk` need not divide T."""

    def nll(logits_PRV: jax.Array, targets_PR: jax.Array) -> tuple[jax.Array]:
        return (_token_terms(logits_PRV, targets_PR, _DEFAULT).nll,)

    # Rows that are scored can have another length than those that are trained.
    options = LossOptions(softcap=softcap, chunk=largest_divisor(targets_BT.shape[1] // shards("length"), chunk))
    return _map_chunks(nll, x_BTD, table_VD, targets_BT, options)[0]


def largest_divisor(length: int, most: int) -> int:
    """Returns the largest divisor of `length` that is at most `most`; 0 for 0."""
    return next((size for size in range(min(most, length), 0, -1) if length % size == 0), 0)


def token_scores(
    x_BTD: jax.Array, table_VD: jax.Array, targets_BT: jax.Array, *, softcap: float = 0.0, chunk: int = 0
) -> jax.Array:
    """Returns (B, T, 2): the negative log-likelihood, in nats, of each target and of the most likely symbol there."""

    def scores(logits_PRV: jax.Array, targets_PR: jax.Array) -> tuple[jax.Array, jax.Array]:
        terms = _token_terms(logits_PRV, targets_PR, _DEFAULT)
        return terms.nll, terms.log_z - logits_PRV.max(-1)

    options = LossOptions(softcap=softcap, chunk=chunk)
    return jnp.stack(_map_chunks(scores, x_BTD, table_VD, targets_BT, options), axis=-1)


class _Terms(NamedTuple):
    """Per-token terms before weighting, each (P, R)."""

    objective: jax.Array
    nll: jax.Array
    log_z: jax.Array


def _token_terms(logits_PRV: jax.Array, targets_PR: jax.Array, options: LossOptions) -> _Terms:
    """Returns each token's loss terms, given its (softcapped) logits."""
    log_z_PR = jax.nn.logsumexp(logits_PRV, axis=-1)
    # A masked sum instead of a gather, because it needs no communication when V is sharded.
    nll_PR = log_z_PR - jnp.where(_is_target(logits_PRV, targets_PR), logits_PRV, 0.0).sum(-1)
    objective_PR = nll_PR + options.z_loss * jnp.square(log_z_PR)
    if options.smoothing:
        objective_PR += options.smoothing * (log_z_PR - logits_PRV.mean(-1) - nll_PR)
    return _Terms(objective_PR, nll_PR, log_z_PR)


def _logit_gradient(
    logits_PRV: jax.Array, targets_PR: jax.Array, log_z_PR: jax.Array, options: LossOptions
) -> jax.Array:
    """Returns the gradient of `_token_terms(...).objective` with respect to the logits before the softcap."""
    labels_PRV = _is_target(logits_PRV, targets_PR)
    if options.smoothing:
        labels_PRV = (1.0 - options.smoothing) * labels_PRV + options.smoothing / logits_PRV.shape[-1]
    p_PRV = jnp.exp(logits_PRV - log_z_PR[..., None])
    g_PRV = p_PRV * (1.0 + 2.0 * options.z_loss * log_z_PR)[..., None] - labels_PRV
    return g_PRV * (1.0 - jnp.square(logits_PRV / options.softcap)) if options.softcap else g_PRV


def _is_target(logits_PRV: jax.Array, targets_PR: jax.Array) -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.int32, logits_PRV.shape, 2) == targets_PR[..., None]


class _Layout(NamedTuple):
    """Logical axes of P, of R between chunks, and of V."""

    P: str
    R: str
    V: str


def _layout(x_BTD: jax.Array, table_VD: jax.Array, symbols: str) -> _Layout:
    """Returns which of the two, tokens or table, is gathered over fsdp: the one with fewer rows (`model/sharding.py`).

    With the tokens gathered, the table and its float32 gradient stay split, as a large vocabulary on few devices needs;
    with the table gathered, the bytes that a device receives do not grow with the number of devices.
    """
    B, T, _ = x_BTD.shape
    if symbols == "vocab" and B * T // shards("token_groups") < len(table_VD) // shards("vocab"):
        return _Layout("token_groups", "group", "vocab_of_group")
    return _Layout("tokens", "activation", symbols)


def _with_chunk(options: LossOptions, x_BTD: jax.Array, table_VD: jax.Array) -> LossOptions:
    """Returns the options with the chunk that is fastest on one CPU, if none was chosen."""
    if options.chunk or options.few_targets or not on_one_cpu():
        return options
    B, T, _ = x_BTD.shape
    most = max(max(_CACHED_LOGITS // len(table_VD), _FEWEST_TOKENS) // B, 1)
    chunk = largest_divisor(T, most)
    # A length without such divisors would fall apart into tiny chunks.
    return options if 4 * chunk < min(most, T) else dataclasses.replace(options, chunk=chunk)


def _split(x_BT: jax.Array, layout: _Layout, options: LossOptions) -> jax.Array:
    """Returns x_nPR...: n chunks, each with an equal part of every device's tokens, so that no token moves."""
    B, T, *rest = x_BT.shape
    pieces = shards("length")
    rows = shards(layout.P) // pieces
    length = T // pieces
    divisible = options.few_targets and length % _SKIPPABLE_PARTS == 0
    size = min(options.chunk, length) or (length // _SKIPPABLE_PARTS if divisible else length)
    x = x_BT.reshape(rows, B // rows, pieces, -1, size, *rest)
    x_nPR = jnp.moveaxis(x, (3, 0, 2), (0, 1, 2)).reshape(-1, rows * pieces, B // rows * size, *rest)
    return constrain(x_nPR, "activation", layout.P, layout.R, *("activation" for _ in rest))


def _join(x_nPR: jax.Array, layout: _Layout, B: int) -> jax.Array:
    """Returns x_BT..., the inverse of `_split`."""
    n, P, _, *rest = x_nPR.shape
    pieces = shards("length")
    rows = P // pieces
    x = x_nPR.reshape(n, rows, pieces, B // rows, -1, *rest)
    x_BT = jnp.moveaxis(x, (0, 1, 2), (3, 0, 2)).reshape(B, -1, *rest)
    return constrain(x_BT, "batch", "length", *("activation" for _ in rest))


def _weighted_first(weights_BT: jax.Array, *arrays: jax.Array) -> list[jax.Array]:
    """Returns arrays (B, T, ...) with the positions that have a weight first, in each device's part of a row."""
    B, T = weights_BT.shape
    by_device = (B, shards("length"), T // shards("length"))
    order = jnp.argsort(weights_BT.reshape(by_device) == 0, axis=-1, stable=True)

    def sort(x: jax.Array) -> jax.Array:
        rest = x.shape[2:]
        index = order.reshape(*by_device, *(1 for _ in rest))
        sorted_x = jnp.take_along_axis(x.reshape(*by_device, *rest), index, axis=2)
        return constrain(sorted_x.reshape(x.shape), "batch", "length", *("activation" for _ in rest))

    return [sort(x) for x in arrays]


def _used(weights_nPR: jax.Array, options: LossOptions) -> jax.Array | None:
    """Returns the number of chunks up to the last one with a weight, or None for all of them."""
    return (weights_nPR != 0).any((1, 2)).sum() if options.few_targets else None


def _scan(
    body: Callable[[_Carry, tuple[jax.Array, ...]], tuple[_Carry, _Output]],
    carry: _Carry,
    chunks: tuple[jax.Array, ...],
    used: jax.Array | None,
) -> tuple[_Carry, _Output]:
    """Returns `jax.lax.scan` over the first `used` chunks, or all for None; the outputs of the others are 0."""
    if used is None:
        return jax.lax.scan(body, carry, chunks)
    n = len(chunks[0])

    def step(i: jax.Array, state: tuple[_Carry, _Output]) -> tuple[_Carry, _Output]:
        carry, outputs = state
        carry, output = body(carry, tuple(jax.lax.dynamic_index_in_dim(chunk, i, keepdims=False) for chunk in chunks))
        return carry, jax.tree.map(lambda o, x: jax.lax.dynamic_update_index_in_dim(o, x, i, 0), outputs, output)

    _, shapes = jax.eval_shape(body, carry, tuple(chunk[0] for chunk in chunks))
    outputs = jax.tree.map(lambda shape: jnp.zeros((n, *shape.shape), shape.dtype), shapes)
    return jax.lax.fori_loop(0, used, step, (carry, outputs))


def _gathered(layout: _Layout, *chunk: jax.Array) -> list[jax.Array]:
    return [constrain(x, layout.P, *("activation" for _ in x.shape[1:])) for x in chunk]


def _map_chunks(
    function: Callable[[jax.Array, jax.Array], tuple[jax.Array, ...]],
    x_BTD: jax.Array,
    table_VD: jax.Array,
    targets_BT: jax.Array,
    options: LossOptions,
    weights_BT: jax.Array | None = None,
) -> tuple[jax.Array, ...]:
    """Returns the (B, T) outputs of `function(logits_PRV, targets_PR)`, applied to one chunk after the other.

    With weights, chunks may be skipped (`LossOptions.few_targets`), whose outputs are 0.
    """
    layout = _layout(x_BTD, table_VD, options.symbols)
    table = constrain(table_VD.astype(x_BTD.dtype), layout.V, "activation")

    def body(_: None, chunk: tuple[jax.Array, jax.Array]) -> tuple[None, tuple[jax.Array, ...]]:
        x_PRD, targets_PR = _gathered(layout, *chunk)
        return None, function(logits(x_PRD, table, options.softcap), targets_PR)

    chunks = tuple(_split(a, layout, options) for a in (x_BTD, targets_BT))
    used = None if weights_BT is None else _used(_split(weights_BT, layout, options), options)
    # Where the result is differentiated (`task_heads.preference`), a chunk's logits are recomputed rather than stored.
    _, outputs = _scan(jax.checkpoint(body), None, chunks, used)
    return tuple(_join(x_nPR, layout, len(x_BTD)) for x_nPR in outputs)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _objective(
    x_BTD: jax.Array, table_VD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array, options: LossOptions
) -> tuple[jax.Array, jax.Array]:
    """Returns (objective, nll), summed over the tokens."""

    def terms(logits_PRV: jax.Array, targets_PR: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _token_terms(logits_PRV, targets_PR, options)[:2]

    options = _with_chunk(options, x_BTD, table_VD)
    objective_BT, nll_BT = _map_chunks(terms, x_BTD, table_VD, targets_BT, options, weights_BT)
    return (objective_BT * weights_BT).sum(), (nll_BT * weights_BT).sum()


@jax.named_scope("cross_entropy")
def _objective_fwd(
    x_BTD: jax.Array, table_VD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array, options: LossOptions
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    # The objective is a sum, so the backward pass contributes only a scalar factor to its gradient. Computing the
    # gradient here, chunk by chunk, takes three products with the table; recomputing the logits later would take four.
    options = _with_chunk(options, x_BTD, table_VD)
    layout = _layout(x_BTD, table_VD, options.symbols)
    table = constrain(table_VD.astype(x_BTD.dtype), layout.V, "activation")

    def body(grad_PVD: jax.Array, chunk: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        x_PRD, targets_PR, weights_PR = _gathered(layout, *chunk)
        logits_PRV = logits(x_PRD, table, options.softcap)
        terms = _token_terms(logits_PRV, targets_PR, options)
        g_PRV = _logit_gradient(logits_PRV, targets_PR, terms.log_z, options) * weights_PR[..., None]
        g_PRV = g_PRV.astype(x_PRD.dtype)
        grad_PRD = constrain(jnp.einsum("PRV,VD->PRD", g_PRV, table), layout.P, layout.R, "activation")
        grad_PVD += token_sum("PRV,PRD->PVD", g_PRV, x_PRD)
        return grad_PVD, (grad_PRD, terms.objective * weights_PR, terms.nll * weights_PR)

    chunks = tuple(_split(a, layout, options) for a in (x_BTD, targets_BT, weights_BT))
    # Each part accumulates its own gradient of the table: one sum over the devices instead of one per chunk.
    zeros_PVD = jnp.zeros((shards(layout.P), *table_VD.shape), jnp.float32)
    zeros_PVD = constrain(zeros_PVD, layout.P, layout.V, "activation")
    grad_PVD, (grad_nPRD, objective, nll) = _scan(body, zeros_PVD, chunks, _used(chunks[2], options))
    grad_VD = constrain(grad_PVD.sum(0), options.symbols, "vocab_embed", rules=PARAMETER_RULES).astype(table_VD.dtype)
    # The barrier makes XLA sum and free the parts before the layers' backward pass, where memory is scarce.
    return (objective.sum(), nll.sum()), jax.lax.optimization_barrier((_join(grad_nPRD, layout, len(x_BTD)), grad_VD))


def _objective_bwd(
    options: LossOptions, residuals: tuple[jax.Array, jax.Array], cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, None, None]:
    grad_BTD, grad_VD = residuals
    factor = cotangents[0]
    return grad_BTD * factor.astype(grad_BTD.dtype), grad_VD * factor, None, None


_objective.defvjp(_objective_fwd, _objective_bwd)
