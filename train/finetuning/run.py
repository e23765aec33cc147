"""Fine-tuning as a function: settings, a foundation run and labeled rows -> a run directory."""

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
from train.finetuning.comparison import Graft
from train.finetuning.rows import read_task, render_rows
from train.run.lock import claim
from train.run.record import RunRecord, open_run
from train.run.record import start as start_run
from train.settings import Settings, from_config


def finetune(
    config: dict[str, Any], foundation: Path, workdir: Path, accept_changed_data: bool = False
) -> dict[str, Any]:
    """Fine-tunes as `config` says, prints the table and returns `results.json`.

    Raises:
        UserError: a fault in the config, the rows, the foundation, the mesh or the checkpoint.
    """
    settings = from_config(config)
    require()
    apply_xla_flags(settings)
    mesh = make_mesh(settings.mesh)
    check_batch(settings, mesh)
    graft, splits = make_graft(config, settings, foundation, workdir, mesh)
    say_skipped("finetune", splits.skipped)
    counts = " · ".join(f"{len(part.examples):,} {name}" for name, part in graft.parts.items())
    say(
        f"finetune: {counts} rows, {splits.duplicates:,} repeated; of the training rows "
        f"{graft.parts['train'].cut:,} were cut to {settings.sequence_length} tokens, "
        f"{graft.parts['train'].dropped:,} dropped"
    )
    with claim(workdir), jax.set_mesh(mesh):
        start_run(workdir, graft.record, graft.tokenizer, accept_changed_data)
        return graft.run()


def make_graft(
    config: dict[str, Any], settings: Settings, foundation: Path, workdir: Path, mesh: Mesh
) -> tuple[Graft, Splits]:
    """Returns (the run, its data read and rendered; the data as read).

    Raises:
        UserError: a fault in the rows or the foundation.
    """
    parent = open_run(foundation).with_execution(settings.model)
    _check_length(settings, parent.model, foundation)
    tokenizer = parent.tokenizer()
    task, splits, facts = read_task(settings)
    parts = {
        name: render_rows(task, facts, examples, tokenizer, settings.sequence_length, settings.seed)
        for name, examples in (("train", splits.train), ("validation", splits.validation), ("test", splits.test))
    }
    lineage = parent.lineage_entry()
    record = RunRecord("finetune", parent.model, config, facts, splits.fingerprint, lineage, splits.files)
    return Graft(record, settings, task, tokenizer, parts, parent, workdir, mesh), splits


def _check_length(settings: Settings, model: ModelConfig, foundation: Path) -> None:
    if model.position == "learned" and settings.sequence_length > model.context_length:
        raise UserError(
            f"config.sequence_length is {settings.sequence_length}; legal: at most {model.context_length}, "
            f"the context of {foundation}"
        )
