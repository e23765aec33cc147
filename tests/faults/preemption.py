"""The machine is taken away: SIGTERM to a run of its own process, and to one of two hosts."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.contract import Fault, Outcome

_ROOT = Path(__file__).resolve().parents[2]
_STEPS, _AFTER, _SECONDS = 400, 20, 120
_PRETRAIN = [
    "pretrain", "--config=configs/pretrain/tiny.py", "--config.tokenizer=chars", "--config.batch_size=4",
    "--config.sequence_length=16", "--config.model.embed_dim=32", "--config.model.num_layers=1",
    "--config.model.num_heads=2", "--config.model.num_kv_heads=2", "--config.model.mlp_dim=32",
    "--config.data.validation_split=tail", "--config.logging.every=1", f"--config.num_steps={_STEPS}",
    "--config.checkpoint.every=1000", "--config.evaluation.every=1000",
]  # fmt: skip


def _start(hosts: int, text: Path, workdir: Path) -> list[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    started = []
    for i in range(hosts):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(_ROOT),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        }
        if hosts > 1:
            environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(hosts)}
            environment |= {"JAX_PROCESS_ID": str(i)}
        command = [sys.executable, "-m", "train.cli", *_PRETRAIN, f"--config.data.path={text}", f"--workdir={workdir}"]
        started.append(
            subprocess.Popen(
                command, cwd=_ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        )
    return started


def _end(processes: list[subprocess.Popen[str]]) -> tuple[list[int], str]:
    """Returns the exit codes, and what process 0 said last."""
    try:
        said = [process.communicate(timeout=_SECONDS)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], (said[0].strip().splitlines() or [""])[-1]


def _losses(workdir: Path) -> list[tuple[int, float]]:
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


def _sigterm(hosts: int) -> Callable[[Path, bool], Outcome]:
    """A fault that sends SIGTERM to the last host amid training."""

    def inject(directory: Path, short: bool) -> Outcome:
        text = directory / "text.txt"
        text.write_text("".join(f"line {i} of a text that is long enough\n" for i in range(400)))
        plain, told = directory / "plain", directory / "told"
        _end(_start(hosts, text, plain))
        running = _start(hosts, text, told)
        deadline = time.monotonic() + _SECONDS
        while len(_losses(told)) < _AFTER and time.monotonic() < deadline and running[0].poll() is None:
            time.sleep(0.02)
        running[-1].send_signal(signal.SIGTERM)
        codes, said = _end(running)
        saved = sorted(int(path.name) for path in (told / "checkpoints").glob("[0-9]*"))
        reached = _losses(told)[-1][0]
        again, _ = _end(_start(hosts, text, told))
        same = _losses(told) == _losses(plain) and len(_losses(told)) == _STEPS
        survived = codes == [75] * hosts and saved == [reached] and again == [0] * hosts and same
        seen = f"exit {codes}, saved step {saved} of {reached}, the rest bitwise as without: {same}; {said}"
        return Outcome(f"SIGTERM to host {hosts - 1} of {hosts} after step {_AFTER}", survived, 0, seen)

    return inject


FAULTS = (
    Fault("SIGTERM", _sigterm(1)),
    Fault("SIGTERM on one of two hosts", _sigterm(2), in_test=False),
)
