r"""Grafts a task head onto a foundation model and trains both on labelled rows.

Architecture and tokenizer come from --init_from; the backbone's weights are checked leaf by leaf, the head is new. Ends
with a before/after table on held-out rows: majority class, the same head from random weights, from the foundation.

  rootstock finetune --config=configs/finetune/intent.py --init_from=runs/books --workdir=runs/intent \
      --config.data.path=train.jsonl --config.task.test_path=test.jsonl
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from rich.console import Console

from configs.errors import UserError
from data.tasks import ClassificationData, ClassificationRows, classification_data, classification_rows, majority_class
from data.tokenizer import load_tokenizer
from model.config import ModelConfig, training_flops_per_token
from model.heads import Objective
from train import report
from train import run as runs
from train.distributed import is_first
from train.loop import Job, fit
from train.mesh import apply_xla_flags, check_batch, make_mesh
from train.metrics import console
from train.scoring import classification_figures, predict
from train.settings import Settings, from_config

REQUIRED = ("config", "init_from", "workdir")
MULTI_PROCESS = True


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("init_from", None, "Run of the foundation model.", flag_values=values)
    flags.DEFINE_string("workdir", None, "Directory of this run; made if need be.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    finetune(values.config.to_dict(), Path(values.init_from), Path(values.workdir))


def finetune(config: dict[str, Any], foundation: Path, workdir: Path) -> dict[str, Any]:
    """Fine-tunes as `config` says, prints the table and returns `results.json`.

    Raises:
        UserError: a fault in the config, the rows, the foundation, the mesh or the checkpoint.
    """
    settings = from_config(config)
    report.require_metrics()
    apply_xla_flags(settings)
    mesh = make_mesh(settings.mesh)
    check_batch(settings, mesh)
    parent = runs.read_record(foundation)
    model = runs.with_execution(parent.model, settings.model)
    if model.position == "learned" and settings.sequence_length > model.context_length:
        raise UserError(
            f"config.sequence_length is {settings.sequence_length}; legal: at most {model.context_length}, "
            f"the context of {foundation}"
        )
    tokenizer = load_tokenizer(foundation / "tokenizer")
    data = _read(settings)
    rows = {
        split: classification_rows(examples, data.classes, tokenizer, settings.sequence_length, settings.seed)
        for split, examples in (("train", data.train), ("test", data.test))
    }
    task = {"name": settings.task.name, "classes": data.classes, "pooling": settings.task.pooling}
    lineage = runs.ancestor(foundation, parent)
    record = runs.RunRecord("finetune", model, config, task, data.fingerprint, lineage)
    console.print(
        f"finetune: {len(data.train):,} training and {len(data.test):,} held-out rows, {len(data.classes)} classes; "
        f"{rows['train'].truncated} cut to {settings.sequence_length} tokens",
        highlight=False,
    )
    with runs.claim(workdir), jax.set_mesh(mesh):
        runs.start(workdir, record, tokenizer)
        objective = runs.objective_of(record, model)
        results = {"majority class": _majority(data, rows["test"])}
        if settings.task.baseline:
            results["head from random weights"] = _train(
                "random weights", objective, model, rows, settings, mesh, workdir / "from_random", None
            )
        results["head from the foundation"] = _train(
            "foundation", objective, model, rows, settings, mesh, workdir, foundation
        )
    return _publish(results, data, workdir)


def _read(settings: Settings) -> ClassificationData:
    if not settings.data.path:
        raise UserError("config.data.path is empty; legal: labelled rows as .jsonl, .csv, .parquet or hf:NAME")
    task, data = settings.task, settings.data
    return classification_data(data.path, task.test_path, data.text_field, task.label_field, task.test_fraction)


def _majority(data: ClassificationData, test: ClassificationRows) -> dict[str, report.Interval]:
    guess = data.classes.index(majority_class(data.train))
    return report.classification_metrics(test.labels, np.full_like(test.labels, guess))


def _train(
    title: str,
    objective: Objective,
    model: ModelConfig,
    rows: dict[str, ClassificationRows],
    settings: Settings,
    mesh: Mesh,
    workdir: Path,
    foundation: Path | None,
) -> dict[str, report.Interval]:
    """Trains one model of the table and returns its held-out metrics."""
    workdir.mkdir(parents=True, exist_ok=True)
    tokens = settings.batch_size * settings.sequence_length
    job = Job(
        title=title,
        objective=objective,
        rows=rows["train"],
        evaluate=lambda params: classification_figures(
            predict(objective, params, rows["test"], settings.batch_size, mesh)
        ),
        graft=None if foundation is None else lambda _: runs.load_params(foundation, objective, mesh, ("backbone",)),
        flops_per_step=tokens
        * training_flops_per_token(dataclasses.replace(model, vocab_size=1), settings.sequence_length),
    )
    params = fit(job, settings, mesh, workdir)
    labels, logits = predict(objective, params, rows["test"], settings.batch_size, mesh)
    return report.classification_metrics(labels, logits.argmax(-1))


def _publish(results: dict[str, dict[str, report.Interval]], data: ClassificationData, workdir: Path) -> dict[str, Any]:
    """Prints the table and writes `results.json`, on process 0; returns what is written."""
    title = f"{len(data.test):,} held-out rows, {len(data.classes)} classes; 95 % bootstrap intervals"
    published: dict[str, Any] = {
        "held_out_rows": len(data.test),
        "train_rows": len(data.train),
        "classes": len(data.classes),
        "models": {name: report.as_json(metrics) for name, metrics in results.items()},
    }
    if "head from random weights" in results:
        before, after = results["head from random weights"], results["head from the foundation"]
        published["gain_over_random"] = {name: report.gain(before[name], after[name]) for name in before}
    if is_first():
        Console().print(report.comparison(title, list(results.items())))
        (workdir / "results.json").write_text(json.dumps(published, indent=1))
    return published


if __name__ == "__main__":
    import sys

    from train.cli import main

    main(["finetune", *sys.argv[1:]])
