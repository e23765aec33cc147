"""SIGTERM before, between and after training: ends the process at once with exit code 75 and one line.

A preemption can come at any time, also while the process imports, restores or compiles. Nothing is lost then: all files
are written atomically. While the loop trains, it asks for the notice itself and saves first (`preemption.py`).

Python runs signal handlers in the main thread between bytecodes, so one that comes during a long XLA compilation would
wait for its end. Instead the C-level handler writes to a pipe that a thread reads. This file imports neither JAX nor
anything else that is slow, so that it can come first; a signal before that (Python itself is starting) ends the process
with SIGTERM's default action.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence

from configs.errors import end

# EX_TEMPFAIL of sysexits.h: not finished, worth another start.
EXIT_CODE = 75
PREEMPTIBLE_COMMANDS = ("pretrain", "finetune", "learning-curve", "scaling")
MESSAGE = "received SIGTERM while not training: nothing is lost; run the same command again to resume"


class _Notice:
    """Whether a thread watches for SIGTERM, the number of `defer` contexts, and whether the signal was received."""

    def __init__(self) -> None:
        self.watching = False
        self.holders = 0
        self.received = threading.Event()


_notice = _Notice()


def exit_on_sigterm(arguments: Sequence[str]) -> None:
    """Makes SIGTERM end a preemptible command with exit code 75; call it before any slow import.

    Args:
        arguments: of the command line; other commands keep SIGTERM's default action.
    """
    if _notice.watching or not arguments or arguments[0] not in PREEMPTIBLE_COMMANDS or not _in_main_thread():
        return
    _notice.watching = True
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    # Children share the pipe: their signals are not this process's.
    os.register_at_fork(after_in_child=_restore_default)
    threading.Thread(target=_watch, args=(read,), daemon=True).start()
    catch()


def catch() -> None:
    """Installs the handler again, where a library has replaced it; does nothing without `exit_on_sigterm`."""
    if _notice.watching and _in_main_thread():
        signal.signal(signal.SIGTERM, _ignore)


@contextlib.contextmanager
def defer() -> Iterator[threading.Event]:
    """A context in which SIGTERM sets the event that it yields instead of ending the process; see `exit_on_sigterm`.

    The event stays set for later contexts, so that the next training ends after a signal in the last step of this one.
    """
    _notice.holders += 1
    try:
        yield _notice.received
    finally:
        _notice.holders -= 1


@contextlib.contextmanager
def hold() -> Iterator[threading.Event]:
    """`defer` that also works without `exit_on_sigterm`, as in `rootstock demo`, if this is the main thread."""
    if _notice.watching:
        with defer() as received:
            yield received
        return
    received = threading.Event()
    if not _in_main_thread():
        yield received
        return
    before = signal.signal(signal.SIGTERM, lambda *_: received.set())
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _ignore(*_: object) -> None:
    """A Python-level handler must exist for the signal to reach the pipe; `_watch` does the work."""


def _restore_default() -> None:
    if _notice.watching:
        signal.set_wakeup_fd(-1)
        if signal.getsignal(signal.SIGTERM) is _ignore:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _watch(pipe: int) -> None:
    while True:
        # Every signal with a Python handler is written, Ctrl-C too.
        if signal.SIGTERM not in os.read(pipe, 512):
            continue
        _notice.received.set()
        if not _notice.holders:
            end(MESSAGE, EXIT_CODE)
