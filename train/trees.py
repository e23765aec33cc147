"""Helpers for trees of arrays."""

from typing import Any

import jax


def round_up(size: int, multiple: int) -> int:
    """Returns the next multiple from `size` on."""
    return -(-size // multiple) * multiple


def leaf_paths(tree: Any) -> dict[str, Any]:  # noqa: ANN401 - any tree
    """Returns {"params/backbone/...": leaf} of a state."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
