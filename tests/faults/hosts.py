"""One of two hosts dies or hangs: the other ends with one line, and the run resumes when both are started again."""

import functools
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.contract import Fault, Outcome
from tests.faults.processes import SECONDS, STEPS, end, losses, start, text_in, wait_for
from train.checkpoint.manager import saved_steps
from train.distributed.processes import SILENT_SECONDS

_AFTER, _EVERY = 45, 20
_FLAGS = (f"--config.checkpoint.every={_EVERY}",)
# Compilation counts too and can take seconds on a busy machine, so only the run that is disturbed has this limit.
_HANG_SECONDS = 20
_STUCK = """
import sys, time
from pathlib import Path
from tests.faults.tiny_run import settings_of, train
def stuck(params):
    time.sleep(1000)
train(Path(sys.argv[1]), settings_of(**{"faults.hang_seconds": float(sys.argv[2])}), evaluate=stuck)
"""


@functools.cache
def _undisturbed() -> list[tuple[int, float]]:
    """Returns the losses of an undisturbed run on two hosts."""
    with tempfile.TemporaryDirectory() as directory:
        workdir = Path(directory) / "plain"
        end(start(2, text_in(Path(directory)), workdir, *_FLAGS))
        found = losses(workdir)
    assert len(found) == STEPS
    return found


def _lost(
    host: int, sent: signal.Signals, codes: tuple[int, ...], within: float, *flags: str
) -> Callable[[Path, bool], Outcome]:
    """Returns a fault that sends a signal to a host; the other must end with one of the codes within some seconds."""

    def inject(directory: Path, short: bool) -> Outcome:
        text = text_in(directory)
        hit = directory / "hit"
        running = start(2, text, hit, *_FLAGS, f"--config.faults.hang_seconds={_HANG_SECONDS}", *flags)
        wait_for(hit, _AFTER, running[0])
        running[host].send_signal(sent)
        begin = time.monotonic()
        other = running[1 - host]
        try:
            message = other.communicate(timeout=SECONDS)[1].strip().splitlines()[-1]
        finally:
            took = time.monotonic() - begin
            for process in running:
                process.kill()
                process.wait()
        reached = len(losses(hit))
        saved = max(saved_steps(hit), default=0)
        again, _ = end(start(2, text, hit, *_FLAGS))
        same = losses(hit) == _undisturbed()
        line = message.startswith("rootstock: error: ")
        survived = other.returncode in codes and took < within and line and again == [0, 0] and same
        seen = f"the other ended after {took:.1f} s, exit {other.returncode}: {message[:160]}; "
        seen += f"started again, exit {again}; same losses: {same}"
        return Outcome(f"{sent.name} to host {host} of 2 after step {_AFTER}", survived, reached - saved, seen)

    return inject


def _stuck(directory: Path, short: bool) -> Outcome:
    command = [sys.executable, "-c", _STUCK, str(directory), str(_HANG_SECONDS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    message = done.stderr.strip().splitlines()[-1]
    expected = f"rootstock: error: no progress for {_HANG_SECONDS} s (config.faults.hang_seconds) after step 3"
    named = "in stuck" in (directory / "hang-0.txt").read_text()
    survived = done.returncode == 124 and message.startswith(expected) and named
    return Outcome("an evaluation that never returns", survived, 0, f"exit {done.returncode}: {message}")


FAULTS = (
    Fault("a host dies", _lost(1, signal.SIGKILL, (1, 124), _HANG_SECONDS + 15), in_test=False),
    Fault("the first host dies", _lost(0, signal.SIGKILL, (1,), 15), in_test=False),
    Fault("a host hangs", _lost(1, signal.SIGSTOP, (124,), _HANG_SECONDS + 15), in_test=False),
    Fault(
        "a host hangs, no heartbeat",
        _lost(1, signal.SIGSTOP, (1,), SILENT_SECONDS + 25, "--config.faults.hang_seconds=0"),
        in_test=False,
    ),
    Fault("the main thread hangs", _stuck, in_test=False),
)
