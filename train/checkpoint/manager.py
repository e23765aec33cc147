"""Orbax's checkpoint manager of a run directory: opening, listing, waiting."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from configs.errors import UserError
from train.checkpoint.orbax_handlers import registry
from train.distributed.processes import run_on_process_zero

_VERSION = 1


CHECKPOINTS_DIR, BEST_DIR = "checkpoints", "best"


@contextlib.contextmanager
def open_manager(
    directory: Path, keep: int, name: str = CHECKPOINTS_DIR, keep_period: int = 0
) -> Iterator[ocp.CheckpointManager]:
    """Yields Orbax's manager of a run's `checkpoints/` or `best/`: asynchronous, uncompressed.

    Args:
        directory: of the run.
        keep: how many of the newest steps stay.
        name: `CHECKPOINTS_DIR` or `BEST_DIR`.
        keep_period: steps that it divides stay too; 0: none.
    """
    options = {"enable_async_checkpointing": True, "cleanup_tmp_directories": True}
    manager = _manager(directory, name, True, max_to_keep=keep, keep_period=keep_period or None, **options)
    try:
        yield manager
        wait(manager)
    finally:
        # What went wrong in a save was told by then.
        with contextlib.suppress(OSError, ValueError):
            manager.close()


@contextlib.contextmanager
def open_to_read(directory: Path, name: str = CHECKPOINTS_DIR, once: bool = False) -> Iterator[ocp.CheckpointManager]:
    """Yields a manager that changes nothing: the run may be training, and its next checkpoint half written.

    Args:
        directory: of the run.
        name: `CHECKPOINTS_DIR` or `BEST_DIR`.
        once: nobody will read it again soon.

    Raises:
        UserError: there is no checkpoint.
    """
    if not run_on_process_zero((directory / name).is_dir):
        raise UserError(f"{directory} holds no checkpoint")
    manager = _manager(directory, name, once, read_only=True, create=False, save_interval_steps=0)
    try:
        yield manager
    finally:
        manager.close()


def _manager(directory: Path, name: str, once: bool, **options: Any) -> ocp.CheckpointManager:  # noqa: ANN401
    return ocp.CheckpointManager(
        directory.absolute() / name,
        options=ocp.CheckpointManagerOptions(**options),
        handler_registry=registry(directory, once),
    )


def wait(manager: ocp.CheckpointManager) -> None:
    """Returns once what is being saved is on disk.

    Raises:
        UserError: it could not be written; what was saved before is untouched.
    """
    with _saving(manager):
        manager.wait_until_finished()


@contextlib.contextmanager
def _saving(manager: ocp.CheckpointManager) -> Iterator[None]:
    # A full disk, a quota or a directory that is read-only, through TensorStore or the file system itself.
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        # TensorStore says first where, last what.
        fault = " ".join(str(error).split())[-200:]
        kept = ", ".join(map(str, saved_steps(Path(manager.directory).parent, Path(manager.directory).name))) or "none"
        raise UserError(
            f"{manager.directory}: a checkpoint cannot be written ({fault}); those of steps {kept} are whole: "
            "make room, then run again to go on"
        ) from None


def saved_steps(directory: Path, name: str = CHECKPOINTS_DIR) -> list[int]:
    """Returns the steps of a run's committed checkpoints, newest first."""
    folder = directory / name
    found = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
    return sorted(found, reverse=True)


def _steps(manager: ocp.CheckpointManager) -> list[int]:
    """Returns the steps that there are, newest first; process 0's list, since a network file system may lag."""
    return run_on_process_zero(lambda: sorted(manager.all_steps(), reverse=True))


def _manifest(manager: ocp.CheckpointManager, step: int) -> dict[str, Any] | None:
    read, _ = _restore(manager, step, {"manifest": ocp.args.JsonRestore()})
    try:
        manifest = read["manifest"]
        whole = all(
            isinstance(leaf["shape"], list) and isinstance(leaf["dtype"], str) and isinstance(leaf["checksum"], str)
            for leaf in manifest["leaves"].values()
        )
        return manifest if whole and manifest["version"] == _VERSION and manifest["leaves"] else None
    except (KeyError, TypeError, AttributeError):
        return None


def _restore(manager: ocp.CheckpointManager, step: int, arguments: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Returns (what Orbax reads, "") on every process, or ({}, what went wrong) on every process."""
    try:
        read = manager.restore(step, args=ocp.args.Composite(**arguments))
        return {name: read[name] for name in arguments}, ""
    # Orbax and TensorStore raise a dozen types for a truncated, missing or unreadable file.
    except Exception as error:
        fault = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    if "sync_global_devices name mismatch" in fault:
        return {}, "another process cannot read it"
    # Orbax's reading ends with a barrier. A process that failed before it meets the others there under another name,
    # so that it fails on all of them.
    with contextlib.suppress(AssertionError):
        multihost_utils.sync_global_devices("rootstock: a checkpoint cannot be read")
    return {}, fault
