"""The results of a fine-tuning run: the printed table, `results.json` and `report.html`."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from configs import default
from data.labeled import draw
from train.console import results_console
from train.distributed.processes import is_process_zero
from train.evaluation.interval import as_json, gain
from train.evaluation.metrics import confusion
from train.finetuning.comparison import FINE_TUNED, RANDOM_INIT, RANDOM_INIT_DIR
from train.finetuning.confidence import confidence_json
from train.finetuning.ensembling import ensemble_json
from train.finetuning.finetune_run import Cost, FinetuneRun, Scored
from train.finetuning.label_audit import LabelAudit, audit_json
from train.finetuning.report import html
from train.finetuning.report.confidence import confidence_table
from train.finetuning.report.label_audit import audit_lines
from train.finetuning.report.table import comparison, shown
from train.run import goodput
from train.run.calibration import write_calibration
from train.run.record import config_changes
from train.run.results import NAME, add_results, training_summary
from train.run.trackers import publish_results
from train.tasks.classification import Classification
from train.tasks.task import Prediction

_SAMPLES = 20
# Parts of results.json that not every invocation has; those of an earlier one would describe another model or table.
_OPTIONAL = ("unseen_label_rows", "calibration", "ensemble", "seeds")


def publish(
    run: FinetuneRun, table: list[Scored], audit: LabelAudit | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Writes `results.json` and `report.html` on process 0 and, unless quiet, prints them; returns the former."""
    results = _results(run, table) | ({"labels": audit_json(audit)} if audit else {})
    if is_process_zero():
        if confidence := table[-1].confidence:
            write_calibration(run.workdir, confidence.calibration, table[-1].ensemble)
        add_results(run.workdir / NAME, lambda stored: _replace(stored, results, quiet))
        html.write(run.workdir / "report.html", dataclasses.replace(_report(run, table), audit=audit))
        if not quiet:
            _print(run, table, audit, results["verdict"])
        publish_results(run.workdir, run.settings, results, run.workdir / "report.html")
    return results


def _replace(stored: dict[str, Any], results: dict[str, Any], quiet: bool) -> None:
    """Replaces the results of an earlier invocation; what other commands added stays, such as evaluations."""
    # A quiet invocation does not look at the labels.
    for name in _OPTIONAL if quiet else (*_OPTIONAL, "labels"):
        stored.pop(name, None)
    stored.update(results)


def _print(run: FinetuneRun, table: list[Scored], audit: LabelAudit | None, verdict: str) -> None:
    rows = [(row.name, len(row.examples), row.metrics) for row in table]
    out = results_console()
    out.print(comparison(f"{_task_name(run)}: held-out rows", rows, _costs(table)))
    if confidence := table[-1].confidence:
        out.print(confidence_table(confidence))
    if audit is not None:
        out.print("\n".join(audit_lines(audit)))
    out.print(verdict)


def _costs(table: list[Scored]) -> dict[str, Cost]:
    return {row.name: row.cost for row in table if row.cost is not None}


def _simple_rows(run: FinetuneRun, table: list[Scored]) -> list[Scored]:
    """Returns the rows of what a user would do without a model."""
    names = {run.data.task.baseline_name, *run.data.task.alternatives()}
    return [row for row in table if row.name in names]


def _verdict(run: FinetuneRun, table: list[Scored]) -> str:
    """Returns a sentence: whether the last row is better than the best row without a model."""
    tuned = table[-1]
    name = next(iter(tuned.metrics))
    after, known = tuned.metrics[name], [row for row in _simple_rows(run, table) if name in row.metrics]
    sign = 1 if after.better == "higher" else -1
    best = max(known, key=lambda row: sign * row.metrics[name].value, default=None)
    if best is None:
        return f"finetune: {name} {shown(after)}; nothing without a model to compare with"
    before = best.metrics[name]
    values = f"{name} {after.value:.3f} against {before.value:.3f}"
    surely = "the intervals overlap" if gain(before, after)["intervals_overlap"] else "the intervals do not overlap"
    subject = "the fine-tuned model" if tuned.name == FINE_TUNED else tuned.name
    alone = "" if tuned.name == FINE_TUNED else f"; the fine-tuned model alone {_tuned(table).metrics[name].value:.3f}"
    if sign * after.value > sign * before.value:
        return f"finetune: {subject} beats {best.name}: {values}; {surely}{alone}"
    verb = "only equals" if after.value == before.value else "LOSES to"
    return f"finetune: {subject} {verb} {best.name}: {values}; {surely}{alone}. Use {best.name} as things are"


