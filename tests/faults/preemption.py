"""Preemption: SIGTERM to a run in one process, to one of two hosts, and to a process that is still starting."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.contract import Fault, Outcome
from tests.faults.processes import STEPS, end, handles_sigterm, losses, start, text_in, wait_until_training

_AFTER = 20


def _sigterm(hosts: int) -> Callable[[Path, bool], Outcome]:
    """Returns a fault that sends SIGTERM to the last host while it trains."""

    def inject(directory: Path, short: bool) -> Outcome:
        text = text_in(directory)
        plain, preempted = directory / "plain", directory / "preempted"
        end(start(hosts, text, plain))
        running = start(hosts, text, preempted)
        wait_until_training(running, preempted, _AFTER)
        running[-1].send_signal(signal.SIGTERM)
        codes, printed = end(running)
        saved = sorted(int(path.name) for path in (preempted / "checkpoints").glob("[0-9]*"))
        reached = losses(preempted)[-1][0]
        again, _ = end(start(hosts, text, preempted))
        same = losses(preempted) == losses(plain) and len(losses(preempted)) == STEPS
        survived = codes == [75] * hosts and saved == [reached] and again == [0] * hosts and same
        seen = f"exit {codes}, saved step {saved} of {reached}; losses as undisturbed: {same}; {printed[0]}"
        return Outcome(f"SIGTERM to host {hosts - 1} of {hosts} after step {_AFTER}", survived, 0, seen)

    return inject


def _starting(directory: Path, short: bool) -> Outcome:
    """SIGTERM as soon as a process handles it, then while it restores: it ends with 75, and the run resumes."""
    text, workdir = text_in(directory), directory / "run"
    codes, printed = [], []
    for moment in ("importing", "restoring"):
        if moment == "restoring":
            running = start(1, text, workdir)
            wait_until_training(running, workdir, _AFTER)
            running[0].send_signal(signal.SIGTERM)
            end(running)
        (process,) = start(1, text, workdir)
        ready = handles_sigterm if moment == "importing" else _uses_jax
        while not ready(process.pid) and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        ended, lines = end([process])
        codes += ended
        printed += lines
    again, _ = end(start(1, text, workdir))
    complete = again == [0] and [step for step, _ in losses(workdir)] == list(range(1, STEPS + 1))
    survived = codes == [75, 75] and all("received SIGTERM" in line for line in printed) and complete
    seen = f"exit {codes}, then each step once: {complete}; {printed[0]}"
    return Outcome("SIGTERM while importing, then while resuming", survived, 0, seen)


def _uses_jax(pid: int) -> bool:
    try:
        return "jaxlib" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


FAULTS = (
    Fault("SIGTERM", _sigterm(1)),
    Fault("SIGTERM on one of two hosts", _sigterm(2), in_test=False),
    Fault("SIGTERM while starting", _starting, in_test=False),
)
