"""Logical axis -> mesh axis: one table, strict in both directions.

Every parameter names its logical axes where it is created (`layers.py`); this file alone knows what they mean on a
machine. Linen's own logical rules fall silent on a name they do not know, so the lookup here is ours.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from configs.errors import UserError

# An abstract mesh is of devices that nobody has: enough to plan, not to run.
AnyMesh = Mesh | AbstractMesh

# Slowest link first. Experts and pipeline stages would stand between data and fsdp.
MESH_AXES = ("slice", "data", "fsdp", "tensor", "context")

# The vocabulary, not the embedding width, is split over fsdp: a table split over its width collides with the batch
# in the gather and XLA would rematerialise it whole on every device.
PARAMETER_RULES: dict[str, tuple[str, ...]] = {
    "layers": (),
    "embed": ("fsdp",),
    "vocab": ("tensor", "fsdp"),
    "vocab_embed": (),
    "position": (),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "norm": (),
    "classes": (),
    "rank": (),
}
ACTIVATION_RULES: dict[str, tuple[str, ...]] = {
    "batch": ("slice", "data", "fsdp"),
    "length": ("context",),
    "heads": ("tensor",),
    "activation": (),
    # The loss, where over fsdp either the table is gathered or the tokens are (`losses.py`).
    "tokens": ("slice", "data", "fsdp", "context"),
    "vocab": ("tensor",),
    "classes": (),
    "token_groups": ("slice", "data", "context"),
    "group": ("fsdp",),
    "vocab_of_group": ("tensor", "fsdp"),
}
BATCH_SPEC = PartitionSpec(ACTIVATION_RULES["batch"], ACTIVATION_RULES["length"])


def spec(axes: Sequence[str], rules: dict[str, tuple[str, ...]]) -> PartitionSpec:
    """Returns the `PartitionSpec` of logical `axes`.

    Raises:
        KeyError: an axis has no rule (a programming error: the table is ours).
    """
    unknown = [axis for axis in axes if axis not in rules]
    if unknown:
        raise KeyError(f"logical axes {unknown} have no sharding rule; known: {sorted(rules)}")
    return PartitionSpec(*(rules[axis] or None for axis in axes))


def shards(axis: str) -> int:
    """Returns over how many devices a logical activation axis is split on the current mesh; 1 where none is set."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[name] for name in ACTIVATION_RULES[axis])


def constrain(x: jax.Array, *axes: str, rules: dict[str, tuple[str, ...]] = ACTIVATION_RULES) -> jax.Array:
    """Returns `x` laid out over the current mesh by its logical axes; unchanged where no mesh is set."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, rules))


def parameter_shardings(boxed: Any, mesh: AnyMesh) -> Any:  # noqa: ANN401 - a parameter tree
    """Returns a tree of `NamedSharding`, one a parameter, from the boxed (axis-naming) abstract parameters.

    Raises:
        UserError: mesh axes that do not divide a parameter's dimension, all of them, with the nearest legal sizes.
    """
    faults: dict[str, None] = {}

    def leaf(box: nn.Partitioned) -> NamedSharding:
        names = [str(name) for name in box.names]
        for size, axis in zip(box.value.shape, names, strict=True):
            parts = 1
            for mesh_axis in PARAMETER_RULES[axis]:
                parts *= mesh.shape[mesh_axis]
            if size % parts:
                product = " x ".join(f"config.mesh.{a}" for a in PARAMETER_RULES[axis] if mesh.shape[a] > 1)
                low, high = size // parts * parts, -(-size // parts) * parts
                near = f"{low} or {high}" if low else f"{high}"
                faults[f"{product} = {parts} does not divide the {axis} axis of {size}; nearest: {near}"] = None
        return NamedSharding(mesh, spec(names, PARAMETER_RULES))

    shardings = jax.tree.map(leaf, boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned))
    if faults:
        raise UserError("; ".join(faults))
    return shardings
