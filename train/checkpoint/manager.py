"""Opens and lists the checkpoint directories of a run, and waits for asynchronous saves."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import orbax.checkpoint as ocp

from configs.errors import UserError
from data.storage.files import delete_tree
from data.storage.paths import at, is_remote
from train.checkpoint.orbax_handlers import registry
from train.checkpoint.orbax_s3 import support_s3
from train.distributed.processes import run_on_process_zero

CHECKPOINTS_DIR, BEST_DIR = "checkpoints", "best"
# In a bucket Orbax writes this object last, since nothing can be renamed: a step without it is not a checkpoint.
COMMIT_MARKER = "commit_success.txt"


@contextlib.contextmanager
def open_manager(
    directory: Path, keep: int, name: str = CHECKPOINTS_DIR, keep_period: int = 0
) -> Iterator[ocp.CheckpointManager]:
    """Yields Orbax's manager of a run's `checkpoints/` or `best/`: asynchronous, uncompressed.

    Args:
        directory: of the run.
        keep: the number of newest steps to keep.
        name: `CHECKPOINTS_DIR` or `BEST_DIR`.
        keep_period: also keep the steps that are multiples of this; 0: none.
    """
    options = ocp.CheckpointManagerOptions(
        enable_async_checkpointing=True, cleanup_tmp_directories=True, max_to_keep=keep, keep_period=keep_period or None
    )
    manager = _manager(directory, name, True, options)
    try:
        yield manager
        wait(manager)
    finally:
        # Errors of a save were already raised by `wait`.
        with contextlib.suppress(OSError, ValueError):
            manager.close()


@contextlib.contextmanager
def open_to_read(directory: Path, name: str = CHECKPOINTS_DIR, once: bool = False) -> Iterator[ocp.CheckpointManager]:
    """Yields a manager that changes nothing: the run may be training, with its next checkpoint half written.

    Args:
        directory: of the run.
        name: `CHECKPOINTS_DIR` or `BEST_DIR`.
        once: the files will not be read again soon, so bypass the page cache.

    Raises:
        UserError: there is no checkpoint.
    """
    if not run_on_process_zero((directory / name).is_dir):
        raise UserError(f"{directory} contains no checkpoint")
    options = ocp.CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0)
    manager = _manager(directory, name, once, options)
    try:
        yield manager
    finally:
        manager.close()


def _manager(directory: Path, name: str, once: bool, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
    if str(directory).startswith("s3://"):
        support_s3()
    return ocp.CheckpointManager(
        directory.absolute() / name, options=options, handler_registry=registry(directory, once)
    )


def folder_of(manager: ocp.CheckpointManager) -> Path:
    """Returns the directory of a manager's steps."""
    return at(manager.directory)


def wait(manager: ocp.CheckpointManager) -> None:
    """Returns once every save that was started is on disk.

    Raises:
        UserError: it could not be written; earlier checkpoints are intact.
    """
    with write_errors(manager):
        manager.wait_until_finished()


@contextlib.contextmanager
def write_errors(manager: ocp.CheckpointManager) -> Iterator[None]:
    """A context that turns a failed write (disk full, quota, read-only directory) into a one-line UserError."""
    try:
        yield
    # TensorStore raises ValueError and RuntimeError, the file system OSError; the client of a bucket its own types.
    except Exception as error:
        folder = folder_of(manager)
        if not (isinstance(error, OSError | ValueError | RuntimeError) or is_remote(folder)):
            raise
        # The path comes first in TensorStore's messages and the reason last.
        reason = " ".join(str(error).split())[-200:]
        remedy = "check the bucket, its permissions and the network" if is_remote(folder) else "free some space"
        raise UserError(
            f"{folder}: a checkpoint cannot be written ({reason}); intact checkpoints: {_intact(folder)}; {remedy} "
            "and run the same command again to resume"
        ) from None


def _intact(folder: Path) -> str:
    try:
        return ", ".join(map(str, saved_steps(folder.parent, folder.name))) or "none"
    except Exception:  # the bucket that cannot be written may not be readable either
        return "unknown"


def saved_steps(directory: Path, name: str = CHECKPOINTS_DIR) -> list[int]:
    """Returns the steps of a run's committed checkpoints, newest first."""
    folder = directory / name
    if is_remote(folder):
        found = [path.parent.name for path in folder.glob(f"*/{COMMIT_MARKER}")]
    else:
        found = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted((int(step) for step in found if step.isdecimal()), reverse=True)


def delete_step(path: Path) -> None:
    """Deletes a checkpoint; in a bucket its marker first, so that one that is deleted in part is not a checkpoint."""
    if is_remote(path):
        (path / COMMIT_MARKER).unlink(missing_ok=True)
    delete_tree(path)


def listed_steps(manager: ocp.CheckpointManager) -> list[int]:
    """Returns a manager's steps, newest first: process 0's list on every process, since network file systems lag."""
    return run_on_process_zero(lambda: sorted(manager.all_steps(), reverse=True))
