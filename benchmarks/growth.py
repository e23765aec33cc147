"""How each cost grows with its size: a batch, the start of a run, a save, a report, a prediction, a compilation.

python -m benchmarks.growth --directory=/tmp
python -m benchmarks.growth --only batch resume --output=growth.json

Each line is the cost at one size: CPU seconds, or of saves and restores seconds. After the last size comes the exponent
e of the fit cost = a * size^e over the larger half of the sizes, beside the largest that is right: 0 for a cost that
must not grow, 1 for one that is linear; noise adds up to 0.2.
--size=tiny measures every cost at its smallest sizes, to see that the benchmark works.
"""

import argparse
import dataclasses
import gc
import json
import math
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import default
from data.packing import PackedRows
from data.similar_texts import similar_texts
from data.store import open_store, shard_files, write_manifest
from model.config import model_config
from train.checkpoint.manager import open_manager, wait
from train.checkpoint.restore import restore_newest
from train.checkpoint.save import save
from train.distributed.mesh import make_mesh, single_device_mesh
from train.early_stopping import resume_selection
from train.evaluation.interval import bootstrap
from train.evaluation.label_errors import suspicious_labels
from train.planner.compiled import compile_step, without_cache
from train.planner.hlo import by_kind
from train.planner.topology import compiler_devices, parse_topology
from train.run import goodput
from train.run.history import open_writer, read_accounts
from train.run.results import training_summary
from train.settings import Settings, from_config
from train.step import TrainState, make_program, objective_of

ROWS, LENGTH = 64, 2048
TOKENS_PER_DOCUMENT, DOCUMENTS_PER_SHARD = 400, 1 << 18
Costs = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Growth:
    """A cost that grows.

    Attributes:
        title: what the size counts.
        sizes: the sizes of a full run, ascending.
        tiny: those of `--size=tiny`.
        measure: (size, empty directory) -> {name of a cost: value}; names end with their unit.
        expected: {name: the largest exponent that is right}; costs that are not listed are shown only.
    """

    title: str
    sizes: tuple[int, ...]
    tiny: tuple[int, ...]
    measure: Callable[[int, Path], Costs]
    expected: dict[str, float]


def timed(work: Callable[[], object]) -> float:
    """Returns the CPU seconds of a call, which another program on the machine changes less than its time."""
    gc.collect()
    start = time.process_time()
    work()
    return time.process_time() - start


def batch(documents: int, scratch: Path) -> Costs:
    """Opens a token store of so many documents and builds batches of random rows; its tokens are a sparse file."""
    counts = [min(DOCUMENTS_PER_SHARD, documents - at) for at in range(0, documents, DOCUMENTS_PER_SHARD)]
    (scratch / "train").mkdir()
    sums = {"tokens.bin": "0", "offsets.npy": "0"}
    shards = [{"documents": n, "tokens": n * TOKENS_PER_DOCUMENT, "sha256": sums} for n in counts]
    for number, count in enumerate(counts):
        tokens, offsets = (scratch / "train" / name for name in shard_files(number, len(counts)))
        with tokens.open("wb") as file:
            file.truncate(2 * count * TOKENS_PER_DOCUMENT)
        np.save(offsets, np.arange(count + 1, dtype=np.int64) * TOKENS_PER_DOCUMENT)
    whole = {"documents": documents, "tokens": documents * TOKENS_PER_DOCUMENT, "sha256": sums, "shards": shards}
    write_manifest(scratch, {"tokenizer_sha256": "0", "dtype": "uint16", "splits": {"train": whole}})
    opened: list[PackedRows] = []
    start = timed(lambda: opened.append(PackedRows(open_store(scratch, "train"), LENGTH)))
    rows = opened[0]
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, len(rows), ROWS) for _ in range(21)]
    first = timed(lambda: rows.rows(batches[0]))
    seconds = [timed(lambda indices=indices: rows.rows(indices)) for indices in batches[1:]]
    return {"open s": start, "first batch s": first, "batch s": statistics.median(seconds)}


