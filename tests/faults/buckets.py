"""Faults of runs in a bucket: kills in an upload, damaged objects, errors of the service, two runs, clocks that differ.

Each runs in a process of its own, because the clients of buckets remember where their bucket is.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from tests.faults.contract import Fault, Outcome

_ROOT = Path(__file__).resolve().parents[2]
_WORKDIR = "gs://bucket/run"
# Starts a run and kills it right after the save of a step was started.
_KILLED = """
import os, signal, sys
from data.storage.paths import at
from tests.faults import tiny_run
from train import loop
from train.checkpoint import save as saving
def save(manager, state, mesh):
    saving.save(manager, state, mesh)
    if int(state.step) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
loop.save = save
tiny_run.train(at(sys.argv[1]), tiny_run.settings_of())
"""


def _killed(directory: Path, short: bool) -> Outcome:
    from data.storage.paths import at
    from tests.faults.tiny_run import EVERY, STEPS, same, settings_of, train
    from train.checkpoint.manager import saved_steps
    from train.run.history import read_records

    expected, workdir = train(directory, settings_of()), at(_WORKDIR)
    kills = (STEPS - EVERY,) if short else (EVERY, EVERY, 2 * EVERY, 2 * EVERY, STEPS, STEPS)
    for step in kills:
        done = subprocess.run(
            [sys.executable, "-c", _KILLED, str(workdir), str(step)], check=False, capture_output=True
        )
        # The save of this step may have been committed before; then it is not saved again, and the run ends.
        assert done.returncode in (0, -9), done.stderr.decode()[-500:]
    half = [path.name for path in (workdir / "checkpoints").iterdir() if int(path.name) not in saved_steps(workdir)]
    ended = train(workdir, settings_of())
    steps = [record["step"] for record in read_records(workdir) if record["phase"] == "train"]
    survived = same(ended, expected) and steps == list(range(1, STEPS + 1)) and STEPS in saved_steps(workdir)
    seen = f"half-uploaded steps that were not taken for checkpoints: {', '.join(half) or 'none'}"
    return Outcome(f"{len(kills)} SIGKILLs in an upload", survived, EVERY * len(kills), f"{seen}; bitwise: {survived}")


def _damaged(change: Callable[[bytes], bytes]) -> Callable[[Path, bool], Outcome]:
    def inject(directory: Path, short: bool) -> Outcome:
        from data.storage.files import files_below
        from data.storage.paths import at
        from tests.faults.tiny_run import EVERY, STEPS, same, settings_of, train
        from train.console import console

        expected, workdir = train(directory, settings_of()), at(_WORKDIR)
        train(workdir, settings_of())
        objects = files_below(workdir / "checkpoints" / str(STEPS))
        largest = max(objects, key=lambda path: path.stat().st_size)
        largest.write_bytes(change(largest.read_bytes()))
        with console.capture() as output:
            ended = train(workdir, settings_of())
        printed = output.get()
        warned = f"checkpoint {STEPS} is damaged" in printed and f"resumed at step {STEPS - EVERY}" in printed
        moved = [path.name for path in (workdir / "damaged").iterdir()] if warned else []
        survived = warned and same(ended, expected) and len(moved) == 1
        return Outcome("the largest object of the newest of three", survived, EVERY, " ".join(printed.split())[:160])

    return inject


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def _errors(status: int, seconds: float) -> Callable[[Path, bool], Outcome]:
    """Returns a fault in which the service answers with errors for a while: the run waits and goes on."""

    def inject(directory: Path, short: bool) -> Outcome:
        from data.storage.paths import at
        from tests.faults.tiny_run import same, settings_of, train

        expected, refused = train(directory, settings_of()), []

        def evaluate(params: object) -> dict[str, float]:
            # The save of this step follows.
            if not refused:
                refused.append(_proxy.refused)
                _proxy.refuse(status, seconds)
            return {"loss": 1.0}

        ended = train(at(_WORKDIR), settings_of(), evaluate=evaluate)
        survived = same(ended, expected) and _proxy.refused > 0
        return Outcome(f"{seconds:g} s of {status}", survived, 0, f"{_proxy.refused} requests answered so")

    return inject


def _refused(status: int) -> Callable[[Path, bool], Outcome]:
    """Returns a fault after which the service refuses every request: one clear line, and the run resumes later."""

    def inject(directory: Path, short: bool) -> Outcome:
        from configs.errors import UserError
        from data.storage.errors import bucket_errors
        from data.storage.paths import at
        from tests.faults.tiny_run import EVERY, same, settings_of, train
        from train.checkpoint.manager import saved_steps

        expected, workdir, calls = train(directory, settings_of()), at(_WORKDIR), []

        def evaluate(params: object) -> dict[str, float]:
            calls.append(1)
            if len(calls) == 2:
                # The first save goes on in the background; on a busy machine it takes longer than four steps.
                while saved_steps(workdir) != [EVERY]:
                    time.sleep(0.1)
                _proxy.refuse(status, 1e6)
            return {"loss": 1.0}

        began = time.monotonic()
        try:
            with bucket_errors():
                train(workdir, settings_of(), evaluate=evaluate)
            line = "no error"
        except UserError as error:
            line = str(error)
        waited = time.monotonic() - began
        _proxy.until = 0.0
        kept = saved_steps(workdir)
        ended = train(workdir, settings_of())
        clear = "run the same command again to resume" in line and "\n" not in line
        survived = clear and kept == [EVERY] and same(ended, expected)
        return Outcome(f"{status} from step {2 * EVERY} on", survived, EVERY, f"after {waited:.0f} s: {line[:200]}")

    return inject


def _two_runs(directory: Path, short: bool) -> Outcome:
    from configs.errors import UserError
    from data.storage.paths import at
    from train.run.lock import claim

    with claim(at(_WORKDIR)):
        try:
            with claim(at(_WORKDIR)):
                return Outcome("a second run", False, 0, "no error")
        except UserError as error:
            return Outcome("a second run", "is in use by another run (host " in str(error), 0, str(error))


@contextlib.contextmanager
def _clock(seconds: float) -> Iterator[None]:
    now = time.time
    with mock.patch("time.time", lambda: now() + seconds):
        yield


def _skew(directory: Path, short: bool) -> Outcome:
    from configs.errors import UserError
    from data.storage.paths import at
    from tests.faults.tiny_run import same, settings_of, train
    from train.run.lock import claim

    expected, workdir, seen = train(directory, settings_of()), at(_WORKDIR), []
    with _clock(60.0), claim(workdir):
        ended = train(workdir, settings_of())
        for skew in (-60.0, 120.0):
            try:
                with _clock(skew), claim(workdir):
                    seen.append("no error")
            except UserError as error:
                seen.append(str(error))
    refused = all("is in use by another run" in line for line in seen)
    return Outcome("a minute to either side", refused and same(ended, expected), 0, seen[0])


_SCENARIOS = {
    "bucket: kill in an upload": _killed,
    "bucket: object truncated": _damaged(lambda content: content[: len(content) // 2]),
    "bucket: byte flipped": _damaged(_flipped),
    "bucket: 429 for some seconds": _errors(429, 4.0),
    "bucket: 503 for some seconds": _errors(503, 4.0),
    "bucket: 503 and no end": _refused(503),
    "bucket: token expired": _refused(401),
    "bucket: permission withdrawn": _refused(403),
    "bucket: two runs": _two_runs,
    "bucket: clocks that differ": _skew,
}


def _in_process(name: str) -> Callable[[Path, bool], Outcome]:
    def inject(directory: Path, short: bool) -> Outcome:
        command = [sys.executable, "-m", "tests.faults.buckets", name, str(directory), "short" if short else "long"]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(_ROOT)}
        done = subprocess.run(
            command, cwd=_ROOT, env=environment, capture_output=True, text=True, check=False, timeout=1200
        )
        if done.returncode:
            return Outcome("nothing", False, 0, done.stderr[-500:])
        return Outcome(**json.loads(done.stdout.splitlines()[-1]))

    return inject


# In the suite only what takes seconds: some of these wait for a client to give up.
FAULTS = tuple(Fault(name, _in_process(name), in_test="no end" not in name) for name in _SCENARIOS)

if __name__ == "__main__":
    from tests import conftest  # noqa: F401 - eight virtual devices
    from tests.buckets import emulator_behind_proxy

    with emulator_behind_proxy("gs") as (_environment, _proxy):
        os.environ.update(_environment)
        _outcome = _SCENARIOS[sys.argv[1]](Path(sys.argv[2]) / "local", sys.argv[3] == "short")
    print(json.dumps(_outcome.__dict__))
