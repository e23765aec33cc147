"""Re-runs one training step bit for bit and ranks the documents in its batch by loss; use it to explain a loss spike.

Batch t depends only on (seed, t), so the step is repeated from the last checkpoint before it. The run directory is only
read, so the run may still be training.
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
from data.storage.paths import at
from data.tokenizer import Tokenizer
from model.sharding import MESH_AXES
from model.transformer import Params
from train.checkpoint.manager import open_to_read, saved_steps
from train.checkpoint.restore import restore_before
from train.console import progress
from train.corpus.opened import open_corpus
from train.corpus.stores import existing_stores, replaced_paths
from train.distributed.mesh import apply_xla_flags, check_batch, make_mesh, spread_mesh
from train.distributed.placement import local_places, put_batch
from train.distributed.processes import run_on_process_zero
from train.evaluation.document_losses import document_losses
from train.finetuning.comparison import finetuning_job, with_references
from train.finetuning.run import prepare_run
from train.job import Job, first_state
from train.pretraining import job_of
from train.run.history import dtype_of_step, read_records
from train.run.length import earlier_lengths
from train.run.record import Run, RunRecord, open_run
from train.run.rollback import skipped_batches
from train.settings import MeshSettings, Settings, from_config
from train.step import make_program
from train.trees import boxed_params

_SourceOf = Callable[[str, int], str]


def replay(workdir: Path, step: int, data: str = "") -> dict[str, Any]:
    """Returns the repeated step's loss and gradient norm, the logged loss, and its documents sorted by descending loss.

    `equal` (same loss as logged) is None if the run did not log that step; `saved_on` (the mesh that ran the step) is
    None if no later checkpoint exists. Products are computed in the dtype of the run.

    Args:
        workdir: the run directory.
        step: the training step, counted from 1.
        data: replaces `config.data.path`; NAME=STORE,... those of sources of a mixture.

    Raises:
        UserError: not a run, a step that the run has not reached, or data or a checkpoint that is missing or changed.
    """
    records = read_records(workdir)
    run = _in_dtype(open_run(workdir), dtype_of_step(records, step))
    record = run.record
    settings = from_config(record.config)
    settings = replaced_paths(settings, data)
    done = max((r["step"] for r in records), default=0)
    if not 1 <= step <= done:
        raise UserError(f"--step={step}; expected 1 to {done}, the steps in {workdir / 'metrics.jsonl'}")
    apply_xla_flags(settings)
    saved_on = _saved_on(workdir, step)
    mesh = _mesh(run, settings, saved_on)
    check_batch(settings, mesh)
    with contextlib.ExitStack() as stack, jax.set_mesh(mesh):
        job, tokenizer, by_token, source_of = _job(run, settings, mesh, step)
        # The learning rates of the steps before a change of the run's length.
        program = make_program(job.objective, settings, mesh, earlier_lengths(record.length_changes))
        state = first_state(job, settings, program, restore_before(workdir, step - 1, program.state, mesh))
        start = int(state.step)
        _check_one_version(record, start, step)
        skipped = skipped_batches(workdir)
        function = BatchFunction(job.rows, settings.batch_size, settings.seed, None, skipped)
        own = dataclasses.replace(function, row_indices=local_places(mesh, settings.batch_size))
        batches = train_batches(own, start, step, 0, settings.data.prefetch)
        bar = stack.enter_context(progress(f"replay from step {start}", step - start))
        for t, batch in enumerate(batches, start):
            if t == step - 1:
                # Before the step, which donates the state.
                at_once = settings.batch_size // settings.microbatches
                documents = document_losses(
                    job.objective, state.all_params, function, t, tokenizer, source_of, mesh, by_token, at_once
                )
            state, metrics = program.step(state, put_batch(batch, mesh))
            # Queued steps each hold a batch in memory, and on CPU many queued steps can deadlock.
            jax.block_until_ready(metrics)
            bar(t + 1 - start)
        values = {name: np.asarray(value).tolist() for name, value in jax.device_get(metrics).items()}
    logged = next((r for r in reversed(records) if r["step"] == step and r["phase"] in ("train", "skipped")), None)
    logged_loss = logged and logged["loss"]
    return {
        "step": step,
        "batch": batch_number(step - 1, skipped),
        **function.places(step - 1),
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


def _in_dtype(run: Run, dtype: str | None) -> Run:
    """Returns the run as if its config named this dtype of products, which "auto" need not mean here."""
    if dtype is None:
        return run
    model = run.record.config["model"] | {"compute_dtype": dtype}
    record = dataclasses.replace(run.record, config=run.record.config | {"model": model})
    return Run(run.directory, record).with_execution(model)


def _saved_on(workdir: Path, step: int) -> dict[str, int] | None:
    """Returns {axis: devices} of the mesh that saved the first readable checkpoint after `step`, or None."""
    later = run_on_process_zero(lambda: sorted(saved for saved in saved_steps(workdir) if saved >= step))
    if not later:
        return None
    with open_to_read(workdir) as manager:
        for saved in later:
            # Orbax raises many exception types for damaged files.
            with contextlib.suppress(Exception):
                sharding = jax.tree.leaves(manager.item_metadata(saved)["params"].tree)[0].sharding
                return {axis: int(size) for axis, size in zip(sharding.axis_names, sharding.shape, strict=True)}
    return None


def _mesh(run: Run, settings: Settings, saved_on: dict[str, int] | None) -> Mesh:
    """Returns the mesh that ran the step; with another number of devices the config's mesh, or one that fits them."""
    if saved_on is not None and math.prod(saved_on.values()) == jax.device_count() and set(saved_on) <= set(MESH_AXES):
        # A checkpoint of an earlier version lacks the axes that were added since.
        return make_mesh(MeshSettings(**dict.fromkeys(MESH_AXES, 1) | saved_on))
    try:
        return make_mesh(settings.mesh)
    except UserError:
        return spread_mesh(boxed_params(run.objective()))


