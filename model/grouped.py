"""Groups of rows, each through its own MLP: by `ragged_dot`, or on a CPU by a loop over blocks of rows.

A group is padded to whole blocks on a CPU, where XLA's `ragged_dot` multiplies each row by every matrix. A few blocks
are computed at once: as one product of a stack of matrices, XLA shares them among the cores.

D width, E groups, R rows of all groups, S tokens, m blocks at once of b rows.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from model.dtypes import platform

Kernels = dict[str, jax.Array]
# By the tokens and by the matrices.
Gradients = tuple[jax.Array, Kernels]
Mlp = Callable[[jax.Array, Callable[[jax.Array, str], jax.Array]], jax.Array]

_LARGEST_BLOCK = 128
_MOST_BLOCKS = 4
# Elements of the matrices that are copied for the blocks computed at once: 2 MB in float32, which stay in the cache.
_MOST_COPIED = 1 << 19


class Groups(NamedTuple):
    """Rows sorted by expert, each expert's group padded to whole blocks.

    Attributes:
        sizes_E: rows of each group, a multiple of `block`.
        source_R: index among the sorted assignments that each row holds.
        real_R: whether a row holds an assignment.
        block: rows per block; static.
    """

    sizes_E: jax.Array
    source_R: jax.Array
    real_R: jax.Array
    block: int


def block_size(assignments: int, experts: int) -> int:
    """Returns the rows per block: 1, without padding, where `ragged_dot` is native; else near an expert's load."""
    if platform() != "cpu":
        return 1
    return min(_LARGEST_BLOCK, 1 << max(assignments // experts, 1).bit_length() - 1)


def make_groups(load_E: jax.Array, block: int, most: int) -> Groups:
    """Returns the groups of experts with these numbers of assignments, which are at most `most` together."""
    sizes_E = -(-load_E // block) * block
    ends_E, last_E = jnp.cumsum(sizes_E), jnp.cumsum(load_E)
    rows = -(-(most + len(load_E) * (block - 1)) // block) * block
    row_R = jnp.arange(rows)
    expert_R = jnp.minimum(jnp.searchsorted(ends_E, row_R, side="right"), len(load_E) - 1)
    offset_R = row_R - (ends_E - sizes_E)[expert_R]
    real_R = offset_R < load_E[expert_R]
    source_R = jnp.where(real_R, (last_E - load_E)[expert_R] + offset_R, 0)
    return Groups(sizes_E.astype(jnp.int32), source_R, real_R, block)


class Rows(NamedTuple):
    """What each row of the groups is of; what stands in rows without an assignment counts nowhere.

    Attributes:
        groups: the groups.
        token_R: its token.
        gates_R: its weight in the token's sum.
    """

    groups: Groups
    token_R: jax.Array
    gates_R: jax.Array


def through_groups(mlp: Mlp, x_SD: jax.Array, rows: Rows, kernels: Kernels) -> jax.Array:
    """Returns y_SD in float32: for each token the sum over its rows of gate times the MLP of the row's group.

    Args:
        mlp: maps rows and `product(rows, name)`, the rows times the matrix of that name, to rows of the same width.
        x_SD: the tokens.
        rows: the rows of all groups.
        kernels: by name, one matrix per group.
    """
    if platform() == "cpu":
        return _in_blocks(mlp, x_SD, _cast(kernels, x_SD), _make_blocks(rows, kernels))
    y_RD = _of_rows(mlp, rows.groups, x_SD[rows.token_R], rows.gates_R, kernels)
    return jnp.zeros(x_SD.shape, jnp.float32).at[rows.token_R].add(y_RD)


def add_gradients(
    mlp: Mlp, total: Gradients, dy_SD: jax.Array, x_SD: jax.Array, rows: Rows, kernels: Kernels
) -> tuple[Gradients, jax.Array]:
    """Returns (`total` plus the gradients by `x_SD` and `kernels`, the gradient by the gates) of `through_groups`.

    It adds in place: the gradient by itself would be one more array of the size of all tokens.
    """
    if platform() == "cpu":
        blocks = _make_blocks(rows, kernels)
        total, dgates_imb = _add_in_blocks(mlp, total, dy_SD, x_SD, _cast(kernels, x_SD), blocks)
        return total, jnp.where(rows.groups.real_R, dgates_imb.reshape(-1)[: len(rows.gates_R)], 0)
    _, pull = jax.vjp(partial(_of_rows, mlp, rows.groups), x_SD[rows.token_R], rows.gates_R, kernels)
    dx_RD, dgates_R, dkernels = pull(dy_SD[rows.token_R].astype(jnp.float32))
    dx_SD, dtotal = total
    return (dx_SD.at[rows.token_R].add(dx_RD), jax.tree.map(jnp.add, dtotal, dkernels)), dgates_R


def _of_rows(mlp: Mlp, groups: Groups, x_RD: jax.Array, gates_R: jax.Array, kernels: Kernels) -> jax.Array:
    """Returns y_RD in float32: each row through its group's MLP, times its gate; 0 where a row has no assignment."""
    real_R1, kernels = groups.real_R[:, None], _cast(kernels, x_RD)

    def product(rows: jax.Array, name: str) -> jax.Array:
        # Beyond the groups, `ragged_dot` leaves memory uninitialized on some platforms.
        return jax.lax.ragged_dot(jnp.where(real_R1, rows, 0), kernels[name], groups.sizes_E)

    y_RD = mlp(x_RD, product).astype(jnp.float32)
    # Before the gates, whose gradient would otherwise have a product with what is no row's result.
    return jnp.where(real_R1, y_RD, 0) * gates_R[:, None]


def _cast(kernels: Kernels, x: jax.Array) -> Kernels:
    return {name: kernel.astype(x.dtype) for name, kernel in kernels.items()}


class _Blocks(NamedTuple):
    """The rows of all groups in blocks of b, m of them per turn of the loop.

    Attributes:
        token_imb: token of each row.
        gates_imb: its weight; 0 for a row without an assignment.
        group_im: group of each block.
        turns: number of turns in which a block has an assignment.
    """

    token_imb: jax.Array
    gates_imb: jax.Array
    group_im: jax.Array
    turns: jax.Array


def _make_blocks(rows: Rows, kernels: Kernels) -> _Blocks:
    """Returns the blocks, as many at once as can each have a copy of its group's matrices in the cache."""
    count, block = len(rows.token_R), rows.groups.block
    per_group = sum(kernel[0].size for kernel in kernels.values())
    at_once = max(1, min(_MOST_BLOCKS, count // block, _MOST_COPIED // per_group))
    shape = (-(-count // (block * at_once)), at_once, block)
    counts_E = rows.groups.sizes_E // block
    group_n = jnp.searchsorted(jnp.cumsum(counts_E), jnp.arange(shape[0] * at_once), side="right")
    gates_R = jnp.where(rows.groups.real_R, rows.gates_R, 0)
    token_imb, gates_imb = (
        jnp.pad(x_R, (0, math.prod(shape) - count)).reshape(shape) for x_R in (rows.token_R, gates_R)
    )
    group_im = jnp.minimum(group_n, len(counts_E) - 1).reshape(shape[:2])
    return _Blocks(token_imb, gates_imb, group_im, -(-counts_E.sum() // at_once))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_blocks(mlp: Mlp, x_SD: jax.Array, kernels: Kernels, blocks: _Blocks) -> jax.Array:
    """Returns what `through_groups` does; the loop ends with the last block that has an assignment.

    Tokens are gathered and results added up within the loop, so that no array has a row per assignment, and a block's
    intermediate rows stay in the processor's cache. The backward pass computes them again, which costs less than
    storing them.
    """

    def body(i: jax.Array, y_SD: jax.Array) -> jax.Array:
        token_mb, of_groups = blocks.token_imb[i], _of_groups(kernels, blocks.group_im[i])
        return y_SD.at[token_mb].add(_block(mlp, x_SD[token_mb], blocks.gates_imb[i], of_groups))

    return jax.lax.fori_loop(0, blocks.turns, body, jnp.zeros(x_SD.shape, jnp.float32))


def _block(mlp: Mlp, x_mbD: jax.Array, gates_mb: jax.Array, kernels: Kernels) -> jax.Array:
    y_mbD = mlp(x_mbD, lambda rows, name: rows @ kernels[name])
    return y_mbD.astype(jnp.float32) * gates_mb[..., None]


def _of_groups(kernels: Kernels, group_m: jax.Array) -> Kernels:
    return {name: kernel[group_m] for name, kernel in kernels.items()}


def _in_blocks_fwd(mlp: Mlp, x_SD: jax.Array, kernels: Kernels, blocks: _Blocks) -> tuple[jax.Array, tuple[Any, ...]]:
    return _in_blocks(mlp, x_SD, kernels, blocks), (x_SD, kernels, blocks)


def _in_blocks_bwd(mlp: Mlp, residuals: tuple[Any, ...], dy_SD: jax.Array) -> tuple[jax.Array, Kernels, _Blocks]:
    x_SD, kernels, blocks = residuals
    zeros = jnp.zeros(x_SD.shape, jnp.float32), jax.tree.map(jnp.zeros_like, kernels)
    (dx_SD, dkernels), dgates_imb = _add_in_blocks(mlp, zeros, dy_SD, x_SD, kernels, blocks)
    none: Any = None  # an array of integers has no gradient
    return dx_SD.astype(x_SD.dtype), dkernels, _Blocks(none, dgates_imb, none, none)


_in_blocks.defvjp(_in_blocks_fwd, _in_blocks_bwd)


def _add_in_blocks(
    mlp: Mlp, total: Gradients, dy_SD: jax.Array, x_SD: jax.Array, kernels: Kernels, blocks: _Blocks
) -> tuple[Gradients, jax.Array]:
    """Returns (`total` plus the gradients by `x_SD` and `kernels`, the gradient by `blocks.gates_imb`)."""

    def body(i: jax.Array, grads: tuple[Gradients, jax.Array]) -> tuple[Gradients, jax.Array]:
        (dx_SD, total), dgates_imb = grads
        token_mb, group_m = blocks.token_imb[i], blocks.group_im[i]
        _, pull = jax.vjp(partial(_block, mlp), x_SD[token_mb], blocks.gates_imb[i], _of_groups(kernels, group_m))
        dx_mbD, dgates_mb, dkernels = pull(dy_SD[token_mb].astype(jnp.float32))
        dx_SD = dx_SD.at[token_mb].add(dx_mbD.astype(dx_SD.dtype))
        total = {name: sum_E.at[group_m].add(dkernels[name].astype(sum_E.dtype)) for name, sum_E in total.items()}
        return (dx_SD, total), dgates_imb.at[i].set(dgates_mb)

    summed: tuple[Gradients, jax.Array]
    summed = jax.lax.fori_loop(0, blocks.turns, body, (total, jnp.zeros_like(blocks.gates_imb)))
    return summed
