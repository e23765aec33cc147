"""Groups of rows, each through its own MLP: by `ragged_dot`, or on a CPU by a loop over blocks of rows.

A group is padded to whole blocks on a CPU, where a loop over blocks is as fast as dense products; XLA's `ragged_dot`
multiplies each row by every matrix there.

D width, E groups, R rows of all groups, n blocks of b rows.
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


def through_groups(mlp: Mlp, x_RD: jax.Array, kernels: Kernels, groups: Groups) -> jax.Array:
    """Returns each row through its group's MLP; what it returns for rows without an assignment means nothing.

    Args:
        mlp: maps rows and `product(rows, name)`, the rows times the matrix of that name, to rows of the same width.
        x_RD: the rows.
        kernels: by name, one matrix per group.
        groups: the groups.
    """
    real_R1 = groups.real_R[:, None]
    kernels = {name: kernel.astype(x_RD.dtype) for name, kernel in kernels.items()}
    if platform() == "cpu":
        blocks = jnp.where(real_R1, x_RD, 0).reshape(-1, groups.block, x_RD.shape[1])
        y_nbD: jax.Array = _blocks(mlp, blocks, kernels, groups.sizes_E // groups.block)
        return y_nbD.reshape(x_RD.shape)

    def product(rows: jax.Array, name: str) -> jax.Array:
        # Beyond the groups, `ragged_dot` leaves memory uninitialized on some platforms.
        return jax.lax.ragged_dot(jnp.where(real_R1, rows, 0), kernels[name], groups.sizes_E)

    return mlp(x_RD, product)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocks(mlp: Mlp, x_nbD: jax.Array, kernels: Kernels, counts_E: jax.Array) -> jax.Array:
    """Returns each block through its group's MLP; the loop ends with the last block of a group.

    A block's intermediate rows stay in the processor's cache. The backward pass computes them again, which costs less
    than storing them.
    """
    expert_n = _experts_of_blocks(counts_E, len(x_nbD))

    def body(i: jax.Array, y_nbD: jax.Array) -> jax.Array:
        return y_nbD.at[i].set(_block(mlp, x_nbD[i], _of_expert(kernels, expert_n[i])))

    return jax.lax.fori_loop(0, counts_E.sum(), body, jnp.zeros_like(x_nbD))


def _block(mlp: Mlp, x_bD: jax.Array, kernels: Kernels) -> jax.Array:
    return mlp(x_bD, lambda rows, name: rows @ kernels[name])


def _of_expert(kernels: Kernels, expert: jax.Array) -> Kernels:
    return {name: kernel[expert] for name, kernel in kernels.items()}


def _experts_of_blocks(counts_E: jax.Array, blocks: int) -> jax.Array:
    expert_n = jnp.searchsorted(jnp.cumsum(counts_E), jnp.arange(blocks), side="right")
    return jnp.minimum(expert_n, len(counts_E) - 1)


def _blocks_fwd(mlp: Mlp, x_nbD: jax.Array, kernels: Kernels, counts_E: jax.Array) -> tuple[jax.Array, Any]:
    return _blocks(mlp, x_nbD, kernels, counts_E), (x_nbD, kernels, counts_E)


def _blocks_bwd(mlp: Mlp, residuals: Any, dy_nbD: jax.Array) -> tuple[jax.Array, Kernels, None]:  # noqa: ANN401
    x_nbD, kernels, counts_E = residuals
    expert_n = _experts_of_blocks(counts_E, len(x_nbD))

    def body(i: jax.Array, grads: tuple[jax.Array, Kernels]) -> tuple[jax.Array, Kernels]:
        dx_nbD, total = grads
        e = expert_n[i]
        _, pull = jax.vjp(partial(_block, mlp), x_nbD[i], _of_expert(kernels, e))
        dx_bD, dkernels = pull(dy_nbD[i])
        return dx_nbD.at[i].set(dx_bD), {name: sum_E.at[e].add(dkernels[name]) for name, sum_E in total.items()}

    zeros = jax.tree.map(jnp.zeros_like, (x_nbD, kernels))
    dx_nbD, dkernels = jax.lax.fori_loop(0, counts_E.sum(), body, zeros)
    return dx_nbD, dkernels, None


_blocks.defvjp(_blocks_fwd, _blocks_bwd)
