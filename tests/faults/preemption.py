"""The machine is taken away: SIGTERM to a run of its own process, and to one of two hosts."""

import signal
from collections.abc import Callable
from pathlib import Path

from tests.faults.contract import Fault, Outcome
from tests.faults.processes import STEPS, end, losses, start, text_in, wait_for

_AFTER = 20


def _sigterm(hosts: int) -> Callable[[Path, bool], Outcome]:
    """A fault that sends SIGTERM to the last host amid training."""

    def inject(directory: Path, short: bool) -> Outcome:
        text = text_in(directory)
        plain, told = directory / "plain", directory / "told"
        end(start(hosts, text, plain))
        running = start(hosts, text, told)
        wait_for(told, _AFTER, running[0])
        running[-1].send_signal(signal.SIGTERM)
        codes, said = end(running)
        saved = sorted(int(path.name) for path in (told / "checkpoints").glob("[0-9]*"))
        reached = losses(told)[-1][0]
        again, _ = end(start(hosts, text, told))
        same = losses(told) == losses(plain) and len(losses(told)) == STEPS
        survived = codes == [75] * hosts and saved == [reached] and again == [0] * hosts and same
        seen = f"exit {codes}, saved step {saved} of {reached}, the rest bitwise as without: {same}; {said[0]}"
        return Outcome(f"SIGTERM to host {hosts - 1} of {hosts} after step {_AFTER}", survived, 0, seen)

    return inject


FAULTS = (
    Fault("SIGTERM", _sigterm(1)),
    Fault("SIGTERM on one of two hosts", _sigterm(2), in_test=False),
)
