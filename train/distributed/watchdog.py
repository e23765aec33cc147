"""Ends a run in which nothing happens any more, with a line and the stacks of its threads, rather than wait for ever.

A collective waits for a host that is gone or hangs as long as it takes; so the dog counts the time without progress.
"""

import contextlib
import faulthandler
import threading
from collections.abc import Iterator
from pathlib import Path

import jax

from train.distributed.processes import end_all

EXIT_CODE = 124  # as `timeout` has it
_POLLS = 20  # in the time that is allowed
_LONGEST_POLL = 10.0  # seconds


class _Progress:
    """What happened last, and how often anything did."""

    def __init__(self) -> None:
        self.what, self.count = "the start", 0


_progress = _Progress()


def tick(what: str) -> None:
    """Says that something was done."""
    _progress.what = what
    _progress.count += 1


@contextlib.contextmanager
def watching(seconds: float, workdir: Path) -> Iterator[None]:
    """A context that the process does not outlive by more than `seconds` without a `tick`; 0: by any time.

    Time is counted in naps of the dog's own, so a process that was stopped and goes on is not found late.
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
    nap = min(seconds / _POLLS, _LONGEST_POLL)
    silent, seen = 0.0, _progress.count
    while not done.wait(nap):
        silent = silent + nap if _progress.count == seen else 0.0
        seen = _progress.count
        if silent >= seconds:
            _end(seconds, workdir)


def _end(seconds: float, workdir: Path) -> None:
    path = workdir / f"hang-{jax.process_index()}.txt"
    stacks = "its threads' stacks cannot be written"
    with contextlib.suppress(OSError), path.open("w") as file:
        faulthandler.dump_traceback(file)
        stacks = f"its threads' stacks are in {path}"
    end_all(
        f"nothing happened for {seconds:g} s (config.faults.hang_seconds) after {_progress.what}: "
        f"this host or another hangs; {stacks}; run the same command again to go on",
        EXIT_CODE,
    )
