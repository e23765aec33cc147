"""Watchdog: ends a run that makes no progress and writes the stack of every thread to hang-N.txt.

A collective blocks forever on a host that died or hung, so a thread measures the time since the last `tick`.
"""

import contextlib
import faulthandler
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import jax

from data.storage.files import copy_file
from data.storage.paths import is_remote
from train.distributed.processes import end_all

EXIT_CODE = 124  # that of timeout(1)
_POLLS = 20  # per timeout
_LONGEST_POLL = 10.0  # seconds
_UPLOAD_SECONDS = 20.0


class _Progress:
    """The last thing that was done, and the number of things done."""

    def __init__(self) -> None:
        self.what, self.count = "the start", 0


_progress = _Progress()


def tick(what: str) -> None:
    """Records progress; `what` names it in the error if nothing follows."""
    _progress.what = what
    _progress.count += 1


@contextlib.contextmanager
def watching(seconds: float, workdir: Path) -> Iterator[None]:
    """A context that ends the process after `seconds` without a `tick`; 0: never.

    Time is counted in the thread's own sleeps, so a process that was suspended (SIGSTOP) is not mistaken for a hang.
    """
    done = threading.Event()
    tick("the start")
    if seconds:
        threading.Thread(target=_watch, args=(seconds, workdir, done), daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _watch(seconds: float, workdir: Path, done: threading.Event) -> None:
    sleep_seconds = min(seconds / _POLLS, _LONGEST_POLL)
    silent, seen = 0.0, _progress.count
    while not done.wait(sleep_seconds):
        silent = silent + sleep_seconds if _progress.count == seen else 0.0
        seen = _progress.count
        if silent >= seconds:
            _end(seconds, workdir)


def _end(seconds: float, workdir: Path) -> None:
    path = workdir / f"hang-{jax.process_index()}.txt"
    written = _write_stacks(path)
    stacks = f"the stacks of its threads are in {path}" if written else "the stacks of its threads cannot be written"
    end_all(
        f"no progress for {seconds:g} s (config.faults.hang_seconds) after {_progress.what}: "
        f"this host or another hangs; {stacks}; run the same command again to resume",
        EXIT_CODE,
    )


def _write_stacks(path: Path) -> bool:
    """Writes the stack of every thread to a file and returns whether that was possible."""
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory() as scratch:
        # faulthandler needs a file of this machine.
        file = Path(scratch) / path.name if is_remote(path) else path
        with file.open("w") as out:
            faulthandler.dump_traceback(out)
        # What hangs may be the network.
        upload = threading.Thread(target=copy_file, args=(file, path), daemon=True)
        if is_remote(path):
            upload.start()
            upload.join(_UPLOAD_SECONDS)
        return not upload.is_alive()
    return False
