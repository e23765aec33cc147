"""Restores the newest sound checkpoint, on any mesh, after verifying every leaf against the manifest.

Orbax restores a flipped bit without an error, so the checksum of every leaf is compared after reading. Orbax renames a
step's directory into place once all of it, manifest included, is on disk.
"""

import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from data.storage.files import move_tree
from data.storage.paths import is_remote
from model.transformer import Params
from train.checkpoint.manager import (
    CHECKPOINTS_DIR,
    COMMIT_MARKER,
    folder_of,
    listed_steps,
    open_to_read,
    saved_steps,
)
from train.checkpoint.manifest import Leaves, compare_leaves, describe_leaves, items_of
from train.checkpoint.steps import NoSoundCheckpoint, read_arrays, sound_saves, sound_steps, verify
from train.distributed.placement import replicated
from train.distributed.processes import run_on_process_zero
from train.step import TrainState


def restore_newest(
    manager: ocp.CheckpointManager, abstract: TrainState, mesh: Mesh, local: ocp.CheckpointManager | None = None
) -> TrainState | None:
    """Returns the newest sound state, without frozen groups, or None if there is no checkpoint.

    A damaged step is passed over with a warning and moved to `damaged/`. Paths, shapes and dtypes are compared before
    any array is read.

    Args:
        manager: of the run.
        abstract: the state's shapes, dtypes and shardings.
        mesh: the run's mesh; may differ from the one that the state was saved on.
        local: of the run's local checkpoints (`train.checkpoint.local_tier`), preferred if both have a step; or None.

    Raises:
        UserError: the leaves differ from `abstract`, or every checkpoint is damaged.
    """
    managers = [one for one in (local, manager) if one is not None]
    saves = [(one, step) for one in managers for step in listed_steps(one)]
    saves.sort(key=lambda save: -save[1])
    if not saves:
        return None

    def read(one: ocp.CheckpointManager, step: int, leaves: Leaves) -> TrainState:
        return _read_state(one, step, leaves, abstract, mesh)

    state = next(sound_saves(saves, read, str(folder_of(manager).parent)))
    for one in managers:
        _set_aside(one, [step for other, step in saves if other is one and step > int(state.step)])
    return state


def restore_before(directory: Path, step: int, abstract: TrainState, mesh: Mesh) -> TrainState | None:
    """Returns the newest sound state of at most `step` steps, or None; changes nothing (see `restore_newest`)."""
    if not saved_steps(directory):
        return None
    with open_to_read(directory, once=True) as manager:
        steps = [saved for saved in listed_steps(manager) if saved <= step]
        try:
            return next(sound_steps(manager, lambda s, leaves: _read_state(manager, s, leaves, abstract, mesh), steps))
        except NoSoundCheckpoint:
            return None


def restore_params(
    directory: Path,
    abstract_params: Params,
    mesh: Mesh,
    groups: tuple[str, ...],
    name: str = CHECKPOINTS_DIR,
    item: Literal["params", "average"] = "params",
) -> Params:
    """Returns `{group: parameters}` of the newest sound checkpoint of a run, for fine-tuning and inference.

    Args:
        directory: of the run.
        abstract_params: shapes, dtypes and shardings of `{"backbone": ..., "head": ...}`.
        mesh: where the parameters go.
        groups: which of "backbone", "adapter" and "head" to read; only these are compared.
        name: `CHECKPOINTS_DIR` or `BEST_DIR`.
        item: the parameters, or their exponential average.

    Raises:
        UserError: there is no sound checkpoint, or a leaf is missing, unexpected or of another shape.
    """
    wanted: dict[str, Any] = {item: {group: abstract_params[group] for group in groups}}
    prefixes = tuple(f"{item}/{group}/" for group in groups)
    with open_to_read(directory, name) as manager:

        def read(step: int, leaves: Leaves) -> Params:
            stored = {path: leaf for path, leaf in leaves.items() if path.startswith(prefixes)}
            compare_leaves(f"{manager.directory}/{step}", stored, describe_leaves(wanted))
            items = read_arrays(manager, step, wanted)
            verify(stored, items, mesh)
            return items[item]

        return next(sound_steps(manager, read))


def _read_state(
    manager: ocp.CheckpointManager, step: int, leaves: Leaves, abstract: TrainState, mesh: Mesh
) -> TrainState:
    compare_leaves(f"{manager.directory}/{step}", leaves, describe_leaves(items_of(abstract)))
    items = read_arrays(manager, step, items_of(abstract))
    verify(leaves, items, mesh)
    steps_done = jax.device_put(jnp.asarray(step, jnp.int32), replicated(mesh))
    return TrainState(steps_done, items["params"], items["opt_state"], {}, items.get("average", {}))


def _set_aside(manager: ocp.CheckpointManager, steps: list[int]) -> None:
    """Moves damaged steps to the run's `damaged/`, so that the repeated steps can be saved under their numbers."""
    if not steps:
        # The manager would read the metadata of every checkpoint again, minutes in a bucket with a thousand.
        return
    folder = folder_of(manager)
    aside = folder.parent / "damaged"

    def move() -> None:
        for step in steps:
            aside.mkdir(exist_ok=True)
            if is_remote(folder):
                # First, so that it is not a checkpoint any more if this process is killed while objects are copied.
                (folder / str(step) / COMMIT_MARKER).unlink(missing_ok=True)
            move_tree(folder / str(step), aside / f"{step}-{time.time_ns()}")

    run_on_process_zero(move)
    manager.reload()
