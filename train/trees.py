"""Helpers for trees of arrays."""

from typing import Any

import jax
from flax import linen as nn

from model.heads import Objective
from model.sharding import AnyMesh, parameter_shardings
from model.transformer import Params


def round_up(size: int, multiple: int) -> int:
    """Returns `size` rounded up to a multiple of `multiple`."""
    return -(-size // multiple) * multiple


def leaf_paths(tree: Any) -> dict[str, Any]:  # noqa: ANN401 - any tree
    """Returns {path: leaf} of a tree, with paths such as "params/backbone/layers/...."."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def boxed_params(objective: Objective) -> Params:
    """Returns the abstract parameters of an objective, boxed with the names of their logical axes."""
    return jax.eval_shape(objective.init, jax.random.key(0))


def abstract_params(objective: Objective, mesh: AnyMesh) -> Params:
    """Returns shape, dtype and sharding on `mesh` of each parameter, as `jax.ShapeDtypeStruct`s.

    Raises:
        UserError: axes of the mesh that do not divide a parameter.
    """
    boxed = boxed_params(objective)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        nn.meta.unbox(boxed),
        parameter_shardings(boxed, mesh),
    )
