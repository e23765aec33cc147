"""Smaller forms in which an optimizer's moments are stored between steps: 8-bit blocks and Adafactor's factors.

The optimizer itself is Optax's and computes in float32: each step expands the stored moments, updates them with the
step's gradient, uses them, and stores them again. The newest gradient therefore enters its own step exactly, whatever
the stored form loses. A stored part has a subset of its parameter's axes and is sharded over the same mesh axes.

    int8      per parameter: `codes`, one byte per number; `scale`, the largest magnitude of each row (the last axis)
    factored  per matrix of nu: `rows`, its mean over all but the residual stream, and `columns`, its mean over the
              stream; the product of both over their common mean is the moment (Adafactor, arXiv:1804.04235, section 3).
              Layers and experts are matrices of their own; vectors stay whole.

Codes are the square root of a magnitude for a first moment and the fourth root for a second one, so that numbers of one
row may be four and nine powers of ten apart. With equally spaced codes a small second moment would be stored as zero
while its first moment is not, and the next small gradient would be divided by almost nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from model.sharding import is_partitioned
from model.transformer import Params

# The axis of a matrix that reads or writes the residual stream, or of a table of vectors of its width.
_STREAM_AXES = frozenset({"embed", "expert_embed", "vocab_embed"})
_STACKED_AXES = frozenset({"layers", "experts"})
# {moment: root of its codes}; nu is a mean of squares, so its fourth root is the square root of a magnitude.
_ROOTS = {"mu": 2, "nu": 4}

Path = tuple[Any, ...]


class Blocks(NamedTuple):
    """A moment in 8 bits; `codes` have the parameter's shape, `scale` lacks its last axis."""

    codes: jax.Array
    scale: jax.Array


class Factors(NamedTuple):
    """A second moment as two means; see the module."""

    rows: jax.Array
    columns: jax.Array


def store_moments(
    optimizer: optax.GradientTransformation, boxed: Params, first: str, second: str
) -> optax.GradientTransformation:
    """Returns an optimizer that computes as `optimizer` and stores its moments in other forms between steps.

    Args:
        optimizer: its state calls first moments `mu` and second moments `nu`, as Optax's optimizers do.
        boxed: the (abstract) parameters in boxes that name their logical axes.
        first: `config.optimizer.first_moment`; only "int8" changes how it is stored.
        second: `config.optimizer.second_moment`.
    """
    forms = {"mu": first, "nu": second}
    if not {"int8", "factored"} & set(forms.values()):
        return optimizer
    boxes = by_path(boxed)

    def each(state: Any, change: Callable[[str, str, nn.Partitioned, Any], Any]) -> Any:  # noqa: ANN401 - Optax's trees
        def leaf(path: Path, value: Any) -> Any:  # noqa: ANN401
            moment = next((name for part in path if (name := getattr(part, "name", "")) in forms), "")
            box = _parameter(path, boxes) if moment else None
            return value if box is None else change(moment, forms[moment], box, value)

        return jax.tree_util.tree_map_with_path(leaf, state, is_leaf=lambda x: isinstance(x, Blocks | Factors))

    def init(params: Params) -> Any:  # noqa: ANN401
        return each(optimizer.init(params), _stored)

    def update(grads: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:  # noqa: ANN401
        updates, new = optimizer.update(grads, each(state, _expanded), params)
        return updates, each(new, _stored)

    return optax.GradientTransformation(init, update)


def by_path(boxed: Params) -> dict[Path, nn.Partitioned]:
    """Returns {path of a parameter: its box}."""
    return dict(jax.tree_util.tree_leaves_with_path(boxed, is_leaf=is_partitioned))


def axes_of(path: Path, boxes: Mapping[Path, nn.Partitioned]) -> list[str] | None:
    """Returns the logical axes of an array of an optimizer's state, or None if it belongs to no parameter.

    `path` ends with the parameter's path, or with that and the name of a part of a stored moment.
    """
    found = _parameter(path, boxes)
    if found is not None:
        return [str(name) for name in found.names]
    found = _parameter(path[:-1], boxes)
    if found is None:
        return None
    stream, others = _matrix_axes(found)
    last = len(found.names) - 1
    dropped = {"codes": (), "scale": (last,), "rows": others, "columns": stream}[path[-1].name]
    return [str(name) for axis, name in enumerate(found.names) if axis not in dropped]


def _parameter(path: Path, boxes: Mapping[Path, nn.Partitioned]) -> nn.Partitioned | None:
    """Returns the box of the parameter whose path is the end of `path`."""
    return next((boxes[path[start:]] for start in range(len(path)) if path[start:] in boxes), None)


def _matrix_axes(box: nn.Partitioned) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns (the axis of the residual stream, the other axes of the matrix); one is empty if it is a vector."""
    stream = tuple(i for i, name in enumerate(box.names) if name in _STREAM_AXES)
    return stream, tuple(i for i, name in enumerate(box.names) if name not in _STREAM_AXES | _STACKED_AXES)


def _stored(moment: str, form: str, box: nn.Partitioned, value: jax.Array) -> Any:  # noqa: ANN401 - one of three types
    stream, others = _matrix_axes(box)
    if form == "factored" and stream and others:
        return Factors(rows=value.mean(others), columns=value.mean(stream))
    return _to_blocks(value, _ROOTS[moment]) if form == "int8" else value


def _expanded(moment: str, form: str, box: nn.Partitioned, value: Any) -> jax.Array:  # noqa: ANN401
    if isinstance(value, Factors):
        stream, others = _matrix_axes(box)
        rows, columns = jnp.expand_dims(value.rows, others), jnp.expand_dims(value.columns, stream)
        # A matrix without a gradient so far has a mean of 0, and a moment of 0.
        return rows * (columns / jnp.maximum(rows.mean(stream, keepdims=True), jnp.finfo(jnp.float32).tiny))
    return _from_blocks(value, _ROOTS[moment]) if isinstance(value, Blocks) else value


def _to_blocks(x: jax.Array, root: int) -> Blocks:
    """Returns `x` as the roots of its magnitudes over the largest of each row; the second moment without a sign."""
    size = jnp.abs(x)
    scale = size.max(-1)
    part = size / jnp.where(scale > 0, scale, 1.0)[..., None]
    if root == 2:
        return Blocks(jnp.round(127 * jnp.sign(x) * jnp.sqrt(part)).astype(jnp.int8), scale)
    codes = jnp.round(255 * jnp.sqrt(jnp.sqrt(part)))
    # Only a gradient that was always zero has a second moment of zero.
    return Blocks(jnp.where(size > 0, jnp.maximum(codes, 1.0), 0.0).astype(jnp.uint8), scale)


def _from_blocks(blocks: Blocks, root: int) -> jax.Array:
    codes = blocks.codes.astype(jnp.float32)
    part = codes * jnp.abs(codes) / 127**2 if root == 2 else (codes / 255) ** root
    return part * blocks.scale[..., None]
