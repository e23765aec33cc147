"""Computes each token's experts, on one device or over the `expert` axis of the mesh; no choice is dropped.

A token's choices are its assignments. They are sorted by expert, so that each expert multiplies one group of rows
(`grouped.py`). Padding tokens have no assignments.

Over the `expert` axis, whose devices form a group, each device has some of the experts, whole. A `Transport` sends the
group's tokens to each of its devices; a device computes the assignments of its own experts and adds them up per token,
and the transport brings the sums back. How many assignments a device gets depends on the tokens, up to all of the
group's. So it computes them in rounds of a fixed size: the memory is that of one round, and a device with more work
takes more rounds instead of dropping it or reserving memory for it.

B batch, T length, D embed, E experts, K experts per token, F expert width, S tokens of a device, Q tokens of its group,
A assignments (S x K or Q x K), R rows of all groups, P devices that tokens are split over.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from model.config import ModelConfig
from model.grouped import Gradients, Groups, Kernels, Rows, add_gradients, block_size, make_groups, through_groups
from model.layers import activated
from model.sharding import ACTIVATION_RULES, PARAMETER_RULES, shards, spec

_EXPERT_AXES, _WIDTH_AXES = PARAMETER_RULES["experts"], PARAMETER_RULES["mlp"]
# Assignments per round over a device's share if the load is even: it then takes one round unless it has more than this.
ROUND = 1.25


class Transport(NamedTuple):
    """How tokens get to the devices of their experts and back; inside `shard_map`, over the `expert` axis.

    Each function is the transpose of the other, so that the backward pass needs no others.

    Attributes:
        send: x_S... of each device -> x_Q..., the tokens that a device computes experts for.
        bring_back: y_Q... -> y_S...: for each token of a device, the sum over the devices that it was sent to.
    """

    send: Callable[[jax.Array], jax.Array]
    bring_back: Callable[[jax.Array], jax.Array]


# Each device gets all tokens of its group.
GATHER = Transport(
    send=partial(jax.lax.all_gather, axis_name=_EXPERT_AXES, tiled=True),
    bring_back=partial(jax.lax.psum_scatter, axis_name=_EXPERT_AXES, scatter_dimension=0, tiled=True),
)


def dispatch(
    config: ModelConfig, x_BTD: jax.Array, experts_BTK: jax.Array, gates_BTK: jax.Array, kernels: Kernels
) -> tuple[jax.Array, jax.Array]:
    """Returns (y_BTD, rounds_P): the sum over each token's experts of gate times the expert's MLP; rounds per device.

    Args:
        config: the model.
        x_BTD: the tokens.
        experts_BTK: index of each choice; E: none, for padding.
        gates_BTK: weight of each choice.
        kernels: "up", "down" and, in a gated MLP, "gate": one matrix per expert.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return _local(config, x_BTD, experts_BTK, gates_BTK, kernels)
    B, T, _ = x_BTD.shape
    # Generation may have fewer rows than there are devices.
    widths = ((0, -B % shards("batch")), (0, -T % shards("length")), (0, 0))
    x_BTD, gates_BTK = (jnp.pad(x, widths) for x in (x_BTD, gates_BTK))
    experts_BTK = jnp.pad(experts_BTK, widths, constant_values=config.num_experts)
    tokens = spec(("batch", "length", "activation"), ACTIVATION_RULES)
    split = {name: PartitionSpec(_EXPERT_AXES, None, _WIDTH_AXES) for name in kernels}
    split["down"] = PartitionSpec(_EXPERT_AXES, _WIDTH_AXES, None)

    def local(x: jax.Array, experts: jax.Array, gates: jax.Array, kernels: Kernels) -> tuple[jax.Array, jax.Array]:
        y, rounds = _local(config, x, experts, gates, kernels)
        # Each device has a part of its experts' width, and so a part of the sum over it.
        return jax.lax.psum(y, _WIDTH_AXES), rounds

    out = tokens, spec(("tokens",), ACTIVATION_RULES)
    run = jax.shard_map(local, in_specs=(tokens, tokens, tokens, split), out_specs=out, check_vma=False)
    y_BTD, rounds_P = run(x_BTD, experts_BTK, gates_BTK, kernels)
    return y_BTD[:B, :T], rounds_P


def _local(
    config: ModelConfig, x_BTD: jax.Array, experts_BTK: jax.Array, gates_BTK: jax.Array, kernels: Kernels
) -> tuple[jax.Array, jax.Array]:
    """Returns what `dispatch` does, for the tokens of one device."""
    x_SD, experts_SK, gates_SK = (x.reshape(-1, x.shape[-1]) for x in (x_BTD, experts_BTK, gates_BTK))
    if len(kernels["up"]) == config.num_experts:
        work = _sorted(experts_SK, config.num_experts, 0, experts_SK.size)
        y_SD = _sum(config, _part(work, 0), x_SD, gates_SK.reshape(-1), kernels).astype(x_SD.dtype)
        rounds = jnp.ones((), jnp.float32)
    else:
        y_SD, rounds = _in_rounds(config, GATHER, x_SD, experts_SK, gates_SK, kernels)
    return y_SD.reshape(x_BTD.shape), rounds[None]


class _Work(NamedTuple):
    """The assignments of a device's experts.

    Attributes:
        order_A: indices of all assignments, those of this device's experts first and sorted by expert.
        load_E: assignments of each of its experts.
        per_token: K.
        size: assignments per round.
        block: rows per block; both are static.
    """

    order_A: jax.Array
    load_E: jax.Array
    per_token: int
    size: int
    block: int


