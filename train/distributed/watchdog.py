"""Watchdog: ends a run that makes no progress and writes the stack of every thread to hang-N.txt.

A collective blocks forever on a host that died or hung, so a thread measures the time since the last `tick`.
"""

import contextlib
import faulthandler
import threading
from collections.abc import Iterator
from pathlib import Path

import jax

from train.distributed.processes import end_all

EXIT_CODE = 124  # that of timeout(1)
_POLLS = 20  # per timeout
_LONGEST_POLL = 10.0  # seconds


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
    stacks = "the stacks of its threads cannot be written"
    with contextlib.suppress(OSError), path.open("w") as file:
        faulthandler.dump_traceback(file)
        stacks = f"the stacks of its threads are in {path}"
    end_all(
        f"no progress for {seconds:g} s (config.faults.hang_seconds) after {_progress.what}: "
        f"this host or another hangs; {stacks}; run the same command again to resume",
        EXIT_CODE,
    )
