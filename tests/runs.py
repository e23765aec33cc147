"""Shared by many tests: text, labeled rows, one small foundation model per session, commands in this process."""

import contextlib
import fcntl
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import jax
import pytest

from configs.pretrain import tiny
from tests.cpu import cpu_flags
from train import cli
from train.pretraining import pretrain

ROOT = Path(__file__).resolve().parents[1]
WORDS = "the cat sat on a mat and saw dog run far away home again".split()
STEPS = 40  # of the foundation model


def process_environment(devices: int = 1) -> dict[str, str]:
    """Returns the environment of a command that runs in a process of its own, with this many CPU devices."""
    return os.environ | {"XLA_FLAGS": cpu_flags(devices), "PYTHONPATH": str(ROOT)}


def run_process(*arguments: object, devices: int = 1) -> subprocess.CompletedProcess[str]:
    """Runs `rootstock ARGUMENTS` in a process of its own."""
    command = [sys.executable, "-m", "train", *map(str, arguments)]
    environment = process_environment(devices)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


_all_devices = jax.devices


@contextlib.contextmanager
def visible_devices(count: int) -> Iterator[None]:
    """A context in which this machine seems to have only `count` of the eight devices."""
    visible = _all_devices()[:count]
    with (
        mock.patch.object(jax, "devices", lambda *_: visible),
        mock.patch.object(jax, "local_devices", lambda *_: visible),
        mock.patch.object(jax, "device_count", lambda *_: count),
    ):
        yield


def rootstock(*arguments: object, devices: int = 1, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs `rootstock ARGUMENTS` in this process, which saves the imports of a new one.

    Args:
        arguments: the command and its flags.
        devices: run as if this machine had only this many of the eight devices.
        check: require success.
    """

    def end(message: str, code: int) -> None:
        print(f"rootstock: error: {message}", file=sys.stderr)
        raise SystemExit(code)

    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(visible_devices(devices))
        stack.enter_context(mock.patch.object(cli, "end", end))
        # JAX cannot look for a cluster once its devices are in use.
        stack.enter_context(mock.patch.dict(os.environ, JAX_NUM_PROCESSES="1"))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
    assert not check or code == 0, err.getvalue()
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def error_lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Returns the error messages that a command printed."""
    return [line for line in done.stderr.splitlines() if line.startswith("rootstock: error:")]


def records(workdir: Path) -> list[dict]:
    """Returns the lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def last_loss(workdir: Path) -> float:
    """Returns the loss of a run's last evaluation."""
    return [r["loss"] for r in records(workdir) if r["phase"] == "eval"][-1]


def write_text(path: Path, lines: int, words: list[str] = WORDS) -> Path:
    """Writes sentences of eight random words."""
    rng = random.Random(0)
    path.write_text("\n".join(" ".join(rng.choices(words, k=8)) + "." for _ in range(lines)))
    return path


def write_rows(path: Path, count: int = 200) -> Path:
    """Writes labeled rows of two classes, "odd" and "even", which use different words."""
    rng = random.Random(1)
    with path.open("w") as file:
        for i in range(count):
            text = " ".join(rng.choices(WORDS[:7] if i % 2 else WORDS[7:], k=5))
            file.write(json.dumps({"text": text, "label": "odd" if i % 2 else "even"}) + "\n")
    return path


def _foundation_config(text: Path) -> dict:
    config = tiny.get_config()
    config.tokenizer = "bytes"
    config.data.path, config.data.validation_split = str(text), "tail"
    config.batch_size, config.sequence_length, config.num_steps = 8, 64, STEPS
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 2, 2, 2
    config.model.update({"embed_dim": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "mlp_dim": 64})
    config.optimizer.warmup_steps, config.logging.every = 4, 5
    config.checkpoint.every, config.evaluation.every = 10, 20
    return config.to_dict()


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """The text that the foundation model is trained on, in a directory that all pytest workers share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "foundation"
    folder.mkdir(exist_ok=True)
    with (folder / "text.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = folder / "text.txt"
        # Only once: a new time of the file would be recorded in the store of the shared run, which must not change.
        return path if path.exists() else write_text(path, 600)


@pytest.fixture(scope="session")
def foundation(text) -> Path:
    """A run of `STEPS` pre-training steps, which the first worker that needs it trains. Change only a copy of it."""
    workdir = text.parent / "run"
    with (text.parent / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (workdir / "results.json").exists():
            with visible_devices(8):
                pretrain(_foundation_config(text), workdir)
    return workdir


@pytest.fixture(scope="module")
def one_device() -> Iterator[None]:
    """One visible device for the tests of a module, whose programs compile several times faster than for eight."""
    with visible_devices(1):
        yield
