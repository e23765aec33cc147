"""Fine-tuning as a function: a config, a foundation run and labeled rows -> a run directory."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from configs.errors import UserError
from data.labeled import Splits
from model.dtypes import compute_dtype
from train.console import say, say_skipped, say_unread, warn
from train.distributed.mesh import apply_xla_flags, check_batch, make_mesh
from train.distributed.processes import is_process_zero
from train.evaluation.metrics import require
from train.finetuning.comparison import compare
from train.finetuning.finetune_run import FinetuneRun
from train.finetuning.label_audit import look_at_labels
from train.finetuning.learning_rate import with_learning_rate
from train.finetuning.report.before_after import publish
from train.finetuning.report.label_audit import leak_line
from train.finetuning.rows import TaskData, abbreviated, encode_rows, read_task, say_dropped, say_unseen, steps_of
from train.finetuning.task_text import with_task_text
from train.run.lock import claim
from train.run.longer_context import longer_context
from train.run.new_run import FINETUNE_UNUSED, check_new_run
from train.run.record import Run, RunRecord, open_run, read_record
from train.run.record import start as start_run
from train.settings import Settings, from_config
from train.tasks.classification import Classification
from train.tasks.loading import absolute_name, attention_of, load_task, task_from_record, task_to_record
from train.tasks.task import check_prompt, fields_without_effect


def finetune(
    config: dict[str, Any],
    foundation: Path,
    workdir: Path,
    accept_changed_data: bool = False,
    suspicious: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Fine-tunes as `config` says, prints the table and returns the contents of `results.json`.

    Args:
        config: the config, complete.
        foundation: the run that is fine-tuned.
        workdir: the run directory.
        accept_changed_data: resume although the data changed.
        suspicious: also look for rows whose label is suspicious.
        quiet: write the results, but print no table and do not look at the labels.

    Raises:
        UserError: an invalid config, row, foundation, mesh or checkpoint.
    """
    config = as_started(workdir, config)
    settings = from_config(config)
    # A task file's path is stored absolute, so that the run can be read from any directory.
    config = config | {"task": config["task"] | {"name": absolute_name(settings.task.name)}}
    settings = from_config(config)
    task = settings.task.name
    if suspicious and not (issubclass(load_task(task), Classification) and not settings.task.multi_label):
        raise UserError(
            f"--suspicious has no effect with config.task.name={task!r} and "
            f"config.task.multi_label={settings.task.multi_label}; expected a task with one class per row"
        )
    unused = dict.fromkeys(fields_without_effect(load_task(task)), f"with config.task.name={task!r}")
    parent = open_run(foundation).with_execution(settings.model)
    check_new_run(workdir, config, settings, unused | FINETUNE_UNUSED, parent)
    if not (workdir / "run.json").exists():
        check_prompt(load_task(task), settings.task)
    require()
    apply_xla_flags(settings)
    mesh = make_mesh(settings.mesh)
    check_batch(settings, mesh)
    run, splits = prepare_run(config, settings, parent, workdir, mesh)
    _say_rows(run, splits)
    _say_classes(run, splits)
    if getattr(run.data.task, "pooling", "") == "mean":
        say("finetune: the head reads the mean of a text's tokens; to use export-hf, set config.task.pooling=last")
    audit = look_at_labels(run.data.task, splits, suspicious) if is_process_zero() and not quiet else None
    if audit is not None and (leaks := leak_line(audit)):
        warn(f"finetune: {leaks}")
    with claim(workdir), jax.set_mesh(mesh):
        run = with_task_text(run, accept_changed_data)
        stored = start_run(workdir, run.record, run.data.tokenizer, accept_changed_data)
        run = dataclasses.replace(run, record=dataclasses.replace(run.record, length_changes=stored.length_changes))
        return publish(run, compare(run), audit, quiet)