def _sorted(experts_SK: jax.Array, count: int, first: jax.Array | int, size: int) -> _Work:
    """Returns the work of a device that has the `count` experts from `first` on, in rounds of `size`."""
    local_A = experts_SK.reshape(-1) - first
    local_A = jnp.where((local_A >= 0) & (local_A < count), local_A, count)
    load_E = jnp.bincount(local_A, length=count + 1)[:count]
    return _Work(order_by_expert(local_A, count), load_E, experts_SK.shape[1], size, block_size(size, count))


def order_by_expert(local_A: jax.Array, count: int) -> jax.Array:
    """Returns the indices of the assignments, sorted by their expert, of 0 to `count`."""
    size = len(local_A)
    if (count + 1) * size > jnp.iinfo(jnp.int32).max:
        return jnp.argsort(local_A, stable=True)
    # Expert and index in one number: on a CPU 15 times as fast as to sort both, for a TPU quicker to compile.
    return jnp.sort(local_A.astype(jnp.int32) * size + jnp.arange(size, dtype=jnp.int32)) % size


class _Part(NamedTuple):
    """One round: its groups, and of each row the assignment and its token."""

    groups: Groups
    assignment_R: jax.Array
    token_R: jax.Array

    def rows(self, gates_A: jax.Array) -> Rows:
        """Returns its rows, with these gates of all assignments."""
        return Rows(self.groups, self.token_R, gates_A[self.assignment_R])


def _part(work: _Work, number: jax.Array | int) -> _Part:
    """Returns a round of a device's work."""
    first, last_E = number * work.size, jnp.cumsum(work.load_E)
    load_E = jnp.clip(last_E - first, 0, work.size) - jnp.clip(last_E - work.load_E - first, 0, work.size)
    groups = make_groups(load_E, work.block, work.size)
    assignment_R = work.order_A[first + groups.source_R]
    return _Part(groups, assignment_R, assignment_R // work.per_token)


def _sum(config: ModelConfig, part: _Part, x_SD: jax.Array, gates_A: jax.Array, kernels: Kernels) -> jax.Array:
    """Returns y_SD in float32: for each token the sum over a round's assignments of gate times the expert's MLP."""
    return through_groups(partial(_mlp, config), x_SD, part.rows(gates_A), kernels)


def _mlp(config: ModelConfig, x_RD: jax.Array, product: Callable[[jax.Array, str], jax.Array]) -> jax.Array:
    h_RF = product(x_RD, "up")
    h_RF = activated(config.mlp, product(x_RD, "gate"), h_RF) if config.gated else activated(config.mlp, h_RF)
    return product(h_RF, "down")


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _in_rounds(
    config: ModelConfig,
    transport: Transport,
    x_SD: jax.Array,
    experts_SK: jax.Array,
    gates_SK: jax.Array,
    kernels: Kernels,
) -> tuple[jax.Array, jax.Array]:
    """Returns (y_SD, the number of rounds that this device took) with experts split over the `expert` axis.

    The backward pass saves nothing but its inputs: it sends the tokens again and repeats each round.
    """
    x_QD, experts_QK, gates_QK = (transport.send(x) for x in (x_SD, experts_SK, gates_SK))
    work = _own_work(experts_QK, kernels)

    def body(number: jax.Array, y_QD: jax.Array) -> jax.Array:
        return y_QD + _sum(config, _part(work, number), x_QD, gates_QK.reshape(-1), kernels)

    y_QD = jax.lax.fori_loop(0, _rounds(work), body, jnp.zeros(x_QD.shape, jnp.float32))
    return transport.bring_back(y_QD.astype(x_SD.dtype)), _rounds(work).astype(jnp.float32)


def _own_work(experts_QK: jax.Array, kernels: Kernels) -> _Work:
    count, devices = len(kernels["up"]), jax.lax.axis_size(_EXPERT_AXES)
    size = min(experts_QK.size, math.ceil(ROUND * experts_QK.size / devices))
    return _sorted(experts_QK, count, jax.lax.axis_index(_EXPERT_AXES) * count, size)


def _rounds(work: _Work) -> jax.Array:
    """Returns the number of rounds that are not empty; each device has its own, as rounds contain no collective."""
    return -(-work.load_E.sum() // work.size)


def _in_rounds_fwd(
    config: ModelConfig,
    transport: Transport,
    x_SD: jax.Array,
    experts_SK: jax.Array,
    gates_SK: jax.Array,
    kernels: Kernels,
) -> tuple[tuple[jax.Array, jax.Array], tuple[Any, ...]]:
    return _in_rounds(config, transport, x_SD, experts_SK, gates_SK, kernels), (x_SD, experts_SK, gates_SK, kernels)


def _in_rounds_bwd(
    config: ModelConfig, transport: Transport, residuals: tuple[Any, ...], cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, None, jax.Array, Kernels]:
    x_SD, experts_SK, gates_SK, kernels = residuals
    x_QD, experts_QK, gates_QK, dy_QD = (transport.send(x) for x in (x_SD, experts_SK, gates_SK, cotangents[0]))
    work, gates_A = _own_work(experts_QK, kernels), gates_QK.reshape(-1)

    def body(number: jax.Array, total: tuple[Gradients, jax.Array]) -> tuple[Gradients, jax.Array]:
        part, (grads, dgates) = _part(work, number), total
        grads, dgates_R = add_gradients(partial(_mlp, config), grads, dy_QD, x_QD, part.rows(gates_A), kernels)
        return grads, dgates.at[part.assignment_R].add(dgates_R)

    zeros = jax.tree.map(jnp.zeros_like, ((x_QD, kernels), gates_A))
    (dx_QD, dkernels), dgates_A = jax.lax.fori_loop(0, _rounds(work), body, zeros)
    return (
        transport.bring_back(dx_QD),
        None,
        transport.bring_back(dgates_A.reshape(gates_QK.shape)),
        dkernels,
    )


_in_rounds.defvjp(_in_rounds_fwd, _in_rounds_bwd)