def _tuned(table: list[Scored]) -> Scored:
    """Returns the row of the fine-tuned model alone."""
    return next(row for row in table if row.name == FINE_TUNED)


def _task_name(run: FinetuneRun) -> str:
    return Path(run.settings.task.name).stem


def _results(run: FinetuneRun, table: list[Scored]) -> dict[str, Any]:
    """Returns what `results.json` contains; "gain" compares the last row, which predicts, with each other row."""
    *others, tuned = table
    unseen = sum(bool(run.data.task.unseen(example)) for example in tuned.examples)
    first, figure = next(iter(tuned.metrics.items()))
    return {
        "task": _task_name(run),
        "train_rows": len(run.data.parts["train"].examples),
        "held_out_rows": len(tuned.examples),
        **({"unseen_label_rows": unseen} if unseen else {}),
        "first_metric": {"name": first, "better": figure.better},
        "models": {row.name: {"rows": len(row.examples), **as_json(row.metrics)} for row in table},
        "gain": {
            row.name: {name: gain(row.metrics[name], tuned.metrics[name]) for name in row.metrics} for row in others
        },
        "costs": {name: dataclasses.asdict(cost) for name, cost in _costs(table).items()},
        "verdict": _verdict(run, table),
        **({"calibration": confidence_json(found)} if (found := _tuned(table).confidence) else {}),
        **({"ensemble": ensemble_json(tuned)} if tuned.ensemble else {}),
        "training": training_summary(run.workdir),
    }


def _report(run: FinetuneRun, table: list[Scored]) -> html.Report:
    curves = {FINE_TUNED: run.workdir / "metrics.jsonl"}
    if any(row.name == RANDOM_INIT for row in table):
        curves[RANDOM_INIT] = run.workdir / RANDOM_INIT_DIR / "metrics.jsonl"
    return html.Report(
        title=f"{_task_name(run)}: before and after fine-tuning",
        rows=[(row.name, len(row.examples), row.metrics) for row in table],
        curves=curves,
        confusion=_confusion(run, table[-1]),
        samples=_samples(run, table),
        about=_about(run, table[-1]),
        costs=_costs(table),
        confidence=table[-1].confidence,
    )


def _samples(run: FinetuneRun, table: list[Scored]) -> list[html.Sample]:
    """Returns held-out examples with their answers before and after.

    "Before" is the foundation if it was scored, else the model from random initialization.
    """
    task = run.data.task
    *others, tuned = table
    before: dict[int, Prediction] = {}
    simple = {row.name for row in _simple_rows(run, table)}
    for row in reversed(others):
        if row.name not in simple:
            before = dict(zip(map(id, row.examples), row.predictions, strict=True))
    after = dict(zip(map(id, tuned.examples), tuned.predictions, strict=True))
    examples = [e for e in tuned.examples if id(e) in before] or tuned.examples
    return [
        (
            e.content,
            task.expected(e),
            task.format(e, before[id(e)]) if id(e) in before else "",
            task.format(e, after[id(e)]),
        )
        for e in draw(examples, _SAMPLES)
    ]


def _confusion(run: FinetuneRun, row: Scored) -> tuple[list[str], np.ndarray] | None:
    """Returns (classes, counts with a row per expected class) if each example has one class."""
    task = run.data.task
    if not isinstance(task, Classification):
        return None
    labels = [task.expected(example) for example in row.examples]
    predicted = [task.format(e, p) for e, p in zip(row.examples, row.predictions, strict=True)]
    # Of a task of several labels per row, one of the names is a combination.
    classes = [*task.classes, *sorted({label for example in row.examples for label in task.unseen(example)})]
    return (classes, confusion(labels, predicted, classes)) if {*labels, *predicted} <= {*classes} else None


def _about(run: FinetuneRun, tuned: Scored) -> dict[str, str]:
    """Returns what the run was trained from and how."""
    s, parts = run.settings, run.data.parts
    return {
        "task": s.task.name,
        "foundation": " → ".join(entry["directory"] for entry in run.record.lineage),
        "this run": str(run.workdir.absolute()),
        "training": f"{len(parts['train'].examples):,} rows of {s.data.path}, {s.num_steps:,} steps of "
        f"{s.batch_size} x {s.sequence_length} tokens, {s.adapt.method}",
        "validation rows": f"{len(parts['validation'].examples):,}",
        "held-out rows": f"{len(tuned.examples):,}",
        "wall time": goodput.describe(training_summary(run.workdir)["seconds"]),
        "data fingerprint": run.record.data_fingerprint,
        "changed from the defaults": "; ".join(config_changes(default.get_config().to_dict(), run.record.config)),
    }
