"""Checkpoints that know what they hold: Orbax writes the arrays, our manifest names, shapes, types and checksums them.

Orbax restores a flipped bit without a word, so every leaf is checked after reading. A step's directory is renamed into
place by Orbax when all of it, manifest included, is on disk.
"""

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from configs.errors import UserError
from train.checkpoint.checksums import checksums
from train.checkpoint.manager import CHECKPOINTS_DIR, _manifest, _restore, _steps, open_to_read, saved_steps
from train.checkpoint.manifest import compare_leaves, describe, leaves_of
from train.checkpoint.orbax_handlers import GROUPS
from train.console import warn
from train.distributed.placement import replicated
from train.distributed.processes import run_on_process_zero
from train.step import TrainState


def restore_newest(manager: ocp.CheckpointManager, abstract: TrainState, mesh: Mesh) -> TrainState | None:
    """Returns the newest sound state, or None where there is no checkpoint.

    A damaged step is passed over with a warning and moved to `damaged/`. Names, shapes
    and types are compared before any array is read.

    Args:
        manager: of the run.
        abstract: the state's shapes, dtypes and shardings.
        mesh: the run's mesh; need not be the one that the state was saved from.

    Raises:
        UserError: the leaves differ from `abstract`, or every checkpoint is damaged.
    """
    steps = _steps(manager)
    state, faults = _newest_sound(manager, steps, abstract, mesh)
    if state is not None:
        _set_aside(manager, [newer for newer in steps if newer > int(state.step)])
    elif steps:
        raise UserError(f"{'; '.join(faults)}; no sound checkpoint is left")
    return state


def restore_before(directory: Path, step: int, abstract: TrainState, mesh: Mesh) -> TrainState | None:
    """Returns the newest sound state of at most `step` steps, or None; changes nothing (see `restore_newest`)."""
    if not saved_steps(directory):
        return None
    with open_to_read(directory, once=True) as manager:
        return _newest_sound(manager, [s for s in _steps(manager) if s <= step], abstract, mesh)[0]


def _newest_sound(
    manager: ocp.CheckpointManager, steps: list[int], abstract: TrainState, mesh: Mesh
) -> tuple[TrainState | None, list[str]]:
    """Returns (the state of the first of `steps` that is sound, or None; what is wrong with those before it)."""
    faults: list[str] = []
    for step in steps:
        damage = ""
        manifest = _manifest(manager, step)
        if manifest is None:
            damage = "its manifest cannot be read"
        else:
            compare_leaves(f"{manager.directory}/{step}", manifest["leaves"], describe(abstract))
            items = {group: getattr(abstract, group) for group in GROUPS}
            read, damage = _read(manager, step, items)
            if not damage:
                at = jax.device_put(jnp.asarray(step, jnp.int32), replicated(mesh))
                state = TrainState(at, read["params"], read["opt_state"])
                damage = _damage(manifest["leaves"], state, mesh)
        if not damage:
            return state, faults
        faults.append(_warn(manager, step, damage))
    return None, faults


def restore_params(
    directory: Path,
    abstract_params: Any,  # noqa: ANN401
    mesh: Mesh,
    groups: tuple[str, ...],
    name: str = CHECKPOINTS_DIR,
) -> Any:  # noqa: ANN401
    """Returns `{group: parameters}` of the newest sound checkpoint of a run, for grafting and for inference.

    Args:
        directory: the run's directory.
        abstract_params: shapes, dtypes and shardings of `{"backbone": ..., "head": ...}`.
        mesh: where they go.
        groups: which of "backbone", "adapter" and "head" to read; only these are compared.
        name: `CHECKPOINTS_DIR` or `BEST_DIR`.

    Raises:
        UserError: no checkpoint, a leaf that is missing, unexpected or of another shape, or damage.
    """
    wanted = {group: abstract_params[group] for group in groups}
    faults = []
    with open_to_read(directory, name) as manager:
        for step in _steps(manager):
            manifest = _manifest(manager, step)
            damage = "its manifest cannot be read"
            if manifest is not None:
                prefixes = tuple(f"params/{group}/" for group in groups)
                theirs = {k: v for k, v in manifest["leaves"].items() if k.startswith(prefixes)}
                expected = describe(TrainState(None, wanted, None))  # type: ignore[arg-type]
                compare_leaves(f"{manager.directory}/{step}", theirs, expected)
                read, damage = _read(manager, step, {"params": wanted})
                damage = damage or _damage(theirs, TrainState(None, read["params"], None), mesh)  # type: ignore[arg-type]
            if not damage:
                return read["params"]
            faults.append(_warn(manager, step, damage))
    raise UserError("; ".join(faults) or f"{directory} holds no checkpoint")


def _warn(manager: ocp.CheckpointManager, step: int, damage: str) -> str:
    """Says, and returns, that a checkpoint is damaged, or that the run, which trains on, deleted it meanwhile."""
    folder = Path(manager.directory)
    found = f"is damaged ({damage})" if (folder / str(step)).is_dir() else "was deleted while it was read"
    fault = f"{folder}: checkpoint {step} {found}"
    warn(f"{fault}; trying the one before")
    return fault


def _set_aside(manager: ocp.CheckpointManager, steps: list[int]) -> None:
    """Moves damaged steps to the run's `damaged/`, so that the steps done again can be saved under their numbers."""
    aside = Path(manager.directory).parent / "damaged"

    def move() -> None:
        for step in steps:
            aside.mkdir(exist_ok=True)
            (Path(manager.directory) / str(step)).rename(aside / f"{step}-{time.time_ns()}")

    run_on_process_zero(move)
    manager.reload()


def _read(manager: ocp.CheckpointManager, step: int, items: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Returns (the groups' arrays, "") or ({}, what went wrong)."""
    arguments = {
        name: ocp.args.PyTreeRestore(
            item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
        )
        for name, item in items.items()
    }
    return _restore(manager, step, arguments)


def _damage(leaves: dict[str, Any], state: TrainState, mesh: Mesh) -> str:
    """Returns the leaves whose checksum is not the manifest's, or an empty string."""
    found = checksums(leaves_of(state), mesh)
    wrong = sorted(path for path, leaf in leaves.items() if leaf["checksum"] != found[path])
    return f"checksum differs: {', '.join(wrong[:3])}" if wrong else ""
