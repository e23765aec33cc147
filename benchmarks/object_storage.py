"""Measures runs and token stores in a bucket at emulators on this machine: requests, stalls, rows per second.

python -m benchmarks.object_storage --directory=runs/object_storage

The emulators answer from memory without a network, so seconds are those of the clients; requests are exact.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np

from configs import default
from data.loader import BatchFunction, train_batches
from data.packing import PackedRows
from data.storage.files import copy_tree
from data.storage.paths import at
from data.store import SPLITS, open_store, store_from_documents, write_manifest
from data.store_writer import split_record, write_shard
from model.config import model_config
from model.heads import language_model, parameter_count
from tests.buckets import emulator_behind_proxy, emulators
from train.distributed.mesh import single_device_mesh
from train.job import Job
from train.loop import fit
from train.run.history import read_records
from train.run.lock import claim
from train.settings import Settings, from_config

_BATCH, _LENGTH = 64, 2048
_SAVES = 5


def _settings(steps: int, every: int) -> Settings:
    config = default.get_config()
    config.batch_size, config.sequence_length, config.num_steps = 8, 128, steps
    config.optimizer.warmup_steps, config.evaluation.every = 2, 10**9
    config.checkpoint.every, config.checkpoint.keep = every, 2
    config.logging.every = 1
    return from_config(config.to_dict())


def _train(workdir: Path, settings: Settings) -> tuple[int, float, float]:
    """Returns (parameters, seconds per step, seconds that the loop waited in all saves but the last)."""
    model = model_config(default.model().to_dict() | {"vocab_size": 8192, "context_length": 128})
    rng = np.random.default_rng(0)
    rows = PackedRows(store_from_documents([rng.integers(3, 8000, 5000).tolist() for _ in range(200)]), 128)
    objective = language_model(model)
    job = Job("run", objective, rows, lambda params: {"loss": 0.0}, None, (), 1.0)
    mesh = single_device_mesh()
    with claim(workdir), jax.set_mesh(mesh):
        fit(job, settings, mesh, workdir)
    records = read_records(workdir)
    stamps = [r["seconds"] for r in records if r["phase"] == "train"]
    parts = [r["parts"]["checkpoint"] for r in records if r["phase"] == "goodput"]
    count = parameter_count(jax.eval_shape(objective.init, jax.random.key(0)))
    # The last save ends the run, which waits for it; that wait is not a stall.
    return count, (stamps[-1] - stamps[1] - (parts[-2] - parts[0])) / (len(stamps) - 2), parts[-2] - parts[0]


def _stall(scheme: str, directory: Path) -> None:
    """Prints the seconds that the loop waits for a save, on the disk and in a bucket."""
    every = 4
    settings = _settings(every * (_SAVES + 1), every)
    for place in (directory / "run", at(f"{scheme}://bucket/run")):
        parameters, step, stalled = _train(place, settings)
        stall = stalled / _SAVES
        print(
            f"{place}: {parameters:,} parameters, {step:.2f} s per step: the loop waits {stall:.3f} s for a save, "
            f"{stall / 60:.2%} at one save per minute",
            flush=True,
        )


def _requests(scheme: str, source: Path) -> None:
    """Prints the requests per save and per 1,000 rows."""
    with emulator_behind_proxy(scheme) as (environment, seen):
        os.environ.update(environment)
        every, counts = 4, []
        for saves in (2, 4):
            before = seen.counts.copy()
            _train(at(f"{scheme}://bucket/run{saves}"), _settings(every * saves, every))
            counts.append(seen.counts - before)
        more = counts[1] - counts[0]
        _print(f"{scheme}: one save of a run that keeps two", more, 2)
        _print(f"{scheme}: start, end and two saves of a run", counts[0], 1)
        store = at(f"{scheme}://bucket/store")
        copy_tree(source, store, last="manifest.json")
        before = seen.counts.copy()
        rows = PackedRows(open_store(store, "train"), _LENGTH)
        len(rows)
        _print(f"{scheme}: opening a token store", seen.counts - before, 1)
        before = seen.counts.copy()
        batches = -(-1000 // _BATCH)
        for _ in train_batches(BatchFunction(rows, _BATCH, 0), 0, batches, 0, 2):
            pass
        _print(f"{scheme}: {batches * _BATCH} rows in batches of {_BATCH}", seen.counts - before, 1)


def _print(what: str, counts: Counter[str], divisor: int) -> None:
    shown = ", ".join(f"{number / divisor:g} {method}" for method, number in sorted(counts.items()))
    print(f"{what}: {counts.total() / divisor:g} requests ({shown})", flush=True)


def _rows(scheme: str, source: Path, batches: int) -> None:
    """Prints the rows per second that the loader yields, from the disk and in place."""
    store = at(f"{scheme}://bucket/store")
    copy_tree(source, store, last="manifest.json")
    for place in (source, store):
        rows = PackedRows(open_store(place, "train"), _LENGTH)
        for prefetch in (2, 8):
            function = BatchFunction(rows, _BATCH, 0)
            iterator = train_batches(function, 0, batches + 2, 0, prefetch)
            next(iterator)
            began = time.perf_counter()
            count = sum(len(batch["tokens"]) for batch in iterator)
            rate = count / (time.perf_counter() - began)
            print(
                f"{place}: prefetch {prefetch}: {rate:,.0f} rows/s of {_LENGTH:,} tokens, {rate * _LENGTH / 1e6:.1f} M "
                "tokens/s",
                flush=True,
            )


def _make_store(directory: Path, megabytes: int) -> None:
    """Writes a token store of random documents of 1,000 tokens, 2 bytes each."""
    rng = np.random.default_rng(0)
    documents = ([1, *rng.integers(3, 8000, 998).tolist(), 2] for _ in range(megabytes * 500))
    shard = write_shard(directory / SPLITS[0], (0, 1), documents, "uint16")
    splits = {SPLITS[0]: split_record(directory / SPLITS[0], [shard])}
    write_manifest(directory, {"tokenizer_sha256": "", "vocab_size": 8192, "dtype": "uint16", "splits": splits})


def _measure(what: str, scheme: str, directory: Path, batches: int) -> None:
    if what == "requests":
        _requests(scheme, directory / "store")
        return
    with emulators(scheme) as environment:
        os.environ.update(environment)
        if what == "stall":
            _stall(scheme, directory / scheme)
        else:
            _rows(scheme, directory / "store", batches)


def main() -> None:
    """Runs each measurement in a process of its own, because the clients remember where their bucket is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", required=True, help="a directory for local files; its contents are deleted")
    parser.add_argument("--megabytes", type=int, default=16, help="size of the token store")
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--only", default="", help="JSON list of a measurement and a scheme; used internally")
    arguments = parser.parse_args()
    directory = Path(arguments.directory)
    if arguments.only:
        _measure(*json.loads(arguments.only), directory, arguments.batches)
        return
    shutil.rmtree(directory, ignore_errors=True)
    _make_store(directory / "store", arguments.megabytes)
    for what in ("stall", "requests", "rows"):
        for scheme in ("gs", "s3"):
            only = f"--only={json.dumps([what, scheme])}"
            subprocess.run([sys.executable, "-m", "benchmarks.object_storage", *sys.argv[1:], only], check=True)
    shutil.rmtree(directory)


if __name__ == "__main__":
    main()
