"""A step of a run once more, bit for bit, and the documents that its loss came from: the answer to every loss spike.

Batch t is a function of (seed, t) alone, so the step is done again from the checkpoint before it. The run is only read,
and may be training meanwhile.

  rootstock replay --workdir=runs/tiny --step=48
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from rich.markup import escape
from rich.table import Table

from configs.errors import UserError
from data.loader import BatchFunction, batch_number, train_batches
from data.packing import PackedRows
from data.store import is_store, open_store
from data.tokenizer import Tokenizer, load_tokenizer
from train import checkpoint
from train import run as runs
from train.distributed import is_first
from train.document_losses import Document, document_losses
from train.finetune import make_graft
from train.job import Job, first_state
from train.mesh import apply_xla_flags, local_places, make_mesh, put_batch
from train.metrics import read_records, results_console
from train.pretrain import job_of
from train.settings import Settings, from_config
from train.skipped import skipped_batches
from train.step import make_program
from train.tasks.contract import load

REQUIRED = ("workdir", "step")
MULTI_PROCESS = True
_SHOWN_CHARACTERS = 160


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("workdir", None, "Directory of the run.", flag_values=values)
    flags.DEFINE_integer("step", None, "Which step, counted from 1 as metrics.jsonl does.", flag_values=values)
    flags.DEFINE_integer("documents", 5, "Worst documents to show.", lower_bound=0, flag_values=values)
    flags.DEFINE_boolean("json", False, "Print JSON.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command; ends with 1 where the loss is not the logged one."""
    found = replay(Path(values.workdir), values.step)
    if is_first():
        if values.json:
            shown = found | {"documents": [d._asdict() for d in found["documents"][: values.documents]]}
            print(json.dumps(shown, ensure_ascii=False, indent=1))
        else:
            _show(found, values.documents)
    if found["equal"] is False:
        raise UserError(
            f"{values.workdir}: step {values.step} has the loss {found['loss']!r}, {found['logged_loss']!r} is logged; "
            "equal bits need the machine, the JAX and the config.mesh of the run"
        )


def replay(workdir: Path, step: int) -> dict[str, Any]:
    """Returns what a step was and is: its numbers, its loss, the logged one, and its documents, the worst first.

    `equal` is None where the run logged no loss of that step.

    Raises:
        UserError: no run, no such step, or what it was made from is gone or changed.
    """
    record = runs.read_record(workdir)
    settings = from_config(record.config)
    records = read_records(workdir)
    done = max((r["step"] for r in records), default=0)
    if not 1 <= step <= done:
        raise UserError(f"--step={step}; legal: 1 to {done}, the steps that {workdir / 'metrics.jsonl'} tells of")
    apply_xla_flags(settings)
    mesh = make_mesh(settings.mesh)
    with jax.set_mesh(mesh):
        job, tokenizer, by_token = _job(workdir, record, settings, mesh)
        program = make_program(job.objective, settings, mesh)
        state = first_state(job, settings, program, checkpoint.restore_before(workdir, step - 1, program.state, mesh))
        start = int(state.step)
        skipped = skipped_batches(workdir)
        function = BatchFunction(job.rows, settings.batch_size, settings.seed, None, skipped)
        own = dataclasses.replace(function, places=local_places(mesh, settings.batch_size))
        for t, batch in enumerate(train_batches(own, start, step, 0, settings.data.read_ahead), start):
            if t == step - 1:
                # Before the step, which takes the state's memory.
                documents = document_losses(job.objective, state.all_params, function, t, tokenizer, mesh, by_token)
            state, metrics = program.step(state, put_batch(batch, mesh))
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    logged = next((r for r in reversed(records) if r["step"] == step and r["phase"] in ("train", "skipped")), None)
    logged_loss = logged and logged["loss"]
    return {
        "step": step,
        "batch": batch_number(step - 1, skipped),
        "rows": function.row_numbers(step - 1).tolist(),
        "from_step": start,
        "loss": values["loss"],
        "grad_norm": values["grad_norm"],
        "skipped": bool(values["skipped"]),
        "logged_loss": logged_loss,
        "equal": None if logged is None else logged_loss == (values["loss"] if np.isfinite(values["loss"]) else None),
        "documents": documents,
    }


def _job(workdir: Path, record: runs.RunRecord, settings: Settings, mesh: Mesh) -> tuple[Job, Tokenizer, bool]:
    """Returns (what the run trains, its tokenizer, whether each token of it has a loss of its own)."""
    parent = Path(record.lineage[-1]["directory"]) if record.lineage else None

    def evaluate(_: Any) -> dict[str, float]:  # noqa: ANN401 - parameters
        raise AssertionError("a replay evaluates nothing")

    if record.stage == "pretrain":
        path = Path(settings.data.path)
        store = open_store(path if is_store(path) else workdir / "store", "train")
        _check_data(workdir, record, store.fingerprint)
        model = runs.with_execution(record.model, settings.model)
        rows = PackedRows(store, settings.sequence_length)
        tokenizer = load_tokenizer(workdir / "tokenizer")
        return job_of(settings, model, rows, parent, mesh, evaluate), tokenizer, True
    assert parent is not None
    graft, _ = make_graft(record.config, settings, parent, workdir, mesh)
    _check_data(workdir, record, graft.record.data_fingerprint)
    graft = graft.referenced()
    task = load(record.task["name"])
    job = graft.job("replay", runs.objective_of(graft.record, graft.record.model), parent, evaluate)
    return job, graft.tokenizer, task.language and not task.reference


def _check_data(workdir: Path, record: runs.RunRecord, fingerprint: str) -> None:
    if record.data_fingerprint != fingerprint:
        raise UserError(
            f"the data of {workdir} changed ({record.data_fingerprint[:16]} then, {fingerprint[:16]} now): "
            "its batches cannot be made again"
        )


def _show(found: dict[str, Any], count: int) -> None:
    """Prints a step for people."""
    documents: list[Document] = found["documents"]
    verdict = {None: "not logged", True: "logged the same, bit for bit", False: f"logged {found['logged_loss']!r}"}
    skipped = "; the step was skipped" if found["skipped"] else ""
    out = results_console()
    out.print(
        f"step {found['step']}: loss {found['loss']!r}, {verdict[found['equal']]}; gradient norm "
        f"{found['grad_norm']:.4g}{skipped}\nbatch {found['batch']}, {len(documents)} documents; "
        f"done again from step {found['from_step']}",
        highlight=False,
        markup=False,
    )
    if not count:
        return
    table = Table(title="worst documents", show_lines=True)
    for name in ("row", "document", "loss", "targets", "text", "worst tokens"):
        table.add_column(name, justify="right" if name in ("row", "document", "loss", "targets") else "left")
    for d in documents[:count]:
        text = d.text if len(d.text) <= _SHOWN_CHARACTERS else f"{d.text[:_SHOWN_CHARACTERS]}…"
        worst = " ".join(f"{token!r} {loss:.2f}" for token, loss in d.worst)
        cells = (str(d.row), str(d.number), f"{d.loss:.4f}", str(d.targets), text, worst)
        table.add_row(*map(escape, cells))
    out.print(table)


if __name__ == "__main__":
    import sys

    from train.cli import main

    main(["replay", *sys.argv[1:]])
