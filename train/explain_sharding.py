"""Shows where each parameter of a pre-training config lives: its axes, the rule for them, mesh axes, bytes a device.

Nothing is allocated and no device of the mesh need be there. A parameter that no rule covers, and a rule that no
parameter of any architecture needs, are errors.

  rootstock explain-sharding --config=configs/pretrain/llm.py:llama2_7b --devices=16
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags
from flax import linen as nn
from jax.sharding import AbstractMesh
from rich.table import Column, Table

from configs.errors import UserError
from model.adapt import Adaptation, adapt
from model.config import ModelConfig
from model.heads import Objective, classifier, language_model, parameter_count
from model.sharding import ACTIVATION_RULES, PARAMETER_RULES, AnyMesh
from train.metrics import results_console
from train.planner.estimate import tree_bytes
from train.planner.pricing import abstract_mesh, objective_of
from train.settings import Settings, from_config, planned_model
from train.step import make_program

REQUIRED = ("config",)


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    text = "Devices of the mesh; 0: the product of config.mesh, or this machine's where an axis is -1."
    flags.DEFINE_integer("devices", 0, text, lower_bound=0, flag_values=values)
    flags.DEFINE_boolean("json", False, "Print one JSON object.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    settings = from_config(values.config.to_dict())
    model = planned_model(settings)
    if values.devices or min(dataclasses.astuple(settings.mesh)) > 0:
        # Nothing has to be asked of this machine's accelerators, which may be busy.
        jax.config.update("jax_platforms", "cpu")
    mesh = abstract_mesh(settings, values.devices or _devices(settings))
    check_rules(model)
    found = explain(settings, model, mesh)
    print(json.dumps(found)) if values.json else _print(found, mesh)


def check_rules(model: ModelConfig) -> None:
    """Raises UserError naming parameters whose axes have no rule, and rules that no architecture has an axis for."""
    switches = {"position": "learned", "norm": "layernorm", "qk_norm": True}
    variant = dataclasses.replace(model, **switches, qkv_bias=True, output_bias=True, mlp_bias=True)  # type: ignore[arg-type]
    used: set[str] = set()
    faults = []
    head = classifier(model, 2, "last")
    lora = adapt(head, Adaptation("lora", last_layers=1, rank=1, alpha=1.0, targets=("query",)))
    for objective in (language_model(model), language_model(variant), head, lora):
        for path, box in _boxes(objective):
            if not isinstance(box, nn.Partitioned):
                faults.append(f"{path} names no axes")
                continue
            names = [str(name) for name in box.names]
            used |= set(names)
            unruled = [name for name in names if name not in PARAMETER_RULES]
            if unruled:
                faults.append(f"{path} has an axis {' and '.join(map(repr, unruled))} without a rule")
    faults += [f"the rule for {rule!r} has no parameter" for rule in PARAMETER_RULES if rule not in used]
    if faults:
        raise UserError(f"model/sharding.py: {'; '.join(dict.fromkeys(faults))}; rules: {', '.join(PARAMETER_RULES)}")


def explain(settings: Settings, model: ModelConfig, mesh: AbstractMesh) -> dict[str, Any]:
    """Returns {"mesh", "parameters": one object a parameter, "totals"} as plain values; bytes are one device's.

    Raises:
        UserError: mesh axes that do not divide a parameter.
    """
    objective = objective_of(settings, model)
    state = make_program(objective, settings, mesh).state
    leaves = dict(_leaves(state.params))
    rows = []
    for path, box in _boxes(objective):
        leaf = leaves[path]
        rows.append(
            {
                "parameter": path,
                "shape": list(leaf.shape),
                "axes": list(box.names),
                "rule": {name: list(PARAMETER_RULES[name]) for name in box.names},
                "local_shape": list(leaf.sharding.shard_shape(leaf.shape)),
                "bytes": int(tree_bytes(leaf)),
            }
        )
    totals = {
        "parameters": parameter_count(state.params),
        "parameter_bytes": int(tree_bytes(state.params)),
        "state_bytes": int(tree_bytes((state.params, state.opt_state))),
    }
    return {"mesh": dict(mesh.shape), "parameters": rows, "totals": totals}


def _devices(settings: Settings) -> int:
    sizes = dataclasses.astuple(settings.mesh)
    return jax.device_count() if min(sizes) < 1 else math.prod(sizes)


def _leaves(tree: Any, is_leaf: Any = None) -> list[tuple[str, Any]]:  # noqa: ANN401 - any tree
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in found]


def _boxes(objective: Objective) -> list[tuple[str, Any]]:
    return _leaves(jax.eval_shape(objective.init, jax.random.key(0)), lambda x: isinstance(x, nn.Partitioned))


def _print(found: dict[str, Any], mesh: AnyMesh) -> None:
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
        f"\n{totals['parameters']:,} parameters: {totals['parameter_bytes'] / 1e9:.3f} GB a device, "
        f"{totals['state_bytes'] / 1e9:.3f} GB with the optimizer's state"
    )
    for name, axes in ACTIVATION_RULES.items():
        if any(mesh.shape[axis] > 1 for axis in axes):
            out.print(f"activations: {_sized(name, axes, mesh)}")


def _sized(name: str, axes: Sequence[str], mesh: AnyMesh) -> str:
    """Returns a rule with the mesh's sizes, e.g. "vocab -> tensor 1 x fsdp 16"; the name alone if it is never split."""
    return f"{name} -> {' x '.join(f'{axis} {mesh.shape[axis]}' for axis in axes)}" if axes else name


if __name__ == "__main__":
    import sys

    from train.cli import main

    main(["explain-sharding", *sys.argv[1:]])
