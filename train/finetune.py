r"""Grafts a task head onto a foundation model and trains it on labelled rows.

Architecture and tokenizer come from --init_from; the backbone's weights are checked leaf by leaf, the head is new. Ends
with a before/after table on held-out rows: the foundation asked without training, the same head from random weights,
the fine-tuned model. The table is also in results.json and, with curves and samples, in report.html.

  rootstock finetune --config=configs/finetune/intent.py --init_from=runs/books --workdir=runs/intent \
      --config.data.path=train.jsonl --config.task.test_path=test.jsonl
"""

from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh

from configs.errors import UserError
from data.labelled import Splits
from data.tokenizer import load_tokenizer
from model.config import ModelConfig
from train import run as runs
from train.graft import Graft
from train.mesh import apply_xla_flags, check_batch, make_mesh
from train.metrics import console, say_skipped
from train.proof.metrics import require
from train.settings import Settings, from_config
from train.task_rows import read_task, render_rows

REQUIRED = ("config", "init_from", "workdir")
MULTI_PROCESS = True
PREEMPTIBLE = True


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("init_from", None, "Run of the foundation model.", flag_values=values)
    flags.DEFINE_string("workdir", None, "Directory of this run; made if need be.", flag_values=values)
    flags.DEFINE_boolean("accept_changed_data", False, "Go on although the data changed.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    finetune(values.config.to_dict(), Path(values.init_from), Path(values.workdir), values.accept_changed_data)


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
    console.print(
        f"finetune: {counts} rows, {splits.duplicates:,} repeated; of the training rows "
        f"{graft.parts['train'].cut:,} were cut to {settings.sequence_length} tokens, "
        f"{graft.parts['train'].dropped:,} dropped",
        highlight=False,
    )
    with runs.claim(workdir), jax.set_mesh(mesh):
        runs.start(workdir, graft.record, graft.tokenizer, accept_changed_data)
        return graft.run()


def make_graft(
    config: dict[str, Any], settings: Settings, foundation: Path, workdir: Path, mesh: Mesh
) -> tuple[Graft, Splits]:
    """Returns (the run, its data read and rendered; the data as read).

    Raises:
        UserError: a fault in the rows or the foundation.
    """
    parent = runs.read_record(foundation)
    model = runs.with_execution(parent.model, settings.model)
    _check_length(settings, model, foundation)
    tokenizer = load_tokenizer(foundation / "tokenizer")
    task, splits, facts = read_task(settings)
    parts = {
        name: render_rows(task, facts, examples, tokenizer, settings.sequence_length, settings.seed)
        for name, examples in (("train", splits.train), ("validation", splits.validation), ("test", splits.test))
    }
    lineage = runs.ancestor(foundation, parent)
    record = runs.RunRecord("finetune", model, config, facts, splits.fingerprint, lineage, splits.files)
    return Graft(record, settings, task, tokenizer, parts, foundation, workdir, mesh), splits


def _check_length(settings: Settings, model: ModelConfig, foundation: Path) -> None:
    if model.position == "learned" and settings.sequence_length > model.context_length:
        raise UserError(
            f"config.sequence_length is {settings.sequence_length}; legal: at most {model.context_length}, "
            f"the context of {foundation}"
        )


if __name__ == "__main__":
    import sys

    from train.cli import main

    main(["finetune", *sys.argv[1:]])