def metrics(lines: int, scratch: Path) -> Costs:
    """Reads what a run that resumes and ends reads of a metrics.jsonl of so many lines."""
    parts = {"start": 1.0, "step": 2.0}
    with (scratch / "metrics.jsonl").open("w") as file:
        for step in range(1, lines + 1):
            kind = "eval" if step % 12 == 0 else goodput.PHASE if step % 25 == 0 else "train"
            record: dict[str, Any] = {"step": step, "phase": kind, "loss": 2.6329092979431152, "seconds": 0.1 * step}
            record |= {"parts": parts} if kind == goodput.PHASE else {"tokens_per_second": 1240.8781099141356}
            record |= {"learning_rate": 0.0008681979961693287, "timeline": [{"step": 0.4, "data": 0.01}]}
            file.write(json.dumps(record) + "\n")
    settings = _settings()

    def resume() -> None:
        goodput.spent_before(read_accounts(scratch), lines)
        resume_selection(settings.evaluation, scratch, lines)
        with open_writer(scratch, lines, settings, writing=True):
            pass

    return {"resume s": timed(resume), "end s": timed(lambda: training_summary(scratch))}


def checkpoints(count: int, scratch: Path) -> Costs:
    """Opens a run with so many checkpoints, restores the newest and saves the next one."""
    mesh, state = single_device_mesh(), _state(1_000)
    with open_manager(scratch, 1) as manager:
        save(manager, state, mesh)
    for step in range(2, count + 1):
        shutil.copytree(scratch / "checkpoints" / "1", scratch / "checkpoints" / str(step), copy_function=os.link)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    found: Costs = {}

    def resume() -> None:
        with open_manager(scratch, count + 10) as manager:
            found["open s"] = time.perf_counter() - start
            restored = restore_newest(manager, abstract, mesh)
            assert restored is not None and int(restored.step) == count
            found["restore s"] = time.perf_counter() - start - found["open s"]
            next_state = restored._replace(step=restored.step + 1, frozen={})

            begin = time.perf_counter()
            save(manager, next_state, mesh)
            wait(manager)
            found["save s"] = time.perf_counter() - begin

    start = time.perf_counter()
    resume()
    return found


def saving(parameters: int, scratch: Path) -> Costs:
    """Saves a state with so many parameters and two moments."""
    mesh, state = single_device_mesh(), _state(parameters)
    with open_manager(scratch, 1) as manager:
        # The first save compiles the checksums.
        save(manager, state, mesh)
        wait(manager)
        state = state._replace(step=state.step + 1)
        start = time.perf_counter()
        save(manager, state, mesh)
        stall = time.perf_counter() - start
        wait(manager)
        return {"stall s": stall, "save s": time.perf_counter() - start}


def report(rows: int, scratch: Path) -> Costs:
    """Computes what a report needs of so many rows: intervals, near-duplicates, suspicious labels."""
    rng = random.Random(0)
    vocabulary = [f"word{n}" for n in range(20_000)]
    texts = [rng.choices(vocabulary, k=20) for _ in range(rows)]
    joined = [" ".join(text) for text in texts]
    labels = [f"class {rng.randrange(8)}" for _ in range(rows)]
    correct = np.random.default_rng(0).random(rows) < 0.8
    return {
        "intervals s": timed(lambda: bootstrap(lambda index: correct[index].mean(), rows)),
        "near-duplicates s": timed(lambda: similar_texts(texts)),
        "suspicious labels s": timed(lambda: suspicious_labels(joined, labels, joined)),
    }


def predict(rows: int, scratch: Path) -> Costs:
    """Predicts so many rows with a small classifier, which is trained first, from file to file."""
    from train.prediction.files import FileOptions, predict_file
    from train.prediction.task_model import load

    model = load(_classifier())
    data = scratch / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": f"the cat sat on mat {n}"}) + "\n" for n in range(rows)))

    def run(name: str) -> None:
        predict_file(model, str(data), scratch / name, FileOptions(overwrite=True))

    # Once before, so that every shape is compiled.
    run("first.jsonl")
    return {"predict s": timed(lambda: run("second.jsonl"))}


