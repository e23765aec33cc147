"""Fine-tuning as a function: a config, a foundation run and labeled rows -> a run directory."""

from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from configs.errors import UserError
from data.labeled import Splits
from model.config import ModelConfig
from train.console import say, say_skipped
from train.distributed.mesh import apply_xla_flags, check_batch, make_mesh
from train.evaluation.metrics import require
from train.finetuning.comparison import compare
from train.finetuning.finetune_run import FinetuneRun
from train.finetuning.report.before_after import publish
from train.finetuning.rows import TaskData, encode_rows, read_task
from train.run.lock import claim
from train.run.record import RunRecord, open_run, read_record
from train.run.record import start as start_run
from train.settings import Settings, from_config
from train.tasks.task import absolute_name, task_from_record, task_to_record


def finetune(
    config: dict[str, Any], foundation: Path, workdir: Path, accept_changed_data: bool = False
) -> dict[str, Any]:
    """Fine-tunes as `config` says, prints the table and returns the contents of `results.json`.

    Raises:
        UserError: an invalid config, row, foundation, mesh or checkpoint.
    """
    settings = from_config(config)
    # A task file's path is stored absolute, so that the run can be read from any directory.
    config = config | {"task": config["task"] | {"name": absolute_name(settings.task.name)}}
    settings = from_config(config)
    require()
    apply_xla_flags(settings)
    mesh = make_mesh(settings.mesh)
    check_batch(settings, mesh)
    run, splits = prepare_run(config, settings, foundation, workdir, mesh)
    say_skipped("finetune", splits.skipped)
    counts = " · ".join(f"{len(part.examples):,} {name}" for name, part in run.data.parts.items())
    train = run.data.parts["train"]
    say(
        f"finetune: {counts} rows; {splits.duplicates:,} duplicates removed; of the training rows {train.truncated:,} "
        f"were truncated to {settings.sequence_length} tokens and {train.dropped:,} dropped"
    )
    with claim(workdir), jax.set_mesh(mesh):
        start_run(workdir, run.record, run.data.tokenizer, accept_changed_data)
        return publish(run, compare(run))


def prepare_run(
    config: dict[str, Any], settings: Settings, foundation: Path, workdir: Path, mesh: Mesh
) -> tuple[FinetuneRun, Splits]:
    """Returns (the run with its rows encoded, the rows as read).

    Raises:
        UserError: invalid rows, or a foundation with too short a context.
    """
    parent = open_run(foundation).with_execution(settings.model)
    _check_length(settings, parent.model, foundation)
    tokenizer = parent.tokenizer()
    task, splits = read_task(settings)
    before = read_record(workdir) if (workdir / "run.json").is_file() else None
    if before is not None and before.task.get("name") == absolute_name(settings.task.name):
        # A run that resumes keeps its classes and their order: its head was trained with them.
        task = task_from_record(before.task)
    parts = {
        name: encode_rows(task, examples, tokenizer, settings.sequence_length, settings.seed)
        for name, examples in (("train", splits.train), ("validation", splits.validation), ("test", splits.test))
    }
    lineage = parent.lineage_entry()
    stored = task_to_record(settings.task.name, task)
    record = RunRecord(
        "finetune",
        parent.model,
        config,
        stored,
        splits.fingerprint,
        lineage,
        splits.files,
        generation=parent.record.generation,
    )
    return FinetuneRun(workdir, record, settings, parent, TaskData(task, tokenizer, parts), mesh), splits


def _check_length(settings: Settings, model: ModelConfig, foundation: Path) -> None:
    if model.position == "learned" and settings.sequence_length > model.context_length:
        raise UserError(
            f"config.sequence_length={settings.sequence_length} exceeds the context of {foundation} "
            f"({model.context_length})"
        )
