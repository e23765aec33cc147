"""Logical axis -> mesh axes: the two tables that decide how every array is split over the devices.

Arrays name their axes where they are created: a parameter with `with_axes`, an activation with `constrain`. Only the
tables below map those names to the axes of a mesh, so another parallelism layout is a change of this file alone. The
lookup is strict: a name without a row is an error. (Flax Linen's own logical rules silently replicate unknown names.)

Reading a row: `"vocab": ("tensor", "fsdp")` splits that axis into tensor x fsdp parts; `()` replicates it.

Three activation rows serve the loss alone (`model/losses.py`). FSDP splits both the tokens and the output table over
"fsdp" (and "expert"), but the logits need one of the two in full, so the loss uses the cheaper of two layouts:

    gather the table     x ("tokens", "activation", ...)      table ("vocab", ...)            few symbols, many tokens
    gather the tokens    x ("token_groups", "group", ...)     table ("vocab_of_group", ...)   many symbols, few tokens

In the second layout, devices that differ only in "fsdp" and "expert" form a group. The tokens stay split between the
groups ("token_groups"), each group's tokens are first split ("group") and then gathered within it, and the table stays
split over the group ("vocab_of_group"), as large vocabularies on few devices need.

The "expert" axis is borrowed from data parallelism: only experts are split over it by their number. Everything else
uses it as a second "fsdp" axis: the batch is split over both, and so are the weights that every token uses.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from configs.errors import UserError

# An AbstractMesh needs no devices: enough to plan, not to run.
AnyMesh = Mesh | AbstractMesh

# From the slowest link to the fastest. A pipeline axis would go between data and expert.
MESH_AXES = ("slice", "data", "expert", "fsdp", "tensor", "context")

PARAMETER_RULES: dict[str, tuple[str, ...]] = {
    "layers": (),
    "embed": ("expert", "fsdp"),
    # FSDP splits an embedding table by its vocabulary, not its width: XLA would gather a table that is split by width
    # in full on every device, because the lookup's result is split over fsdp by the batch.
    "vocab": ("tensor", "expert", "fsdp"),
    "vocab_embed": (),
    "position": (),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "norm": (),
    "classes": (),
    "rank": (),
    "experts": ("expert",),
    "expert_embed": ("fsdp",),  # "embed" of the experts' matrices
    "router": (),
}
ACTIVATION_RULES: dict[str, tuple[str, ...]] = {
    "batch": ("slice", "data", "expert", "fsdp"),
    "length": ("context",),
    "heads": ("tensor",),
    "activation": (),
    # The loss, table gathered over fsdp; "tokens" is batch x length.
    "tokens": ("slice", "data", "expert", "fsdp", "context"),
    "vocab": ("tensor",),
    "classes": (),
    # The loss, tokens gathered over fsdp.
    "token_groups": ("slice", "data", "context"),
    "group": ("expert", "fsdp"),
    "vocab_of_group": ("tensor", "expert", "fsdp"),
}
# The name of the scales of quantized kernels' blocks (`model/quantization.py`): blocks are not split over devices.
BLOCK_SCALES = "block_scales"
BATCH_SPEC = PartitionSpec(ACTIVATION_RULES["batch"], ACTIVATION_RULES["length"])


def with_axes(init: Callable[..., jax.Array], *names: str) -> Callable[..., Any]:
    """Returns the initializer `init` whose parameter is boxed with its logical axes, one name per dimension."""
    return nn.with_logical_partitioning(init, names)


def is_partitioned(leaf: object) -> bool:
    """Returns whether a tree node is a parameter boxed with its axes: the `is_leaf` of `jax.tree.map`."""
    return isinstance(leaf, nn.Partitioned)


def spec(axes: Sequence[str], rules: dict[str, tuple[str, ...]]) -> PartitionSpec:
    """Returns the `PartitionSpec` of logical `axes`.

    Raises:
        KeyError: an axis has no rule; this is a programming error, not a user's.
        ValueError: two axes are split over the same mesh axis; the same.
    """
    unknown = [axis for axis in axes if axis not in rules]
    if unknown:
        raise KeyError(f"logical axes {unknown} have no sharding rule; expected some of {sorted(rules)}")
    collisions = axis_collisions(axes, rules)
    if collisions:
        raise ValueError("; ".join(collisions))
    return PartitionSpec(*(rules[axis] or None for axis in axes))


def axis_collisions(axes: Sequence[str], rules: dict[str, tuple[str, ...]]) -> list[str]:
    """Returns a line for each mesh axis that the rules of one array's `axes` name more than once."""
    users: dict[str, list[str]] = {}
    for axis in axes:
        for mesh_axis in rules[axis]:
            users.setdefault(mesh_axis, []).append(axis)
    return [
        f"logical axes {' and '.join(map(repr, names))} of one array are both split over the mesh axis {mesh_axis!r}"
        for mesh_axis, names in users.items()
        if len(names) > 1
    ]


def shards(axis: str) -> int:
    """Returns the number of parts that the current mesh splits a logical activation axis into; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[name] for name in ACTIVATION_RULES[axis])


def constrain(x: jax.Array, *axes: str, rules: dict[str, tuple[str, ...]] = ACTIVATION_RULES) -> jax.Array:
    """Returns `x` with a sharding constraint by its logical axes; `x` itself without a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, rules))


def parameter_shardings(boxed: Any, mesh: AnyMesh) -> Any:  # noqa: ANN401 - a parameter tree
    """Returns the tree of each parameter's `NamedSharding`, from abstract parameters boxed with their axes.

    Raises:
        UserError: mesh axes do not divide a parameter's dimension; lists all of them with the nearest valid sizes.
    """
    errors: dict[str, None] = {}

    def leaf(path: tuple[Any, ...], box: nn.Partitioned) -> NamedSharding:
        names = [str(name) for name in box.names]
        in_blocks = path[-1].key == BLOCK_SCALES
        for index, (size, axis) in enumerate(zip(box.value.shape, names, strict=True)):
            errors.update(dict.fromkeys(_division_errors(size, axis, mesh, in_blocks and index == 1)))
        return NamedSharding(mesh, spec(names, PARAMETER_RULES))

    shardings = jax.tree_util.tree_map_with_path(leaf, boxed, is_leaf=is_partitioned)
    if errors:
        raise UserError("; ".join(errors))
    return shardings


def _division_errors(size: int, axis: str, mesh: AnyMesh, in_blocks: bool = False) -> list[str]:
    """Returns a line if the mesh does not divide a parameter's dimension, or its number of blocks; [] if it does."""
    split = [name for name in PARAMETER_RULES[axis] if mesh.shape[name] > 1]
    parts = math.prod(mesh.shape[name] for name in split)
    if size % parts == 0:
        return []
    low, high = size // parts * parts, -(-size // parts) * parts
    near = f"nearest sizes: {low} or {high}" if low else f"nearest sizes: {high}"
    if axis == "experts":
        divisors = [n for n in range(1, size + 1) if size % n == 0]
        below, above = max(n for n in divisors if n < parts), [n for n in divisors if n > parts][:1]
        fitting = " or ".join(str(n) for n in [below, *above])
        return [
            f"config.mesh.expert={parts} must divide config.model.num_experts={size}; nearest config.mesh.expert: "
            f"{fitting}; {near}"
        ]
    product = " x ".join(f"config.mesh.{name}" for name in split)
    if in_blocks:
        return [
            f"{product}={parts} must divide the {size} blocks of the {axis} axis that "
            "config.adapt.base_quantization='nf4' needs; use another mesh, or 'int8'"
        ]
    return [f"{product}={parts} must divide the {axis} axis of {size}; {near}"]
