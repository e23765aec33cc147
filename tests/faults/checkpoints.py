"""Faults of checkpoints: files damaged after they were written, a full or read-only disk, a second run."""

import contextlib
import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from configs.errors import UserError
from tests.damage import flip_a_bit, largest_file
from tests.faults.contract import Fault, Outcome
from tests.faults.processes import SECONDS
from tests.faults.tiny_run import EVERY, STEPS, same, settings_of, train
from train.checkpoint.manager import CHECKPOINTS_DIR, open_to_read, saved_steps
from train.checkpoint.read import read_contents
from train.console import console
from train.run.history import read_records
from train.run.lock import claim

_ROOT = Path(__file__).resolve().parents[2]
_SMALL = 10240  # largest file in bytes on the "full" disk; the largest leaf is bigger


def _truncate(step: Path) -> None:
    os.truncate(largest_file(step), 10)


def _delete(step: Path) -> None:
    largest_file(step).unlink()


def _damaged(damage: Callable[[Path], None], names_leaf: bool) -> Callable[[Path, bool], Outcome]:
    """Returns a fault that damages the newest checkpoint: `read_contents` must find it and the run pass over it."""

    def inject(directory: Path, short: bool) -> Outcome:
        settings = settings_of()
        expected = train(directory, settings)
        damage(directory / CHECKPOINTS_DIR / str(STEPS))
        with open_to_read(directory) as manager:
            found = read_contents(manager, STEPS).damage
            before = read_contents(manager, STEPS - EVERY).damage
        with console.capture() as output:
            ended = train(directory, settings)
        warned = f"checkpoint {STEPS} is damaged" in output.get() and f"resumed at step {STEPS - EVERY}" in output.get()
        named = "/kernel" in found or "/table" in found if names_leaf else bool(found)
        steps = [r["step"] for r in read_records(directory) if r["phase"] == "train"]
        whole = same(ended, expected) and steps == list(range(1, STEPS + 1)) and not before
        return Outcome("the newest of two", warned and named and whole, EVERY, f"{found[:120]}; bitwise: {whole}")

    return inject


def _train_on_full_disk(workdir: Path) -> str:
    """Trains where files of this process are limited to `_SMALL` bytes; returns the error.

    Writes beyond the limit fail with EFBIG, as with ENOSPC on a full disk.
    """
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_SMALL, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        train(workdir, settings_of())
    except UserError as error:
        return str(error)
    return "no error"


def _disk_full(directory: Path, short: bool) -> Outcome:
    settings = settings_of()
    expected = train(directory / "plain", settings)
    workdir = directory / "full"
    half = train(workdir, settings)
    # As if only one checkpoint was saved and the next is about to be written.
    shutil.rmtree(workdir / CHECKPOINTS_DIR / str(STEPS))
    # In a process of its own, as a real run is: writes of the failed save end with it, and do not disturb the next run.
    command = [sys.executable, "-m", "tests.faults.checkpoints", str(workdir)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    message = done.stderr if done.returncode else done.stdout.splitlines()[-1]
    kept = saved_steps(workdir)
    with open_to_read(workdir) as manager:
        sound = [step for step in kept if not read_contents(manager, step).damage]
    ended = train(workdir, settings)
    survived = (
        "cannot be written" in message
        and sound == kept == [STEPS - EVERY]
        and same(ended, expected)
        and same(half, expected)
    )
    return Outcome(f"files limited to {_SMALL} bytes", survived, EVERY, message[-200:])


@contextlib.contextmanager
def _read_only(directory: Path) -> Iterator[bool]:
    """Makes a directory read-only, for root too, and yields whether this file system allows that."""
    root = os.geteuid() == 0
    # Permission bits do not apply to root; the immutable attribute does, where the file system supports it.
    locked = subprocess.run(["chattr", "+i", str(directory)], capture_output=True, check=False) if root else None
    if not root:
        directory.chmod(0o555)
    try:
        yield locked is None or locked.returncode == 0
    finally:
        if root:
            subprocess.run(["chattr", "-i", str(directory)], capture_output=True, check=False)
        else:
            directory.chmod(0o755)


def _read_only_directory(directory: Path, short: bool) -> Outcome:
    settings, workdir = settings_of(), directory / "run"
    expected = train(directory / "plain", settings)
    evaluations, locks = itertools.count(1), []

    def locking(params: object) -> dict[str, float]:
        # At the last step, when the checkpoint of step 4 exists and that of step 8 exists or is being written.
        if next(evaluations) * EVERY == STEPS:
            deadline = time.monotonic() + SECONDS
            while not saved_steps(workdir) and time.monotonic() < deadline:
                time.sleep(0.02)
            locks.append(locked.enter_context(_read_only(workdir / CHECKPOINTS_DIR)))
        return {"loss": 1.0}

    with contextlib.ExitStack() as locked:
        try:
            train(workdir, settings, evaluate=locking)
            line = "no error"
        except UserError as error:
            line = str(error)
    with _read_only(workdir) as possible:
        try:
            with claim(workdir / "new"):
                start = "no error"
        except UserError as error:
            start = str(error)
    if not possible or not all(locks):
        return Outcome("nothing", True, 0, "not possible for root on this file system")
    sound = saved_steps(workdir)
    ended = train(workdir, settings)
    survived = (
        "cannot be written" in line
        and "cannot be written" in start
        and sound in ([EVERY], [2 * EVERY, EVERY])
        and same(ended, expected)
    )
    return Outcome(
        "checkpoints/ read-only during the run, then the run directory",
        survived,
        STEPS - EVERY * len(sound),
        f"{line[-150:]}; {start}",
    )


def _two_runs(directory: Path, short: bool) -> Outcome:
    with claim(directory):
        try:
            with claim(directory):
                return Outcome("a second run", False, 0, "no error")
        except UserError as error:
            return Outcome("a second run", "is in use by another run" in str(error), 0, str(error))


FAULTS = (
    Fault("checkpoint truncated", _damaged(_truncate, names_leaf=False)),
    Fault("checkpoint file deleted", _damaged(_delete, names_leaf=False)),
    Fault("checkpoint byte flipped", _damaged(flip_a_bit, names_leaf=True)),
    Fault("disk full", _disk_full),
    Fault("directory read-only", _read_only_directory),
    Fault("two runs in one directory", _two_runs),
)

if __name__ == "__main__":
    print(_train_on_full_disk(Path(sys.argv[1])))
