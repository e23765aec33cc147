"""Products of groups of rows, each with its own matrix: by `ragged_dot`, or on a CPU by a loop over blocks of rows.

A group is padded to whole blocks on a CPU, where a loop over blocks is as fast as one dense product; XLA's `ragged_dot`
multiplies each row by every matrix there.

D and F widths, E groups, R rows of all groups, n blocks of b rows.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from model.dtypes import platform

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


def grouped(x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array, block: int) -> jax.Array:
    """Returns y_RF: rows of group e times w[e]; every size is a multiple of `block`."""
    if platform() != "cpu":
        return jax.lax.ragged_dot(x_RD, w_EDF, sizes_E)
    y_nbF: jax.Array = _blocks(x_RD.reshape(-1, block, x_RD.shape[1]), w_EDF, sizes_E // block)
    return y_nbF.reshape(len(x_RD), -1)


@jax.custom_vjp
def _blocks(x_nbD: jax.Array, w_EDF: jax.Array, counts_E: jax.Array) -> jax.Array:
    """Returns each block times its group's matrix; the loop ends with the last block of a group."""
    expert_n = _experts_of_blocks(counts_E, len(x_nbD))

    def body(i: jax.Array, y_nbF: jax.Array) -> jax.Array:
        return y_nbF.at[i].set(x_nbD[i] @ w_EDF[expert_n[i]])

    y_nbF = jnp.zeros((*x_nbD.shape[:2], w_EDF.shape[2]), x_nbD.dtype)
    return jax.lax.fori_loop(0, counts_E.sum(), body, y_nbF)


def _experts_of_blocks(counts_E: jax.Array, blocks: int) -> jax.Array:
    expert_n = jnp.searchsorted(jnp.cumsum(counts_E), jnp.arange(blocks), side="right")
    return jnp.minimum(expert_n, len(counts_E) - 1)


def _blocks_fwd(x_nbD: jax.Array, w_EDF: jax.Array, counts_E: jax.Array) -> tuple[jax.Array, Any]:
    return _blocks(x_nbD, w_EDF, counts_E), (x_nbD, w_EDF, counts_E)


def _blocks_bwd(residuals: Any, dy_nbF: jax.Array) -> tuple[jax.Array, jax.Array, None]:  # noqa: ANN401
    x_nbD, w_EDF, counts_E = residuals
    expert_n = _experts_of_blocks(counts_E, len(x_nbD))

    def body(i: jax.Array, grads: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        dx_nbD, dw_EDF = grads
        e = expert_n[i]
        dx_nbD = dx_nbD.at[i].set(dy_nbF[i] @ w_EDF[e].T)
        return dx_nbD, dw_EDF.at[e].add(x_nbD[i].T @ dy_nbF[i])

    zeros = jnp.zeros_like(x_nbD), jnp.zeros_like(w_EDF)
    dx_nbD, dw_EDF = jax.lax.fori_loop(0, counts_E.sum(), body, zeros)
    return dx_nbD, dw_EDF, None


_blocks.defvjp(_blocks_fwd, _blocks_bwd)
