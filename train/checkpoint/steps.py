"""Reads and verifies the steps of a checkpoint directory, newest first, passing over damaged ones."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from configs.errors import UserError
from data.storage.errors import Unreachable, describe, is_unreachable
from data.storage.paths import is_remote
from train.checkpoint.checksums import checksums
from train.checkpoint.manager import folder_of, listed_steps
from train.checkpoint.manifest import Leaves, from_json
from train.console import warn
from train.trees import leaf_paths

T = TypeVar("T")
_MAX_NAMED = 3  # leaves named in one warning


class DamagedCheckpoint(UserError):
    """A step that cannot be read, or whose arrays differ from its manifest."""


class NoSoundCheckpoint(UserError):
    """There is no checkpoint, or every one of them is damaged."""


def sound_steps(
    manager: ocp.CheckpointManager, check: Callable[[int, Leaves], T], steps: Iterable[int] | None = None
) -> Iterator[T]:
    """Yields what `check` returns for each sound step, newest first, and warns of each damaged one.

    Args:
        manager: of the directory.
        check: (step, leaves of its manifest) -> any value; raises DamagedCheckpoint to pass over the step.
        steps: the steps to try, in order; None: all.

    Raises:
        NoSoundCheckpoint: after the last step, if none was sound.
        UserError: whatever else `check` raises.
    """
    saves = [(manager, step) for step in (listed_steps(manager) if steps is None else steps)]
    yield from sound_saves(saves, lambda _, step, leaves: check(step, leaves), f"{folder_of(manager).parent}")


def sound_saves(
    saves: Iterable[tuple[ocp.CheckpointManager, int]],
    check: Callable[[ocp.CheckpointManager, int, Leaves], T],
    where: str,
) -> Iterator[T]:
    """Yields what `check` returns for each sound step of several managers; see `sound_steps`.

    Args:
        saves: (manager, step) in the order in which they are tried.
        check: (manager, step, leaves of its manifest) -> any value.
        where: names the run in the error.
    """
    damaged, any_sound = [], False
    for manager, step in saves:
        try:
            value = check(manager, step, read_manifest(manager, step))
        except DamagedCheckpoint as error:
            damaged.append(_describe_damage(manager, step, str(error)))
            warn(f"{damaged[-1]}; trying the one before")
        else:
            any_sound = True
            yield value
    if not any_sound:
        contents = "; ".join(damaged) or f"{where} contains no checkpoint"
        raise NoSoundCheckpoint(f"{contents}; no sound checkpoint is left" if damaged else contents)


def _describe_damage(manager: ocp.CheckpointManager, step: int, damage: str) -> str:
    # The run may be training meanwhile, and deletes its old checkpoints.
    folder = folder_of(manager)
    found = f"is damaged ({damage})" if (folder / str(step)).is_dir() else "was deleted while it was read"
    return f"{folder}: checkpoint {step} {found}"


def read_manifest(manager: ocp.CheckpointManager, step: int) -> Leaves:
    """Returns the leaves that a step's manifest lists, or raises DamagedCheckpoint."""
    try:
        leaves = from_json(_restore(manager, step, {"manifest": ocp.args.JsonRestore()})["manifest"])
    except DamagedCheckpoint:
        leaves = None
    if leaves is None:
        raise DamagedCheckpoint("its manifest cannot be read")
    return leaves


def read_arrays(manager: ocp.CheckpointManager, step: int, items: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arrays of the items {name: abstract tree}, laid out as these say; not verified.

    Raises:
        DamagedCheckpoint: some file is missing, truncated or unreadable, on this process or another.
    """
    arguments = {
        name: ocp.args.PyTreeRestore(
            item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
        )
        for name, item in items.items()
    }
    return _restore(manager, step, arguments)


def verify(stored: Leaves, items: Mapping[str, Any], mesh: Mesh) -> None:
    """Raises DamagedCheckpoint naming leaves of `stored` whose checksum differs from that of the arrays read."""
    found = checksums(leaf_paths(items), mesh)
    wrong = sorted(path for path, leaf in stored.items() if leaf.checksum != found[path])
    if wrong:
        raise DamagedCheckpoint(f"checksum differs: {', '.join(wrong[:_MAX_NAMED])}")


def _restore(manager: ocp.CheckpointManager, step: int, arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns what Orbax reads, or raises DamagedCheckpoint, the same on every process."""
    try:
        read = manager.restore(step, args=ocp.args.Composite(**arguments))
        return {name: read[name] for name in arguments}
    # Orbax and TensorStore raise a dozen types for a truncated, missing or unreadable file.
    except Exception as error:
        # Such a checkpoint must not be taken for a damaged one, which is moved away.
        if is_remote(folder_of(manager)) and is_unreachable(error):
            raise Unreachable(f"{folder_of(manager)}: checkpoint {step} cannot be read: {describe(error)}") from None
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    if "sync_global_devices name mismatch" in reason:
        raise DamagedCheckpoint("another process cannot read it")
    # Orbax ends a restore with a barrier. A process that failed before it must join a barrier under another name, so
    # that the restore fails on all processes.
    with contextlib.suppress(AssertionError):
        multihost_utils.sync_global_devices("rootstock: a checkpoint cannot be read")
    raise DamagedCheckpoint(reason)
