"""Whole runs by the command line: fine-tuning with its accuracy, two equal runs, and one that is killed and resumed."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
_WORDS = {
    "sea": "salt wave tide harbor sail anchor reef storm".split(),
    "farm": "barn field wheat plow cattle fence harvest seed".split(),
}


def finetune(scale: float) -> dict[str, Any]:
    """Returns the seconds and the results of `rootstock demo`: pre-training, fine-tuning and its comparison.

    Args:
        scale: fraction of the demo's steps; below 0.1, its corpus is replaced by a few made rows.
    """
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "demo"
        if scale < 0.1:
            _write_small_corpus(workdir / "corpus")
        start = time.perf_counter()
        done = _rootstock("demo", f"--workdir={workdir}", f"--scale={scale}").communicate()[1]
        seconds = time.perf_counter() - start
        if not (workdir / "classifier" / "results.json").exists():
            raise RuntimeError(f"rootstock demo failed: {done[-2000:]}")
        results = json.loads((workdir / "classifier" / "results.json").read_text())
        trained = [_metrics(workdir / run)[-1] for run in ("foundation", "classifier")]
    return {"seconds": seconds, "results": results, "last_metrics": trained}


def equal(steps: int, embed_dim: int) -> dict[str, Any]:
    """Returns how far the losses of equal runs are apart: twice the same, and once killed and resumed.

    On a GPU, both comparisons are made with XLA's defaults and with its deterministic operations.
    """
    found: dict[str, Any] = {"steps": steps}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text(_made_text(random.Random(0), 200_000 if steps > 50 else 20_000))
        for name, flags in [("defaults", "")] + [("deterministic operations", _DETERMINISTIC)] * (_platform() == "gpu"):
            arguments = _pretrain_flags(text, steps, embed_dim, flags)
            first, second, killed = (Path(folder) / f"{name}-{run}" for run in ("first", "second", "killed"))
            for workdir in (first, second):
                _finish(_rootstock("pretrain", f"--workdir={workdir}", *arguments))
            kill_step = _kill_after_save(killed, steps, arguments)
            _finish(_rootstock("pretrain", f"--workdir={killed}", *arguments))
            found[name] = {
                "twice": _difference(first, second),
                "killed_at": kill_step,
                "resumed": _difference(first, killed),
            }
    return found


def _platform() -> str:
    """Returns JAX's backend, asked in another process, so that this one does not take the device from the runs."""
    code = "import jax; print(jax.default_backend())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()


def _pretrain_flags(text: Path, steps: int, embed_dim: int, xla_flags: str) -> list[str]:
    fields = {
        "data.path": text,
        "data.validation_split": "tail",
        "tokenizer": "bytes",
        "num_steps": steps,
        "batch_size": 16,
        "sequence_length": 128,
        "model.embed_dim": embed_dim,
        "model.num_layers": 4,
        "model.mlp_dim": 2 * embed_dim,
        "checkpoint.every": steps // 3,
        "logging.every": 1,
        "evaluation.every": steps,
        "optimizer.warmup_steps": 2,
        "xla_flags": xla_flags,
    }
    return ["--config=configs/pretrain/tiny.py", *(f"--config.{name}={value}" for name, value in fields.items())]


def _kill_after_save(workdir: Path, steps: int, arguments: list[str]) -> int:
    """Kills a run (SIGKILL) once it has trained past its first checkpoint; returns the last step that it reported."""
    process = _rootstock("pretrain", f"--workdir={workdir}", *arguments)
    while process.poll() is None:
        saved = workdir / "checkpoints" / str(steps // 3)
        if saved.is_dir() and _metrics(workdir)[-1].get("step", 0) > steps // 3:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    process.communicate()
    return _metrics(workdir)[-1].get("step", 0)


def _difference(first: Path, second: Path) -> dict[str, Any]:
    """Returns the largest difference of two runs' losses, and the first step at which they differ."""
    ours, theirs = ({one["step"]: one["loss"] for one in _metrics(run) if "loss" in one} for run in (first, second))
    apart = {step: abs(ours[step] - theirs[step]) for step in ours if step in theirs}
    differing = [step for step, size in apart.items() if size]
    return {"steps": len(apart), "largest": max(apart.values()), "first_different": min(differing, default=None)}


def _metrics(workdir: Path) -> list[dict[str, Any]]:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    # The last line of a killed run can be cut off.
    return [json.loads(line) for line in lines if line.endswith("}")] or [{}]


def _rootstock(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "train", *map(str, arguments)]
    # Several processes share the device, one after the other.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen[str]) -> None:
    errors = process.communicate()[1]
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, process.args))} ended with {process.returncode}: {errors[-2000:]}")


def _made_text(chance: random.Random, words: int) -> str:
    vocabulary = [word for group in _WORDS.values() for word in group]
    return re.sub(r"((?:\S+ ){12})", r"\1\n", " ".join(chance.choices(vocabulary, k=words)))


def _write_small_corpus(folder: Path) -> None:
    folder.mkdir(parents=True)
    chance = random.Random(0)
    texts = [{"text": _made_text(chance, 60)} for _ in range(400)]
    labeled = [
        {"text": " ".join(chance.choices(words, k=12)), "label": label}
        for _ in range(48)
        for label, words in _WORDS.items()
    ]
    for name, rows in {"unlabeled": texts, "labeled_train": labeled[:64], "labeled_test": labeled[64:]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "summary.json").write_text("{}")
