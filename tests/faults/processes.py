"""Runs of real processes, one or several hosts of a tiny model, for what happens to them from outside."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
STEPS = 400
SECONDS = 120  # until what should have ended is taken for hanging
_PRETRAIN = [
    "pretrain", "--config=configs/pretrain/tiny.py", "--config.tokenizer=chars", "--config.batch_size=8",
    "--config.sequence_length=16", "--config.model.embed_dim=32", "--config.model.num_layers=1",
    "--config.model.num_heads=2", "--config.model.num_kv_heads=2", "--config.model.mlp_dim=32",
    "--config.data.validation_split=tail", "--config.logging.every=1", f"--config.num_steps={STEPS}",
    "--config.checkpoint.every=1000", "--config.evaluation.every=1000",
]  # fmt: skip


def text_in(directory: Path) -> Path:
    """Writes the text that the runs are trained on."""
    text = directory / "text.txt"
    text.write_text("".join(f"line {i} of a text that is long enough\n" for i in range(400)))
    return text


def start(hosts: int, text: Path, workdir: Path, *flags: str, devices: int = 1) -> list[subprocess.Popen[str]]:
    """Starts the run in `workdir`, new or to go on, in as many processes, each of so many devices."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    started = []
    for i in range(hosts):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(_ROOT),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
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
    """Returns the exit codes, and what each process said last."""
    try:
        said = [process.communicate(timeout=SECONDS)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], [(text.strip().splitlines() or [""])[-1] for text in said]


def losses(workdir: Path) -> list[tuple[int, float]]:
    """Returns (step, loss) of every line of training that is whole."""
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
    """Returns when so many steps were logged, or the process ended."""
    deadline = time.monotonic() + SECONDS
    while len(losses(workdir)) < count and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
