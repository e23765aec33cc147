"""The first stage of fine-tuning, if asked for: pre-training continues on the texts of the training rows.

Task-adaptive pre-training (Gururangan et al. 2020, arXiv:2004.10964). The stage is a pre-training run of its own in the
directory `task_text` of the run, so that it resumes, and later commands read it as they read any foundation. It is not
trained on rows that are held out, for validation or for the test.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, Literal

from configs.errors import UserError
from data.examples import ExampleRows, Segment, pack, text_segment
from model.transformer import Params
from train.console import say
from train.evaluation.scoring import held_out_loss
from train.finetuning.finetune_run import FinetuneRun
from train.finetuning.learning_rate import for_all_weights
from train.loop import fit
from train.pretraining import job_of
from train.run.length import TASK_TEXT_DIR
from train.run.record import Run, RunRecord, read_record
from train.run.record import start as start_run
from train.settings import from_config
from train.step import objective_of


def with_task_text(run: FinetuneRun, accept_changed_data: bool = False) -> FinetuneRun:
    """Returns the run that starts from the foundation after `config.adapt.task_text_steps`, before these are trained.

    The stage's `run.json` is written, or compared with the one that exists.

    Raises:
        UserError: the foundation is not a language model, or see `train.run.record.start`.
    """
    steps, foundation = run.settings.adapt.task_text_steps, run.foundation
    if not steps:
        return run
    if not foundation.is_language_model:
        raise UserError(
            f"config.adapt.task_text_steps={steps} needs a language model, but --init_from={foundation.directory} is a "
            f"{foundation.record.task['name']} model; expected 0, or a pre-trained run"
        )
    if run.data.task.needs_reference:
        raise UserError(
            f"config.adapt.task_text_steps={steps} is not supported with config.task.name={run.settings.task.name!r}, "
            "which compares with the foundation itself; expected 0"
        )
    directory = run.workdir / TASK_TEXT_DIR
    directory.mkdir(parents=True, exist_ok=True)
    fingerprint = hashlib.sha256(f"{TASK_TEXT_DIR} {run.record.data_fingerprint}".encode()).hexdigest()
    record = RunRecord(
        "pretrain",
        foundation.model,
        _stage_config(run, directory, steps),
        {},
        fingerprint,
        foundation.lineage_entry(),
        architecture=foundation.record.architecture,
        generation=foundation.record.generation,
    )
    stage = Run(directory, start_run(directory, record, run.data.tokenizer, accept_changed_data))
    stage = stage.with_execution(run.settings.model)
    record = dataclasses.replace(run.record, lineage=stage.lineage_entry())
    return dataclasses.replace(run, record=record, source=stage)


def train_on_task_text(run: FinetuneRun) -> None:
    """Trains the first stage; returns at once if the run has none, or if it is done."""
    stage = run.source
    if stage is run.foundation:
        return
    settings, rows = from_config(stage.record.config), task_text_rows(run, "train")
    held_out = task_text_rows(run, "validation")
    most = settings.evaluation.batches * settings.batch_size
    held_out = dataclasses.replace(held_out, packed=held_out.packed[: most or None])
    objective = objective_of(settings, stage.model)

    def evaluate(params: Params) -> dict[str, float]:
        # Shown only: nothing is chosen by it.
        return {"loss": held_out_loss(objective, params, held_out, settings.batch_size, run.mesh)}

    say(f"task text: {len(rows.examples):,} training texts in {len(rows):,} rows")
    job = job_of(settings, stage.model, rows, lambda groups: run.foundation.load_merged(run.mesh, groups), evaluate)
    job = dataclasses.replace(job, title="task text", objective=objective)
    fit(job, settings, run.mesh, stage.directory)


def task_text_rows(run: FinetuneRun, part: Literal["train", "validation"]) -> ExampleRows:
    """Returns the texts of some rows for next-token prediction, cut to the length of a row (`Task.text_tokens`)."""
    task, tokenizer, length = run.data.task, run.data.tokenizer, run.settings.sequence_length
    segments: list[tuple[Segment, ...]] = []
    for example in run.data.parts[part].examples:
        for tokens in task.text_tokens(example, tokenizer, length + 1):
            if len(tokens) > 1:
                segments.append((text_segment(tokens, [True] * len(tokens)),))
    return pack(segments, length, tokenizer.pad_id, run.settings.seed)


def _stage_config(run: FinetuneRun, directory: Path, steps: int) -> dict[str, Any]:
    """Returns the config of the stage: that of the run, with its own length and nothing of the task."""
    config, foundation = run.record.config, run.foundation.record.config
    if (directory / "run.json").is_file():  # started by a version that took the run's own rate, perhaps
        rate = read_record(directory).config["optimizer"]["learning_rate"]
    else:
        rate = for_all_weights(run.settings, run.foundation.model.embed_dim).optimizer.learning_rate
    warmup = min(config["optimizer"]["warmup_steps"], steps // 10)
    sections = {
        "task": foundation["task"],
        "adapt": foundation["adapt"],
        "evaluation": config["evaluation"] | {"every": steps, "metric": "loss", "patience": 0},
        "checkpoint": config["checkpoint"] | {"best": False},
        "optimizer": config["optimizer"] | {"warmup_steps": warmup, "learning_rate": rate},
    }
    return config | sections | {"num_steps": steps}
