"""Saving and restoring a train state beside writing and reading as many bytes."""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from benchmarks.accelerator.sizes import config_of
from train.checkpoint.manager import open_manager, wait
from train.checkpoint.restore import restore_newest
from train.checkpoint.save import save
from train.distributed.mesh import make_mesh
from train.settings import from_config, planned_model
from train.step import make_program, objective_of

_BLOCK = 16 * 2**20


def measure(model: str) -> dict[str, Any]:
    """Returns the seconds of a save, of the loop's wait for it, and of a restore, beside the disk's own."""
    settings = from_config(config_of(model, jax.device_count(), 128).to_dict())
    mesh = make_mesh(settings.mesh)
    program = make_program(objective_of(settings, planned_model(settings)), settings, mesh)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.state))
    with tempfile.TemporaryDirectory() as folder, jax.set_mesh(mesh):
        written, read = _plain_file(Path(folder) / "plain", size)
        state = program.initialize(jax.random.key_data(jax.random.key(0)))
        jax.block_until_ready(state)
        with open_manager(Path(folder), keep=1) as manager:
            # The first save compiles the checksums.
            save(manager, state, mesh)
            wait(manager)
            state = state._replace(step=state.step + 1)
            start = time.perf_counter()
            save(manager, state, mesh)
            stalled = time.perf_counter() - start
            wait(manager)
            saved = time.perf_counter() - start
            start = time.perf_counter()
            jax.block_until_ready(restore_newest(manager, program.state, mesh))
            restored = time.perf_counter() - start
    return {
        "model": model,
        "bytes": size,
        "save_seconds": saved,
        "stall_seconds": stalled,
        "restore_seconds": restored,
        "plain_write_seconds": written,
        "plain_read_seconds": read,
    }


def _plain_file(path: Path, size: int) -> tuple[float, float]:
    """Returns the seconds to write and sync, and to read, a file of `size` bytes in blocks of 16 MB."""
    block = os.urandom(_BLOCK)
    start = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(size // _BLOCK + 1):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    written = time.perf_counter() - start
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.read(_BLOCK):
            pass
    read = time.perf_counter() - start
    path.unlink()
    return written, read
