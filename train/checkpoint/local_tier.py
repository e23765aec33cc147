"""A second place for checkpoints: a local directory that is written to more often than a run directory in a bucket.

A run finds its own checkpoints there by an id in its run directory. What makes them useless, such as a change of data,
deletes the id.
"""

import contextlib
import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import orbax.checkpoint as ocp

from configs.errors import UserError
from data.storage.files import write_atomically
from train.checkpoint.manager import open_manager
from train.distributed.processes import run_on_process_zero

_ID_FILE, _MARK = "local_checkpoints.json", "id"


@contextlib.contextmanager
def open_local_manager(local_path: str, workdir: Path, keep: int) -> Iterator[ocp.CheckpointManager | None]:
    """Yields the manager of a run's checkpoints below `local_path`, or None if that is empty.

    Args:
        local_path: `config.checkpoint.local_path`.
        workdir: directory of the run; it exists.
        keep: the number of newest steps to keep.

    Raises:
        UserError: the directory cannot be written, or the processes of the run do not share it.
    """
    if not local_path:
        yield None
        return
    directory = Path(local_path) / run_on_process_zero(lambda: _claimed_id(Path(local_path), workdir))
    if not (directory / _MARK).is_file():
        raise UserError(
            f"config.checkpoint.local_path={local_path}: this host does not see what process 0 wrote there; expected a "
            "directory that all processes of the run share, or '' to save to --workdir only"
        )
    with open_manager(directory, keep) as manager:
        yield manager


def forget_local_checkpoints(workdir: Path) -> None:
    """Makes a run ignore the local checkpoints that it has up to now."""
    for directory in (workdir, *(path.parent for path in workdir.glob(f"*/{_ID_FILE}"))):
        (directory / _ID_FILE).unlink(missing_ok=True)


def _claimed_id(local_path: Path, workdir: Path) -> str:
    """Returns the run's id, made on the first start, after writing it to the run's directory below `local_path`."""
    file = workdir / _ID_FILE
    if not file.is_file():
        write_atomically(file, json.dumps({"id": uuid.uuid4().hex}))
    try:
        name = str(json.loads(file.read_text())["id"])
        assert name.isalnum()
    except (ValueError, KeyError, TypeError, AssertionError):
        raise UserError(f"{file} is damaged; delete it to ignore the local checkpoints of this run") from None
    try:
        (local_path / name).mkdir(parents=True, exist_ok=True)
        write_atomically(local_path / name / _MARK, str(workdir))
    except OSError as error:
        raise UserError(f"config.checkpoint.local_path={local_path} cannot be written: {error.strerror}") from None
    return name
