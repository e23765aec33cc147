"""One run moves between machines: 8 devices, then two hosts of 2, then 1 device, then 8 again."""

import signal
from pathlib import Path

from tests.faults.contract import Fault, Outcome
from tests.faults.processes import end, losses, start, text_in, wait_for

_STEPS = 120
_FLAGS = (f"--config.num_steps={_STEPS}", "--config.checkpoint.every=1000")
# (hosts, devices a host, mesh, steps after which it has to move)
_MACHINES = (
    (1, 8, ("data=2", "fsdp=4"), 25),
    (2, 2, ("data=1", "fsdp=2", "tensor=2"), 50),
    (1, 1, (), 75),
    (1, 8, ("fsdp=2", "tensor=2", "context=2"), _STEPS),
)


def _moves(directory: Path, short: bool) -> Outcome:
    text = text_in(directory)
    plain, moved = directory / "plain", directory / "moved"
    end(start(1, text, plain, *_FLAGS, "--config.mesh.data=8", devices=8))
    places = []
    for hosts, devices, axes, until in _MACHINES:
        mesh = [f"--config.mesh.{axis}" for axis in ("data=1", *axes)]
        running = start(hosts, text, moved, *_FLAGS, *mesh, devices=devices)
        wait_for(moved, until, running[0])
        if until < _STEPS:
            running[-1].send_signal(signal.SIGTERM)
        codes, said = end(running)
        if codes != [75 if until < _STEPS else 0] * hosts:
            return Outcome(f"moved to {hosts} hosts of {devices}", False, 0, f"exit {codes}: {said}")
        places.append(str(len(losses(moved))))
    expected, found = losses(plain), losses(moved)
    same_steps = [step for step, _ in found] == [step for step, _ in expected] == list(range(1, _STEPS + 1))
    error = max(abs(a - b) / b for (_, a), (_, b) in zip(found, expected, strict=True))
    seen = f"each step once: {same_steps}; losses differ from those on 8 devices by {error:.1e} of them at most"
    injected = f"8 devices, 2 hosts of 2, 1, 8, moved at steps {', '.join(places[:-1])}"
    return Outcome(injected, same_steps and error <= 1e-5, 0, seen)


FAULTS = (Fault("another mesh, other hosts", _moves, in_test=False),)
