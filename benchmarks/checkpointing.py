"""Measures the cost and speed of saving and restoring a run of 100 million parameters, relative to the disk itself.

python benchmarks/checkpointing.py --directory=runs/checkpointing --minutes=3
"""

import argparse
import mmap
import os
import shutil
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import numpy as np

from configs import default
from configs.models import architecture
from data.packing import PackedRows
from data.store import store_from_documents
from model.config import ModelConfig, model_config
from model.heads import language_model, parameter_count
from train.checkpoint.manager import open_manager
from train.checkpoint.restore import restore_before
from train.checkpoint.save import save
from train.distributed.mesh import single_device_mesh
from train.job import Job
from train.loop import fit
from train.run.history import read_records
from train.settings import Settings, from_config
from train.step import TrainState, make_program

_CHUNK = 1 << 24
_REST = 2.0  # seconds


def _model(layers: int) -> ModelConfig:
    section = default.model().to_dict() | architecture("smollm2_135m")
    return model_config(section | {"num_layers": layers, "vocab_size": 32_768, "context_length": 128})


def _settings(steps: int, minutes: float) -> Settings:
    config = default.get_config()
    config.batch_size, config.sequence_length, config.num_steps = 1, 128, steps
    config.optimizer.warmup_steps, config.evaluation.every = 2, 10**9
    config.checkpoint.every, config.checkpoint.minutes, config.checkpoint.keep = 0, minutes, 1
    config.logging.every = 1
    return from_config(config.to_dict())


def _seconds(model: ModelConfig, workdir: Path, steps: int, minutes: float) -> tuple[float, float, int]:
    """Returns (seconds of the steps after the first two, seconds of them spent waiting for a save, number of saves)."""
    rng = np.random.default_rng(0)
    rows = PackedRows(store_from_documents([rng.integers(3, 32_000, 5000).tolist() for _ in range(200)]), 128)
    job = Job("run", language_model(model), rows, lambda params: {"loss": 0.0}, None, (), 1.0)
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir(parents=True)
    mesh = single_device_mesh()
    with jax.set_mesh(mesh):
        fit(job, _settings(steps, minutes), mesh, workdir)
    records = read_records(workdir)
    stamps = {r["step"]: r["seconds"] for r in records if r["phase"] == "train"}
    # The last save ends the run, which waits for it; that wait does not count as a stall.
    parts = [r["parts"]["checkpoint"] for r in records if r["phase"] == "goodput"]
    return stamps[steps] - stamps[2], parts[-2] - parts[0], len(parts) - 2


def _stall(model: ModelConfig, workdir: Path, minutes: float) -> None:
    probe, _, _ = _seconds(model, workdir, 8, 0.0)
    steps = int(60 * minutes / (probe / 6)) + 2
    plain, _, _ = _seconds(model, workdir, steps, 0.0)
    saving, stalled, saves = _seconds(model, workdir, steps, 1.0)
    print(
        f"{steps} steps: {plain:.1f} s without a save, {saving:.1f} s with {saves} saves, one per minute: "
        f"{saving / plain - 1:+.1%}; the loop waited {stalled:.2f} s, {stalled / saving:.2%}",
        flush=True,
    )


def _timed(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def _write(path: Path, chunks: int, block: mmap.mmap, flags: int) -> None:
    """Writes and syncs a file; with O_DIRECT past the page cache, which needs aligned memory such as a mmap."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | flags)
    for _ in range(chunks):
        os.writev(file, [block])
    os.fsync(file)
    os.close(file)


def _read(path: Path, blocks: Iterable[mmap.mmap | memoryview]) -> None:
    """Reads a file past the page cache, one block after another."""
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    for block in blocks:
        os.readv(file, [block])
    os.close(file)


def _read_into_new(path: Path, chunks: int) -> None:
    """Reads a file into newly allocated memory, as restoring a state does."""
    with mmap.mmap(-1, chunks * _CHUNK) as memory, memoryview(memory) as view:
        _read(path, (view[at * _CHUNK : (at + 1) * _CHUNK] for at in range(chunks)))


def _forget(directory: Path) -> None:
    """Removes a directory's files from the page cache."""
    os.sync()
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _speeds(model: ModelConfig, workdir: Path, rounds: int) -> None:
    mesh = single_device_mesh()
    with jax.set_mesh(mesh):
        program = make_program(language_model(model), _settings(10, 0.0), mesh)
        state = program.initialize(jax.random.key_data(jax.random.key(0)))
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        chunks = round(size / _CHUNK)
        block = mmap.mmap(-1, _CHUNK)
        block.write(np.random.default_rng(0).bytes(_CHUNK))

        def save_state() -> None:
            with open_manager(workdir / "run", 1) as manager:
                save(manager, state, mesh)
            os.sync()

        def restore_state() -> TrainState:
            found = restore_before(workdir / "run", 10, program.state, mesh)
            assert found is not None
            return jax.block_until_ready(found)

        raw = workdir / "raw"
        writing = {
            "disk": lambda: _write(raw, chunks, block, os.O_DIRECT),
            "page cache": lambda: _write(workdir / "cached", chunks, block, 0),
            "save": save_state,
        }
        reading = {
            "disk": lambda: _read(raw, [block] * chunks),
            "new memory": lambda: _read_into_new(raw, chunks),
            "restore": restore_state,
        }
        for actions in (writing, reading):
            _report(_rounds(workdir, actions, rounds), size)


def _rounds(workdir: Path, actions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each action by round. The order rotates, and the disk rests before each action."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    order = deque(actions)
    for _ in range(rounds + 1):
        order.rotate()
        for name in order:
            if name == "save":
                shutil.rmtree(workdir / "run", ignore_errors=True)
                (workdir / "run").mkdir(parents=True)
            _forget(workdir)
            time.sleep(_REST)
            times[name].append(_timed(actions[name]))
    # The first round compiles the checksums.
    return {name: found[1:] for name, found in times.items()}


def _report(times: dict[str, list[float]], size: int) -> None:
    ours = list(times)[-1]
    shown = (f"{name} {size / 1e9 / statistics.median(found):.2f}" for name, found in times.items())
    print(f"{size / 1e9:.2f} GB, medians in GB/s: {', '.join(shown)}")
    for name in list(times)[:-1]:
        # A rented disk is shared and its speed varies, so ratios are taken within a round.
        ratios = sorted(raw / own for raw, own in zip(times[name], times[ours], strict=True))
        print(f"{ours} / {name}: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})", flush=True)


def main() -> None:
    """Prints the speed of saving and restoring, and the time that saving costs a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--directory", required=True, help="a directory on the disk to measure; its contents are deleted"
    )
    parser.add_argument(
        "--minutes", type=float, default=3.0, help="minutes to train without saves, and again with saves; 0: skip"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--layers", type=int, default=23)
    arguments = parser.parse_args()
    model = _model(arguments.layers)
    shapes = jax.eval_shape(language_model(model).init, jax.random.key(0))
    print(f"{parameter_count(shapes):,} parameters", flush=True)
    workdir = Path(arguments.directory)
    _speeds(model, workdir, arguments.rounds)
    if arguments.minutes:
        _stall(model, workdir, arguments.minutes)
    shutil.rmtree(workdir, ignore_errors=True)


if __name__ == "__main__":
    main()