def as_started(workdir: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Returns the config with what the run in `workdir`, if there is one, was started with.

    These are its rules for rows, so that its splits stay the same, what "auto" and a learning rate of 0 were when it
    started, and the steps that its passes over the rows are.
    """
    if not (workdir / "run.json").is_file():
        return config
    record = open_run(workdir).record.config
    started, task, steps = record["task"], dict(config["task"]), config["num_steps"]
    rules = started["row_rules"]
    if rules != task["row_rules"]:
        say(f"finetune: {workdir} was started with config.task.row_rules={rules} and keeps these rules and splits")
    kept = {name: started[name] for name in ("attention", "pooling") if task[name] == "auto"}
    optimizer = dict(config["optimizer"])
    optimizer["learning_rate"] = optimizer["learning_rate"] or record["optimizer"]["learning_rate"]
    if task["min_epochs"] and task["min_epochs"] == started["min_epochs"]:
        steps = max(steps, record["num_steps"])
    return config | {"num_steps": steps, "optimizer": optimizer, "task": task | {"row_rules": rules} | kept}


def _say_rows(run: FinetuneRun, splits: Splits) -> None:
    """Says how many rows there are of each part, and how often the steps pass over the training rows."""
    say_skipped("finetune", splits.skipped)
    settings, train = run.settings, run.data.parts["train"]
    for path in (settings.data.path, settings.task.test_path):
        say_unread("finetune", path)
    counts = " · ".join(f"{len(part.examples):,} {name}" for name, part in run.data.parts.items())
    say(
        f"finetune: {counts} rows; {splits.duplicates:,} duplicates removed; of the training rows {train.truncated:,} "
        f"were truncated to {settings.sequence_length} tokens and {train.dropped:,} dropped"
    )
    for name in ("validation", "test"):
        say_dropped(f"finetune: {name} part", run.data.parts[name], settings.sequence_length)
    passes = settings.num_steps * settings.batch_size / len(train.rows)
    say(
        f"finetune: {settings.num_steps:,} steps of {settings.batch_size} x {settings.sequence_length} tokens, "
        f"{passes:.2g} passes over the training rows, learning rate {settings.optimizer.learning_rate:g}, "
        f"products in {compute_dtype(run.record.model)}"
    )


def _say_classes(run: FinetuneRun, splits: Splits) -> None:
    """Warns of classes that are too rare to be split, and of held-out labels that the training rows lack."""
    if splits.rare:
        names = abbreviated([f"{name} ({count})" for name, count in splits.rare.items()])
        warn(
            f"finetune: {len(splits.rare)} classes have too few different rows to be split and may be in the training "
            f"rows only: {names}; add rows, set config.task.test_path, or merge or remove these classes"
        )
    say_unseen("finetune", run.data.task, run.data.parts["test"].examples)
    outside = run.settings.task.out_of_scope
    present = {name for example in (*splits.train, *splits.test) for name in example.classes}
    if outside and outside not in present:
        raise UserError(
            f"config.task.out_of_scope={outside!r} is the class of no row; expected one of "
            f"{abbreviated(sorted(present))}"
        )


def prepare_run(
    config: dict[str, Any], settings: Settings, parent: Run, workdir: Path, mesh: Mesh
) -> tuple[FinetuneRun, Splits]:
    """Returns (the run with its rows encoded, the rows as read).

    Its config has `config.task.attention` and the learning rate decided, and the steps that `config.task.min_epochs`
    asks for.

    Args:
        config: the config, complete.
        settings: the same, checked.
        parent: the foundation, with the execution options of the config.
        workdir: the run directory.
        mesh: the devices.

    Raises:
        UserError: invalid rows, or see `attention_of` and `longer_context`.
    """
    attention = attention_of(settings.task, settings.adapt.method)
    config = with_learning_rate(config | {"task": config["task"] | {"attention": attention}}, parent.model.embed_dim)
    settings = from_config(config)
    before = read_record(workdir) if (workdir / "run.json").is_file() else None
    # A run that resumes keeps its context.
    model = before.model if before is not None else longer_context(parent, settings.sequence_length, "finetune")
    parent = parent.with_model(dataclasses.replace(parent.model, context_length=model.context_length))
    tokenizer = parent.tokenizer()
    task, splits = read_task(settings)
    if before is not None and before.task.get("name") == absolute_name(settings.task.name):
        # A run that resumes keeps its classes and their order: its head was trained with them.
        task = task_from_record(before.task)
        if unseen := sorted({label for example in splits.train for label in task.unseen(example)}):
            raise UserError(
                f"{settings.data.path}: the training rows have labels that the run in {workdir} was started without: "
                f"{abbreviated(unseen)}; remove these rows, or use a new --workdir"
            )
    parts = {
        name: encode_rows(task, examples, tokenizer, settings.sequence_length, settings.seed)
        for name, examples in (("train", splits.train), ("validation", splits.validation), ("test", splits.test))
    }
    config = config | {"num_steps": steps_of(settings, len(parts["train"].rows))}
    settings = from_config(config)
    lineage = parent.lineage_entry()
    stored = task_to_record(settings.task.name, task)
    record = RunRecord(
        "finetune",
        dataclasses.replace(parent.model, causal=attention == "causal"),
        config,
        stored,
        splits.fingerprint,
        lineage,
        splits.files,
        generation=parent.record.generation,
        architecture=parent.record.architecture,
    )
    return FinetuneRun(workdir, record, settings, parent, TaskData(task, tokenizer, parts), mesh, parent), splits
