"""Saves a train state with its manifest."""

import orbax.checkpoint as ocp
from jax.sharding import Mesh

from configs.errors import UserError
from train.checkpoint.checksums import checksums
from train.checkpoint.manager import write_errors
from train.checkpoint.manifest import describe_leaves, items_of, to_json
from train.step import TrainState
from train.trees import leaf_paths


def save(manager: ocp.CheckpointManager, state: TrainState, mesh: Mesh) -> None:
    """Starts saving a state; returns once its arrays may be donated again.

    Raises:
        UserError: Orbax refused (for example because a newer step exists), or this save or the previous one cannot be
            written.
    """
    step, items = int(state.step), items_of(state)
    manifest = to_json(step, describe_leaves(items, checksums(leaf_paths(items), mesh)))
    arguments = {name: ocp.args.PyTreeSave(item) for name, item in items.items() if item}
    with write_errors(manager):
        saved = manager.save(step, args=ocp.args.Composite(**arguments, manifest=ocp.args.JsonSave(manifest)))
    if not saved:
        raise UserError(f"{manager.directory}: checkpoint {step} was not saved; the newest is {manager.latest_step()}")


def save_best(manager: ocp.CheckpointManager, state: TrainState, mesh: Mesh) -> None:
    """Saves the parameters of the best state so far: their average if the state has one."""
    save(manager, state._replace(params=state.average or state.params, opt_state=None, average={}), mesh)
