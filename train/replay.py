"""A step of a run once more, bit for bit, and the documents that its loss came from: the answer to every loss spike.

Batch t is a function of (seed, t) alone, so the step is done again from the checkpoint before it. The run is only read,
and may be training meanwhile.

  rootstock replay --workdir=runs/tiny --step=48
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from configs.errors import UserError
from data.loader import BatchFunction, batch_number, train_batches
from data.packing import PackedRows
from data.store import is_store, open_store
from data.tokenizer import Tokenizer, load_tokenizer
from model.sharding import MESH_AXES
from train.checkpoint.manager import open_to_read, saved_steps
from train.checkpoint.restore import restore_before
from train.console import progress
from train.distributed.mesh import apply_xla_flags, check_batch, make_mesh, spread_mesh
from train.distributed.placement import local_places, put_batch
from train.distributed.processes import run_on_process_zero
from train.evaluation.document_losses import document_losses
from train.finetuning.comparison import finetuning_job, with_references
from train.finetuning.run import prepare_run
from train.job import Job, first_state
from train.pretraining import job_of
from train.run.history import read_records
from train.run.parameters import objective_of
from train.run.record import RunRecord, read_record, with_execution
from train.run.rollback import skipped_batches
from train.settings import MeshSettings, Settings, from_config
from train.step import make_program
from train.trees import boxed_params


def replay(workdir: Path, step: int, data: str = "") -> dict[str, Any]:
    """Returns what a step was and is: its numbers, its loss, the logged one, and its documents, the worst first.

    `equal` is None where the run logged no loss of that step, `saved_on` where no checkpoint tells which mesh did it.

    Args:
        workdir: of the run.
        step: counted from 1.
        data: instead of `config.data.path`.

    Raises:
        UserError: no run, no such step, or what it was made from is gone or changed.
    """
    record = read_record(workdir)
    settings = from_config(record.config)
    settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, path=data or settings.data.path))
    records = read_records(workdir)
    done = max((r["step"] for r in records), default=0)
    if not 1 <= step <= done:
        raise UserError(f"--step={step}; legal: 1 to {done}, the steps that {workdir / 'metrics.jsonl'} tells of")
    apply_xla_flags(settings)
    saved_on = _saved_on(workdir, step)
    mesh = _mesh(record, settings, saved_on)
    check_batch(settings, mesh)
    with contextlib.ExitStack() as stack, jax.set_mesh(mesh):
        job, tokenizer, by_token, source_of = _job(workdir, record, settings, mesh, step)
        program = make_program(job.objective, settings, mesh)
        state = first_state(job, settings, program, restore_before(workdir, step - 1, program.state, mesh))
        start = int(state.step)
        _check_one_version(record, start, step)
        skipped = skipped_batches(workdir)
        function = BatchFunction(job.rows, settings.batch_size, settings.seed, None, skipped)
        own = dataclasses.replace(function, places=local_places(mesh, settings.batch_size))
        batches = train_batches(own, start, step, 0, settings.data.prefetch)
        bar = stack.enter_context(progress(f"replay from step {start}", step - start))
        for t, batch in enumerate(batches, start):
            if t == step - 1:
                # Before the step, which takes the state's memory.
                at_once = settings.batch_size // settings.microbatches
                documents = document_losses(
                    job.objective, state.all_params, function, t, tokenizer, source_of, mesh, by_token, at_once
                )
            state, metrics = program.step(state, put_batch(batch, mesh))
            # Steps that are queued each hold a batch, and on CPU so many can wait for one another for ever.
            jax.block_until_ready(metrics)
            bar(t + 1 - start)
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
        "mesh": dict(mesh.shape),
        "saved_on": saved_on,
        "documents": documents,
    }


def _saved_on(workdir: Path, step: int) -> dict[str, int] | None:
    """Returns {axis: devices} of the mesh that saved the first sound checkpoint of at least `step` steps, or None."""
    later = run_on_process_zero(lambda: sorted(saved for saved in saved_steps(workdir) if saved >= step))
    if not later:
        return None
    with open_to_read(workdir) as manager:
        for saved in later:
            # Orbax raises a dozen types for a damaged file.
            with contextlib.suppress(Exception):
                sharding = jax.tree.leaves(manager.item_metadata(saved)["params"].tree)[0].sharding
                return {axis: int(size) for axis, size in zip(sharding.axis_names, sharding.shape, strict=True)}
    return None


def _mesh(record: RunRecord, settings: Settings, saved_on: dict[str, int] | None) -> Mesh:
    """Returns the mesh that did the step, or, on another number of devices, the config's or what the devices can be."""
    if saved_on is not None and math.prod(saved_on.values()) == jax.device_count() and set(saved_on) == set(MESH_AXES):
        return make_mesh(MeshSettings(**saved_on))
    try:
        return make_mesh(settings.mesh)
    except UserError:
        return spread_mesh(boxed_params(objective_of(record, record.model)))


def _elsewhere(found: dict[str, Any]) -> bool:
    """Returns whether a mesh of another size did the step."""
    return found["saved_on"] is not None and math.prod(found["saved_on"].values()) != math.prod(found["mesh"].values())


def _job(
    workdir: Path, record: RunRecord, settings: Settings, mesh: Mesh, step: int
) -> tuple[Job, Tokenizer, bool, Callable[[int], str]]:
    """Returns (what the run trains, its tokenizer, whether each token has a loss of its own, number -> its source)."""
    parent = Path(record.lineage[-1]["directory"]) if record.lineage else None

    def evaluate(_: Any) -> dict[str, float]:  # noqa: ANN401 - parameters
        raise AssertionError("a replay evaluates nothing")

    if record.stage == "pretrain":
        path = Path(settings.data.path)
        path = path if is_store(path) else workdir / "store"
        if not is_store(path):
            raise UserError(f"{settings.data.path}, the data of {workdir}, is no token store; legal: --data=STORE")
        store = open_store(path, "train")
        _check_data(workdir, record, store.fingerprint, step)
        model = with_execution(record.model, settings.model)
        rows = PackedRows(store, settings.sequence_length)
        tokenizer = load_tokenizer(workdir / "tokenizer")
        return (
            job_of(settings, model, rows, parent, mesh, evaluate),
            tokenizer,
            True,
            lambda n: f"document {n} of {path}/train",
        )
    assert parent is not None
    run, _ = prepare_run(record.config, settings, parent, workdir, mesh)
    _check_data(workdir, record, run.record.data_fingerprint, step)
    run = with_references(run)
    job = finetuning_job(run, "replay", objective_of(run.record, run.record.model), evaluate)
    task, examples = run.data.task, run.data.parts["train"].examples
    by_token = task.trains_lm_head and not task.needs_reference
    return job, run.data.tokenizer, by_token, lambda n: f"row {examples[n].row} of {settings.data.path}"


def _check_data(workdir: Path, record: RunRecord, fingerprint: str, step: int) -> None:
    """Raises UserError where the data are not those that the step read."""
    accepted = (change["before"] for change in record.data_changes if step <= change["step"])
    then = next(accepted, record.data_fingerprint)
    if then != fingerprint:
        raise UserError(
            f"the data of {workdir} changed ({then[:16]} at step {step}, {fingerprint[:16]} now): "
            "its batches cannot be made again"
        )


def _check_one_version(record: RunRecord, start: int, step: int) -> None:
    """Raises UserError where the data changed amid the steps that are done again."""
    for change in record.data_changes:
        if start < change["step"] < step:
            raise UserError(
                f"the data changed after step {change['step']}, whose checkpoint is gone: from step {start} on, "
                f"step {step} cannot be done again"
            )