def layers_scanned(layers: int, scratch: Path) -> Costs:
    """Compiles the train step of a model with so many layers, in a loop."""
    return _compiled(layers, scan=True)


def layers_unrolled(layers: int, scratch: Path) -> Costs:
    """Compiles the train step of a model with so many layers, each for itself."""
    return _compiled(layers, scan=False)


def collectives(chips: int, scratch: Path) -> Costs:
    """Compiles the train step for so many TPU v5p chips, which need not exist, sharded by FSDP over all of them."""
    devices, why = compiler_devices(parse_topology(f"v5p-{2 * chips}"))
    if not devices:
        sys.exit(why)
    settings = _settings(batch_size=chips, sequence_length=512, embed_dim=4096, layers=2, fsdp=chips)
    mesh = make_mesh(settings.mesh, devices)
    program = make_program(objective_of(settings, model_config(settings.model)), settings, mesh)
    found = compile_step(program, mesh)
    kinds = by_kind(found.collectives)
    return {
        "collectives": sum(kind["count"] for kind in kinds.values()),
        "bytes sent per chip": sum(kind["bytes"] for kind in kinds.values()),
        "compile s": found.seconds,
    }


def _compiled(layers: int, scan: bool) -> Costs:
    settings = _settings(layers=layers, scan=scan)
    mesh = single_device_mesh()
    with jax.set_mesh(mesh), without_cache():
        program = make_program(objective_of(settings, model_config(settings.model)), settings, mesh)
        return {"compile s": timed(lambda: program.step.lower(program.state, program.batch).compile())}


