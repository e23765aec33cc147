"""Groups of rows, each through its own MLP: by `ragged_dot`, or on a CPU by a loop over blocks of rows.

A group is padded to whole blocks on a CPU, where XLA's `ragged_dot` multiplies each row by every matrix. A few blocks
are computed at once: as one product of a stack of matrices, XLA shares them among the cores.

D width, E groups, R rows of all groups, S tokens, m blocks at once of b rows.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from model.dtypes import platform

Kernels = dict[str, jax.Array]
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


def through_groups(
    mlp: Mlp, x_SD: jax.Array, token_R: jax.Array, gates_R: jax.Array, kernels: Kernels, groups: Groups
) -> jax.Array:
    """Returns y_SD in float32: for each token the sum over its rows of gate times the MLP of the row's group.

    Args:
        mlp: maps rows and `product(rows, name)`, the rows times the matrix of that name, to rows of the same width.
        x_SD: the tokens.
        token_R: token of each row.
        gates_R: weight of each row.
        kernels: by name, one matrix per group.
        groups: the groups; rows without an assignment count nowhere.
    """
    kernels = {name: kernel.astype(x_SD.dtype) for name, kernel in kernels.items()}
    if platform() == "cpu":
        blocks = _make_blocks(token_R, groups, _blocks_at_once(kernels, len(token_R) // groups.block))
        gates_R = jnp.pad(jnp.where(groups.real_R, gates_R, 0), (0, blocks.token_imb.size - len(gates_R)))
        return _in_blocks(mlp, x_SD, gates_R.reshape(blocks.token_imb.shape), kernels, blocks)
    real_R1 = groups.real_R[:, None]

    def product(rows: jax.Array, name: str) -> jax.Array:
        # Beyond the groups, `ragged_dot` leaves memory uninitialized on some platforms.
        return jax.lax.ragged_dot(jnp.where(real_R1, rows, 0), kernels[name], groups.sizes_E)

    y_RD = mlp(x_SD[token_R], product).astype(jnp.float32)
    # Before the gates, whose gradient would otherwise have a product with what is no row's result.
    y_RD = jnp.where(real_R1, y_RD, 0) * gates_R[:, None]
    return jnp.zeros(x_SD.shape, jnp.float32).at[token_R].add(y_RD)


class _Blocks(NamedTuple):
    """The rows of all groups in blocks of b, m of them per turn of the loop.

    Attributes:
        token_imb: token of each row.
        group_im: group of each block.
        turns: number of turns in which a block has an assignment.
    """

    token_imb: jax.Array
    group_im: jax.Array
    turns: jax.Array


def _blocks_at_once(kernels: Kernels, blocks: int) -> int:
    """Returns the number of blocks that are computed side by side, each with a copy of its group's matrices."""
    per_group = sum(kernel[0].size for kernel in kernels.values())
    return max(1, min(_MOST_BLOCKS, blocks, _MOST_COPIED // per_group))


def _make_blocks(token_R: jax.Array, groups: Groups, at_once: int) -> _Blocks:
    turns = -(-len(token_R) // (groups.block * at_once))
    token_R = jnp.pad(token_R, (0, turns * at_once * groups.block - len(token_R)))
    counts_E = groups.sizes_E // groups.block
    group_n = jnp.searchsorted(jnp.cumsum(counts_E), jnp.arange(turns * at_once), side="right")
    return _Blocks(
        token_R.reshape(turns, at_once, groups.block),
        jnp.minimum(group_n, len(counts_E) - 1).reshape(turns, at_once),
        -(-counts_E.sum() // at_once),
    )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_blocks(mlp: Mlp, x_SD: jax.Array, gates_imb: jax.Array, kernels: Kernels, blocks: _Blocks) -> jax.Array:
    """Returns what `through_groups` does; the loop ends with the last block that has an assignment.

    Tokens are gathered and results added up within the loop, so that no array has a row per assignment, and a block's
    intermediate rows stay in the processor's cache. The backward pass computes them again, which costs less than
    storing them.
    """

    def body(i: jax.Array, y_SD: jax.Array) -> jax.Array:
        token_mb, group_m = blocks.token_imb[i], blocks.group_im[i]
        return y_SD.at[token_mb].add(_block(mlp, x_SD[token_mb], gates_imb[i], _of_groups(kernels, group_m)))

    return jax.lax.fori_loop(0, blocks.turns, body, jnp.zeros(x_SD.shape, jnp.float32))


def _block(mlp: Mlp, x_mbD: jax.Array, gates_mb: jax.Array, kernels: Kernels) -> jax.Array:
    y_mbD = mlp(x_mbD, lambda rows, name: rows @ kernels[name])
    return y_mbD.astype(jnp.float32) * gates_mb[..., None]


def _of_groups(kernels: Kernels, group_m: jax.Array) -> Kernels:
    return {name: kernel[group_m] for name, kernel in kernels.items()}


def _in_blocks_fwd(
    mlp: Mlp, x_SD: jax.Array, gates_imb: jax.Array, kernels: Kernels, blocks: _Blocks
) -> tuple[jax.Array, tuple[Any, ...]]:
    return _in_blocks(mlp, x_SD, gates_imb, kernels, blocks), (x_SD, gates_imb, kernels, blocks)


def _in_blocks_bwd(
    mlp: Mlp,
    residuals: tuple[Any, ...],
    dy_SD: jax.Array,
) -> tuple[jax.Array, jax.Array, Kernels, None]:
    x_SD, gates_imb, kernels, blocks = residuals

    def body(i: jax.Array, grads: tuple[jax.Array, jax.Array, Kernels]) -> tuple[jax.Array, jax.Array, Kernels]:
        dx_SD, dgates_imb, total = grads
        token_mb, group_m = blocks.token_imb[i], blocks.group_im[i]
        _, pull = jax.vjp(partial(_block, mlp), x_SD[token_mb], gates_imb[i], _of_groups(kernels, group_m))
        dx_mbD, dgates_mb, dkernels = pull(dy_SD[token_mb])
        dx_SD = dx_SD.at[token_mb].add(dx_mbD.astype(dx_SD.dtype))
        total = {name: sum_E.at[group_m].add(dkernels[name]) for name, sum_E in total.items()}
        return dx_SD, dgates_imb.at[i].set(dgates_mb), total

    zeros = jnp.zeros(x_SD.shape, jnp.float32), jnp.zeros_like(gates_imb), jax.tree.map(jnp.zeros_like, kernels)
    dx_SD, dgates_imb, dkernels = jax.lax.fori_loop(0, blocks.turns, body, zeros)
    return dx_SD.astype(x_SD.dtype), dgates_imb, dkernels, None


_in_blocks.defvjp(_in_blocks_fwd, _in_blocks_bwd)
