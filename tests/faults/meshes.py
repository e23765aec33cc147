"""A run that moves between machines: 8 devices, two hosts with 2 each, 1 device, 8 devices on another mesh."""

import signal
from pathlib import Path

from tests.faults.contract import Fault, Outcome
from tests.faults.processes import end, losses, start, text_in, wait_until_training

# The preemption service of several hosts polls once per second, which is dozens of steps of such a small model: the
# run must be long enough that no machine but the last reaches its end.
_STEPS = 300
_AFTER = 10  # steps on each machine before it is taken away
_FLAGS = (f"--config.num_steps={_STEPS}", "--config.checkpoint.every=100000", "--config.evaluation.every=100000")
# (hosts, devices per host, mesh)
_MACHINES = (
    (1, 8, ("data=2", "fsdp=4")),
    (2, 2, ("data=1", "fsdp=2", "tensor=2")),
    (1, 1, ()),
    (1, 8, ("fsdp=2", "tensor=2", "context=2")),
)


def _moves(directory: Path, short: bool) -> Outcome:
    text = text_in(directory)
    plain, moved = directory / "plain", directory / "moved"
    end(start(1, text, plain, *_FLAGS, "--config.mesh.data=8", devices=8))
    moved_at = []
    for number, (hosts, devices, axes) in enumerate(_MACHINES, 1):
        last = number == len(_MACHINES)
        mesh = [f"--config.mesh.{axis}" for axis in ("data=1", *axes)]
        running = start(hosts, text, moved, *_FLAGS, *mesh, devices=devices)
        if not last:
            wait_until_training(running, moved, _AFTER)
            running[-1].send_signal(signal.SIGTERM)
        codes, printed = end(running)
        if codes != [0 if last else 75] * hosts:
            return Outcome(f"moved to {hosts} hosts with {devices} devices", False, 0, f"exit {codes}: {printed}")
        moved_at.append(str(len(losses(moved))))
    expected, found = losses(plain), losses(moved)
    same_steps = [step for step, _ in found] == [step for step, _ in expected] == list(range(1, _STEPS + 1))
    error = max(abs(a - b) / b for (_, a), (_, b) in zip(found, expected, strict=True))
    seen = f"each step once: {same_steps}; largest relative difference from the losses on 8 devices: {error:.1e}"
    injected = f"8 devices, 2 hosts with 2, 1, 8; moved after steps {', '.join(moved_at[:-1])}"
    return Outcome(injected, same_steps and error <= 1e-5, 0, seen)


FAULTS = (Fault("another mesh, other hosts", _moves, in_test=False),)
