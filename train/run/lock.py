"""A lock that prevents a second run in the same directory."""

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from configs.errors import UserError
from data.storage.paths import is_remote
from train.console import warn
from train.distributed.processes import end_all, run_on_process_zero

_LOCK = ".lock"


@contextlib.contextmanager
def claim(workdir: Path) -> Iterator[None]:
    """A context that locks `workdir` for this run and creates it if necessary; process 0 holds the lock.

    Raises:
        UserError: another run uses it, it is not writable, or another host sees a different directory.
    """
    with contextlib.ExitStack() as stack:
        held = run_on_process_zero(lambda: (_lease if is_remote(workdir) else _lock)(workdir, stack))
        if _mark(workdir) != held:
            raise UserError(
                f"--workdir={workdir} is not the directory that process 0 has under this name; "
                "expected a directory that all hosts share"
            )
        yield


def _mark(workdir: Path) -> str:
    """Returns the unique text of the lock that this host sees, or why it sees none."""
    if is_remote(workdir):
        from data.storage.lease import mark_of

        return mark_of(workdir / _LOCK)
    try:
        return (workdir / _LOCK).read_text()
    except OSError as error:
        return str(error.strerror)


def _lease(workdir: Path, stack: contextlib.ExitStack) -> str:
    """Locks a `workdir` in a bucket until `stack` closes; returns the unique text of the lock."""
    from data.storage.lease import Held, lease

    def lost(reason: str) -> None:
        end_all(f"{reason}; two runs must not write to one --workdir", 1)

    try:
        return stack.enter_context(lease(workdir / _LOCK, lost))
    except Held as held:
        raise UserError(f"--workdir={workdir} is in use by another run ({held}); use another directory") from None


def _lock(workdir: Path, stack: contextlib.ExitStack) -> str:
    """Locks `workdir` until `stack` closes; returns the unique text written to the lock file."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = stack.enter_context((workdir / _LOCK).open("a"))
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"--workdir={workdir} is in use by another run; use another directory") from None
    # Some parallel file systems do not support locks.
    except OSError as error:
        text = f"{workdir} cannot be locked ({error.strerror}); make sure that no second run writes to it"
        warn(text)
    mark = uuid.uuid4().hex
    lock.truncate(0)
    lock.write(mark)
    lock.flush()
    os.fsync(lock.fileno())
    return mark
