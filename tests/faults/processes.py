"""Starts pre-training of a tiny model in real processes, on one or several hosts, for faults that come from outside."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.cpu import cpu_flags

_ROOT = Path(__file__).resolve().parents[2]
STEPS = 400
SECONDS = 240  # limit for a process to end
_PRETRAIN = [
    "pretrain", "--config=configs/pretrain/tiny.py", "--config.tokenizer=chars", "--config.batch_size=8",
    "--config.sequence_length=16", "--config.model.embed_dim=32", "--config.model.num_layers=1",
    "--config.model.num_heads=2", "--config.model.num_kv_heads=2", "--config.model.mlp_dim=32",
    "--config.data.validation_split=tail", "--config.logging.every=1", f"--config.num_steps={STEPS}",
    "--config.checkpoint.every=1000", "--config.evaluation.every=1000",
]  # fmt: skip


def text_in(directory: Path) -> Path:
    """Writes the training text and returns its path."""
    text = directory / "text.txt"
    text.write_text("".join(f"line {i} of a text that is long enough\n" for i in range(400)))
    return text


def start(hosts: int, text: Path, workdir: Path, *flags: str, devices: int = 1) -> list[subprocess.Popen[str]]:
    """Starts or resumes the run in `workdir` on `hosts` processes with `devices` devices each."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    started = []
    for i in range(hosts):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(_ROOT),
            "XLA_FLAGS": cpu_flags(devices),
        }
        if hosts > 1:
            environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(hosts)}
            environment |= {"JAX_PROCESS_ID": str(i)}
        command = [sys.executable, "-m", "train", *_PRETRAIN, f"--config.data.path={text}", f"--workdir={workdir}"]
        started.append(
            subprocess.Popen(
                [*command, *flags], cwd=_ROOT, env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    return started


def end(processes: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    """Waits for the processes and returns their exit codes and the last line that each printed."""
    try:
        errors = [process.communicate(timeout=SECONDS)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], [(text.strip().splitlines() or [""])[-1] for text in errors]


def losses(workdir: Path) -> list[tuple[int, float]]:
    """Returns (step, loss) of every complete training record."""
    path, found = workdir / "metrics.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:  # being written
            continue
        if record["phase"] == "train":
            found.append((record["step"], record["loss"]))
    return found


def wait_for(workdir: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Returns when `count` steps are logged, or the process ended."""
    deadline = time.monotonic() + SECONDS
    while len(losses(workdir)) < count and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)


def wait_until_training(processes: list[subprocess.Popen[str]], workdir: Path, steps: int) -> None:
    """Returns when every process handles SIGTERM and this start has logged `steps` steps, or one process ended.

    Lines of an earlier start do not count: a process that has only just been started would pass for one that trains.
    """
    before, deadline = len(losses(workdir)), time.monotonic() + SECONDS
    while time.monotonic() < deadline and all(process.poll() is None for process in processes):
        ready = all(handles_sigterm(process.pid) for process in processes)
        if ready and len(losses(workdir)) >= before + steps:
            return
        time.sleep(0.02)


def handles_sigterm(pid: int) -> bool:
    """Returns whether a process has installed a handler for SIGTERM (Linux)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next((line for line in status.splitlines() if line.startswith("SigCgt:")), "SigCgt: 0")
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