def ran_on_another_mesh_size(found: dict[str, Any]) -> bool:
    """Returns whether the run used another number of devices for the step than this replay."""
    return found["saved_on"] is not None and math.prod(found["saved_on"].values()) != math.prod(found["mesh"].values())


def _job(run: Run, settings: Settings, mesh: Mesh, step: int) -> tuple[Job, Tokenizer, bool, _SourceOf]:
    """Returns (the run's `Job`, its tokenizer, whether the loss is per token, `source_of` of `document_losses`)."""
    workdir, record = run.directory, run.record
    parent = at(record.lineage[-1]["directory"]) if record.lineage else None

    def evaluate(_: Params) -> dict[str, float]:
        raise AssertionError("replay must not evaluate")

    if record.stage == "pretrain":
        corpus = open_corpus(existing_stores(settings, workdir), settings)
        _check_data(workdir, record, corpus.fingerprint, step)
        model = run.with_execution(settings.model).model

        def load_initial(groups: tuple[str, ...]) -> Params:
            # Only opened if no checkpoint is left before the step: the parent may have been deleted.
            assert parent is not None
            return open_run(parent).with_model(model).load_merged(mesh, groups)

        job = job_of(settings, model, corpus.rows, None if parent is None else load_initial, evaluate)
        return job, run.tokenizer(), True, corpus.place_of
    assert parent is not None
    finetuning, _ = prepare_run(record.config, settings, open_run(parent).with_execution(settings.model), workdir, mesh)
    _check_data(workdir, record, finetuning.record.data_fingerprint, step)
    finetuning = with_references(finetuning)
    job = finetuning_job(finetuning, "replay", finetuning.objective(), evaluate)
    task, examples = finetuning.data.task, finetuning.data.parts["train"].examples
    by_token = task.trains_lm_head and not task.needs_reference
    return job, finetuning.data.tokenizer, by_token, lambda _, n: f"row {examples[n].row} of {settings.data.path}"


def _check_data(workdir: Path, record: RunRecord, fingerprint: str, step: int) -> None:
    """Raises UserError if the data differ from those that the step was trained on."""
    accepted = (change["before"] for change in record.data_changes if step <= change["step"])
    then = next(accepted, record.data_fingerprint)
    if then != fingerprint:
        raise UserError(
            f"the data of {workdir} changed ({then[:16]} at step {step}, {fingerprint[:16]} now); "
            "the batch of that step cannot be rebuilt"
        )


def _check_one_version(record: RunRecord, start: int, step: int) -> None:
    """Raises UserError if the data changed between the checkpoint and the step."""
    for change in record.data_changes:
        if start < change["step"] < step:
            raise UserError(
                f"the data changed after step {change['step']}, whose checkpoint is missing; "
                f"step {step} cannot be replayed from step {start}"
            )