def _settings(
    batch_size: int = 2,
    sequence_length: int = 32,
    embed_dim: int = 32,
    layers: int = 1,
    fsdp: int = 1,
    scan: bool = True,
) -> Settings:
    config = default.get_config()
    config.batch_size, config.sequence_length, config.mesh.fsdp = batch_size, sequence_length, fsdp
    heads = max(embed_dim // 128, 1)
    config.model.update(embed_dim=embed_dim, num_layers=layers, num_heads=heads, num_kv_heads=heads, scan_layers=scan)
    config.model.update(mlp_dim=2 * embed_dim, vocab_size=8 * embed_dim, context_length=sequence_length)
    return from_config(config.to_dict())


def _state(parameters: int) -> TrainState:
    """Returns a state of ten arrays with so many parameters together, and two moments of each."""

    def arrays() -> dict[str, Any]:
        shape = (10, parameters // 10)
        return {"backbone": {f"w{n}": jnp.full(shape[1:], n, jnp.float32) for n in range(shape[0])}}

    return TrainState(jnp.asarray(1, jnp.int32), arrays(), {"mu": arrays(), "nu": arrays()}, {})


def _classifier() -> Path:
    """Returns a run that classifies short texts, trained once per process for a few steps."""
    from train.finetuning.run import finetune
    from train.pretraining import pretrain

    folder = Path(tempfile.gettempdir()) / f"rootstock-growth-{os.getpid()}"
    if (folder / "classifier" / "results.json").exists():
        return folder / "classifier"
    folder.mkdir()
    rows = [{"text": f"the cat {n} sat", "label": "odd" if n % 2 else "even"} for n in range(100)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "text.txt").write_text("\n\n".join(f"the cat sat on mat {n}" for n in range(200)))
    config = default.get_config()
    config.batch_size, config.sequence_length, config.num_steps, config.tokenizer = 8, 64, 2, "bytes"
    config.model.update(embed_dim=32, num_layers=1, num_heads=1, num_kv_heads=1, mlp_dim=32)
    config.optimizer.warmup_steps = 1
    config.data.path, config.data.validation_split = str(folder / "text.txt"), "tail"
    pretrain(config.to_dict(), folder / "foundation")
    config.update(model=default.model(), tokenizer=default.get_config().tokenizer)
    config.data.update(path=str(folder / "rows.jsonl"), validation_split="documents")
    config.task.update(baseline=False, alternatives=False, zero_shot_rows=0)
    finetune(config.to_dict(), folder / "foundation", folder / "classifier")
    return folder / "classifier"


GROWTHS = {
    "batch": Growth(
        "documents in the token store", tuple(10**n for n in range(4, 9)), (10**3, 10**4), batch,
        {"open s": 1, "batch s": 0},
    ),
    "metrics": Growth(
        "lines of metrics.jsonl", (10**3, 10**4, 10**5, 10**6), (10, 100), metrics, {"resume s": 1, "end s": 1},
    ),
    "checkpoints": Growth(
        "old checkpoints", (10, 100, 1000), (2, 4), checkpoints, {"open s": 1, "restore s": 0, "save s": 1},
    ),
    "save": Growth("parameters", (10**6, 10**7, 10**8), (10**3, 10**4), saving, {"stall s": 1, "save s": 1}),
    "report": Growth(
        "held-out rows", (10**3, 10**4, 10**5), (50, 100), report,
        {"intervals s": 1, "near-duplicates s": 1, "suspicious labels s": 1},
    ),
    "predict": Growth("rows", (10**3, 10**4, 10**5), (20, 40), predict, {"predict s": 1}),
    "compile-scan": Growth("layers, one compiled", (2, 8, 24, 96), (1, 2), layers_scanned, {"compile s": 0}),
    "compile-unrolled": Growth("layers, all compiled", (2, 8, 24), (1, 2), layers_unrolled, {"compile s": 1}),
    "collectives": Growth(
        "TPU v5p chips", (8, 64, 512, 4096), (8,), collectives,
        {"collectives": 0, "bytes sent per chip": 0, "compile s": 1},
    ),
}  # fmt: skip
# What noise adds to an exponent.
_TOLERANCE = 0.2


def exponent(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """Returns e of the least-squares fit cost = a * size^e over the larger half of the sizes (at least two)."""
    first = min(len(sizes) // 2, len(sizes) - 2)
    x, y = (np.log(np.maximum(values[first:], 1e-9)) for values in (sizes, costs))
    return float(np.polyfit(x, y, 1)[0])


def measure(growth: Growth, sizes: Sequence[int], directory: Path | None) -> dict[str, Any]:
    """Measures a cost at each size; prints and returns {"costs": {name: values}, "exponents": {name: e}}."""
    costs: dict[str, list[float]] = {}
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            for name, value in growth.measure(size, Path(scratch)).items():
                costs.setdefault(name, []).append(value)
        shown = ", ".join(f"{name.removesuffix(' s')} {_text(name, values[-1])}" for name, values in costs.items())
        print(f"  {size:>13,} {growth.title}: {shown}", flush=True)
    exponents = {}
    for name, values in costs.items():
        if len(sizes) > 1:
            exponents[name] = exponent(sizes, values)
            right = growth.expected.get(name)
            verdict = "" if right is None else f", expected at most {right}"
            if right is not None and exponents[name] > right + _TOLERANCE:
                verdict += "  <- grows faster"
            print(f"  exponent of {name.removesuffix(' s')}: {exponents[name]:.2f}{verdict}", flush=True)
    return {"sizes": list(sizes), "costs": costs, "exponents": exponents}


def _text(name: str, value: float) -> str:
    if not name.endswith(" s"):
        return f"{value:,.0f}"
    return f"{value:,.2f} s" if value >= 0.1 else f"{value * 1e3:,.2f} ms"


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(GROWTHS), help="measure only these")
    parser.add_argument("--size", choices=["tiny", "full"], default="full")
    parser.add_argument("--largest", type=float, default=math.inf, help="leave out larger sizes")
    parser.add_argument("--directory", type=Path, help="where files are written; default: a temporary directory")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    found = {}
    try:
        for name in arguments.only or GROWTHS:
            growth = GROWTHS[name]
            print(name, flush=True)
            sizes = growth.tiny if arguments.size == "tiny" else growth.sizes
            found[name] = measure(growth, [n for n in sizes if n <= arguments.largest], arguments.directory)
            if arguments.output:
                arguments.output.write_text(json.dumps(found, indent=1) + "\n")
    finally:
        shutil.rmtree(Path(tempfile.gettempdir()) / f"rootstock-growth-{os.getpid()}", ignore_errors=True)


if __name__ == "__main__":
    main()
