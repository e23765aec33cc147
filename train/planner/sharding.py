"""Explains how each parameter of a config is sharded over a mesh."""

import dataclasses
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import AbstractMesh

from configs.errors import UserError
from model.adapt import adapt
from model.adaptation import Adaptation
from model.config import ModelConfig
from model.heads import Objective, classifier, language_model, parameter_count
from model.sharding import PARAMETER_RULES, axis_collisions, is_partitioned
from train.planner.estimate import tree_bytes
from train.settings import Settings
from train.step import make_program, objective_of
from train.trees import boxed_params, leaf_paths


def check_rules(model: ModelConfig) -> None:
    """Checks that the rules fit the parameters of every architecture.

    Raises:
        UserError: parameters with an axis without a rule, or with two axes over one mesh axis; or rules that no
            architecture uses.
    """
    switches = {"position": "learned", "norm": "layernorm", "qk_norm": True}
    variant = dataclasses.replace(model, **switches, qkv_bias=True, output_bias=True, mlp_bias=True)  # type: ignore[arg-type]
    layers = {"dense_layers": 0, "expert_every": 1, "mlp_bias": False, "router_bias": True}
    experts = dataclasses.replace(model, num_experts=2, experts_per_token=1, **layers)  # type: ignore[arg-type]
    used: set[str] = set()
    errors = []
    head = classifier(model, 2, "last")
    lora = adapt(head, Adaptation("lora", last_layers=1, rank=1, alpha=1.0, targets=("query",)))
    for objective in (*map(language_model, (model, variant, experts)), head, lora):
        for path, box in _boxes(objective):
            if not isinstance(box, nn.Partitioned):
                errors.append(f"{path} has no axis names")
                continue
            names = [str(name) for name in box.names]
            used |= set(names)
            unruled = [name for name in names if name not in PARAMETER_RULES]
            if unruled:
                errors.append(f"{path} has an axis {' and '.join(map(repr, unruled))} without a rule")
                continue
            errors += [f"{path}: {line}" for line in axis_collisions(names, PARAMETER_RULES)]
    errors += [f"the rule for {rule!r} has no parameter" for rule in PARAMETER_RULES if rule not in used]
    if errors:
        raise UserError(f"model/sharding.py: {'; '.join(dict.fromkeys(errors))}; rules: {', '.join(PARAMETER_RULES)}")


def explain(settings: Settings, model: ModelConfig, mesh: AbstractMesh) -> dict[str, Any]:
    """Returns {"mesh", "parameters": one object per parameter, "totals"} as plain values; bytes are per device.

    Raises:
        UserError: mesh axes that do not divide a parameter.
    """
    objective = adapt(objective_of(settings, model), settings.adapt)
    state = make_program(objective, settings, mesh).state
    leaves = leaf_paths(state.all_params)
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
        "parameters": parameter_count(boxed_params(objective_of(settings, model))),
        "parameter_bytes": int(tree_bytes(state.all_params)),
        "state_bytes": int(tree_bytes((state.all_params, state.opt_state, state.average))),
    }
    return {"mesh": dict(mesh.shape), "parameters": rows, "totals": totals}


def _boxes(objective: Objective) -> list[tuple[str, Any]]:
    """Returns (path, box) of each parameter; a leaf without a box stands for itself."""
    found = jax.tree_util.tree_leaves_with_path(boxed_params(objective), is_leaf=is_partitioned)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), box) for path, box in found]
