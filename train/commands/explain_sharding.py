"""Prints how each parameter of a pre-training config is sharded: logical axes, rule, mesh axes, bytes per device.

Allocates nothing and needs none of the mesh's devices. A parameter without a rule, or a rule that no parameter of any
architecture uses, is an error.

  rootstock explain-sharding --config=configs/pretrain/llm.py:llama2_7b --devices=16
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags
from rich.table import Column, Table

from train.console import results_console
from train.settings import Settings, from_config, planned_model

if TYPE_CHECKING:
    from model.sharding import AnyMesh

REQUIRED = ("config",)
CONFIG_FIELDS = (
    *("batch_size", "sequence_length", "num_steps", "microbatches", "tokenizer", "xla_flags"),
    *("model", "mesh", "data.path", "data.mixture", "adapt", "optimizer", "loss"),
)


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    text = "Devices of the mesh; 0: the product of config.mesh, or this machine's where an axis is -1."
    flags.DEFINE_integer("devices", 0, text, lower_bound=0, flag_values=values)
    flags.DEFINE_boolean("json", False, "Print one JSON object.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    import jax

    from train.planner.pricing import abstract_mesh
    from train.planner.sharding import check_rules, explain

    settings = from_config(values.config.to_dict())
    model = planned_model(settings)
    if values.devices or min(dataclasses.astuple(settings.mesh)) > 0:
        # This machine's accelerators are not needed and may be busy.
        jax.config.update("jax_platforms", "cpu")
    mesh = abstract_mesh(settings, values.devices or _devices(settings))
    check_rules(model)
    found = explain(settings, model, mesh)
    print(json.dumps(found)) if values.json else _print(found, mesh)


def _devices(settings: Settings) -> int:
    import jax

    sizes = dataclasses.astuple(settings.mesh)
    return jax.device_count() if min(sizes) < 1 else math.prod(sizes)


def _print(found: dict[str, Any], mesh: "AnyMesh") -> None:
    from model.sharding import ACTIVATION_RULES

    out = results_console()
    names = ("parameter", "shape", "logical axes -> mesh axes", "on a device", "MB")
    table = Table(*(Column(name, no_wrap=True) for name in names), box=None, pad_edge=False)
    table.columns[-1].justify = "right"
    for row in found["parameters"]:
        rule = ", ".join(_sized(name, axes, mesh) for name, axes in row["rule"].items())
        shapes = ["x".join(map(str, row[key])) for key in ("shape", "local_shape")]
        table.add_row(row["parameter"], shapes[0], rule, shapes[1], f"{row['bytes'] / 1e6:,.3f}")
    out.print(table)
    totals = found["totals"]
    out.print(
        f"\n{totals['parameters']:,} parameters: {totals['parameter_bytes'] / 1e9:.3f} GB per device, "
        f"{totals['state_bytes'] / 1e9:.3f} GB with the optimizer's state"
    )
    for name, axes in ACTIVATION_RULES.items():
        if any(mesh.shape[axis] > 1 for axis in axes):
            out.print(f"activations: {_sized(name, axes, mesh)}")


def _sized(name: str, axes: Sequence[str], mesh: "AnyMesh") -> str:
    """Returns a rule with the mesh's sizes, e.g. "vocab -> tensor 2 x fsdp 16"; the name alone if it is never split.

    Mesh axes of size 1 are left out where another one splits the logical axis.
    """
    shown = [axis for axis in axes if mesh.shape[axis] > 1] or axes
    return f"{name} -> {' x '.join(f'{axis} {mesh.shape[axis]}' for axis in shown)}" if axes else name
