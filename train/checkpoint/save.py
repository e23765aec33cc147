"""Saves a train state with its manifest."""

import orbax.checkpoint as ocp
from jax.sharding import Mesh

from configs.errors import UserError
from train.checkpoint.checksums import checksums
from train.checkpoint.manager import _VERSION, _saving
from train.checkpoint.manifest import describe, leaves_of
from train.checkpoint.orbax_handlers import GROUPS
from train.step import TrainState


def save(manager: ocp.CheckpointManager, state: TrainState, mesh: Mesh) -> None:
    """Starts saving a state; returns once its arrays may be donated again.

    Raises:
        UserError: Orbax refused, e.g. because a newer step is already there; or this or the last one cannot be
            written.
    """
    step = int(state.step)
    manifest = {"version": _VERSION, "step": step, "leaves": describe(state, checksums(leaves_of(state), mesh))}
    arguments = {group: ocp.args.PyTreeSave(getattr(state, group)) for group in GROUPS if getattr(state, group)}
    with _saving(manager):
        saved = manager.save(step, args=ocp.args.Composite(**arguments, manifest=ocp.args.JsonSave(manifest)))
    if not saved:
        raise UserError(f"{manager.directory}: checkpoint {step} was not saved; newest there: {manager.latest_step()}")


def save_best(manager: ocp.CheckpointManager, state: TrainState, mesh: Mesh) -> None:
    """Saves the parameters of the best state so far, unless a run that was killed had come so far before.

    What it saved then is what this run will come to.
    """
    if int(state.step) > (manager.latest_step() or -1):
        save(manager, state._replace(opt_state=None), mesh)
