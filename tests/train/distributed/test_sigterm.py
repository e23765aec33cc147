"""SIGTERM while a command starts: exit code 75 and one line, whatever the process is doing."""

import os
import pkgutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

from tests.faults.processes import handles_sigterm, start, text_in
from train import commands
from train.distributed import sigterm

ROOT = Path(__file__).resolve().parents[3]
SECONDS = 120
# Runs for minutes in C with the GIL released, as XLA does while it compiles; a signal cannot interrupt it.
IN_C = """
import hashlib, sys
from train.distributed.sigterm import exit_on_sigterm
exit_on_sigterm(["pretrain"])
print("ready", flush=True)
hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


def test_preemptible_commands_match_the_command_modules():
    names = [module.name for module in pkgutil.iter_modules(commands.__path__)]
    preemptible = {name for name in names if getattr(import_module(f"train.commands.{name}"), "PREEMPTIBLE", False)}
    assert {name.replace("_", "-") for name in preemptible} == set(sigterm.PREEMPTIBLE_COMMANDS)


def test_sigterm_during_a_long_c_call_ends_the_process_at_once():
    process = subprocess.Popen([sys.executable, "-c", IN_C], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=SECONDS)
    assert (process.returncode, error.decode()) == (75, f"rootstock: error: {sigterm.MESSAGE}\n")


def importing(process, workdir):
    return handles_sigterm(process.pid)


def importing_jax(process, workdir):
    return "jaxlib" in Path(f"/proc/{process.pid}/maps").read_text()


def preparing(process, workdir):
    return workdir.is_dir()


def compiling(process, workdir):
    """The first checkpoint directory is made just before the initialization and the step are compiled."""
    return (workdir / "checkpoints").is_dir()


@pytest.mark.parametrize(
    "moment",
    [
        importing,
        pytest.param(importing_jax, marks=pytest.mark.slow),
        pytest.param(preparing, marks=pytest.mark.slow),
        compiling,
    ],
)
def test_sigterm_at_any_moment_of_a_start_exits_with_75_and_one_line(moment, tmp_path):
    workdir = tmp_path / "run"
    (process,) = start(1, text_in(tmp_path), workdir, "--config.num_steps=100000")
    deadline = time.monotonic() + SECONDS
    while not moment(process, workdir) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGTERM)
    _, error = process.communicate(timeout=SECONDS)
    errors = [line for line in error.splitlines() if line.startswith("rootstock: error: ")]
    assert process.returncode == 75 and len(errors) == 1 and "received SIGTERM" in errors[0], error
    assert "Traceback" not in error
