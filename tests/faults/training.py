"""Faults in the loop itself: losses, gradients, the clock, a suspended process, a slow disk, a changed config."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np

from configs import default
from configs.errors import UserError
from data.tokenizer import Tokenizer
from data.tokenizer_training import train_tokenizer
from tests.conftest import tiny_model
from tests.faults.contract import Fault, Outcome
from tests.faults.tiny_run import STEPS, corrupted, nan, same, settings_of, spike, steps_over, train
from train.run.history import read_records
from train.run.record import RunRecord
from train.run.record import start as start_run
from train.run.rollback import skipped_batches

_ROOT = Path(__file__).resolve().parents[2]
_CLOCK_STEP = 100.0  # seconds; Orbax aborts a save that takes 300 seconds of wall-clock time


def _skips(corrupt: Callable[[np.ndarray], None], **changes: object) -> Callable[[Path, bool], Outcome]:
    """Returns a fault that corrupts two separate batches, whose steps must be skipped."""

    def inject(directory: Path, short: bool) -> Outcome:
        settings, bad = settings_of(**changes), (3, 7)
        ended = train(directory, settings, corrupted(settings, bad, corrupt))
        found = [r for r in read_records(directory) if r["phase"] == "skipped"]
        kept = same(ended, steps_over(settings, range(STEPS), skipped=bad))
        named = [(r["step"], r["batch"], len(r["rows"])) for r in found] == [(t + 1, t, 8) for t in bad]
        seen = f"skipped {[(r['step'], r['loss'], r['grad_norm']) for r in found]}; bitwise as without them: {kept}"
        return Outcome(f"2 of {STEPS} batches corrupted", kept and named, 0, seen)

    return inject


def _rolls_back(directory: Path, short: bool) -> Outcome:
    bad, changes = (5, 6, 7), {"faults.max_consecutive_skips": 3}
    settings = settings_of(**changes)
    rows = corrupted(settings, bad, nan)
    try:
        train(directory, settings, rows)
        stopped = "no error"
    except UserError as error:
        stopped = str(error)
    settings = settings_of(**changes, **{"faults.on_divergence": "roll_back"})
    calls = []

    def killed(params: object) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return {"loss": 1.0}

    try:
        train(directory, settings, rows, killed)
    except KeyboardInterrupt:
        ended = train(directory, settings, rows)
    kept = same(ended, steps_over(settings, [*range(4), *range(8, STEPS + 4)]))
    survived = kept and stopped.startswith("3 consecutive steps") and skipped_batches(directory) == ((4, 7),)
    seen = f"stop: {stopped[:60]}; roll_back, killed: batches {skipped_batches(directory)} passed over, bitwise: {kept}"
    return Outcome("3 consecutive batches corrupted, then a kill", survived, 8, seen)


def _clock(directory: Path, short: bool) -> Outcome:
    real, calls = time.time, []

    def jumping() -> float:
        calls.append(1)
        return real() + _CLOCK_STEP * (-1) ** len(calls)

    expected = train(directory / "plain", settings_of())
    with mock.patch("time.time", jumping):
        ended = train(directory / "jumping", settings_of())
    return _undisturbed(
        f"clock set forward or back by {2 * _CLOCK_STEP:.0f} s {len(calls)} times",
        directory / "jumping",
        ended,
        expected,
    )


def _slow(directory: Path, short: bool) -> Outcome:
    def wait(weights_T: np.ndarray) -> None:
        time.sleep(0.02)

    settings = settings_of()
    expected = train(directory / "plain", settings)
    real_fsync = os.fsync

    def fsync(file: int) -> None:
        time.sleep(0.05)
        real_fsync(file)

    with mock.patch("os.fsync", fsync):
        ended = train(directory / "slow", settings, corrupted(settings, range(STEPS), wait))
    waited = [r for r in read_records(directory / "slow") if r["phase"] == "goodput"][-1]["parts"]["data"]
    outcome = _undisturbed(f"{8 * STEPS * 0.02:.1f} s of slow reads", directory / "slow", ended, expected)
    return dataclasses.replace(
        outcome, survived=outcome.survived and waited > 0.5, seen=f"{waited:.1f} s waiting for data"
    )


def _stopped(directory: Path, short: bool) -> Outcome:
    """Suspends a child process repeatedly; suspending this process would return control to the terminal's shell."""
    expected = train(directory / "plain", settings_of())
    workdir = directory / "stopped"
    process = subprocess.Popen([sys.executable, "-m", "tests.faults.training", str(workdir)], cwd=_ROOT)
    stops = 0
    while process.poll() is None:
        time.sleep(0.05)
        # Only once it trains: the loop is to be disturbed, not the start of Python.
        if read_records(workdir):
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.1)
            process.send_signal(signal.SIGCONT)
            stops += 1
    ended = list(np.load(workdir / "ended.npz").values())
    return _undisturbed(f"{stops} SIGSTOP and SIGCONT", workdir, ended, expected)


def _undisturbed(injected: str, workdir: Path, ended: list[np.ndarray], expected: list[np.ndarray]) -> Outcome:
    """Returns the outcome of a run that must equal an undisturbed one, with each step logged once."""
    records = read_records(workdir)
    steps = [r["step"] for r in records if r["phase"] == "train"]
    kept = same(ended, expected) and steps == list(range(1, STEPS + 1))
    seconds = all(r["seconds"] >= 0 for r in records) and all(
        value >= 0 for r in records if r["phase"] == "goodput" for value in r["parts"].values()
    )
    return Outcome(injected, kept and seconds, 0, f"each step once, bitwise equal parameters: {kept}")


def _config(directory: Path, short: bool) -> Outcome:
    text = "the cat sat on the mat"
    tokenizer: Tokenizer = train_tokenizer("chars", [text])
    config = default.get_config()
    record = RunRecord("pretrain", tiny_model(), config.to_dict(), {}, "fingerprint", [])
    start_run(directory, record, tokenizer)
    before = (directory / "run.json").read_text()
    config.checkpoint.every, config.faults.on_divergence, config.mesh.fsdp = 7, "roll_back", 2
    start_run(directory, dataclasses.replace(record, config=config.to_dict()), tokenizer)
    config.batch_size, config.optimizer.learning_rate = 64, 0.5
    other = dataclasses.replace(record, config=config.to_dict(), model=tiny_model(num_layers=3))
    try:
        start_run(directory, other, train_tokenizer("chars", [text + "!"]))
        return Outcome("4 changes", False, 0, "no error")
    except UserError as error:
        message = str(error)
    wanted = ("batch_size: 32 -> 64", "learning_rate: 0.001 -> 0.5", "num_layers", "the tokenizer", "--help marks")
    survived = all(part in message for part in wanted) and (directory / "run.json").read_text() == before
    return Outcome("model, tokenizer, batch size and optimizer changed", survived, 0, message)


FAULTS = (
    Fault("NaN loss", _skips(nan)),
    Fault("gradient spike", _skips(spike, **{"faults.max_grad_norm": 30.0})),
    Fault("roll back", _rolls_back),
    Fault("clock changed", _clock),
    Fault("slow disk", _slow),
    Fault("SIGSTOP/SIGCONT", _stopped),
    Fault("config changed", _config),
)


if __name__ == "__main__":
    where = Path(sys.argv[1])
    leaves = train(where, settings_of())
    np.savez(where / "ended.npz", *leaves)
