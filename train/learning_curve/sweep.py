"""Trains the points of a learning curve: a sweep of ordinary fine-tuning runs with fewer labels."""

import copy
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.errors import UserError
from data.labeled import Splits, fewer_labels, fingerprint, rows_per_class
from train.checkpoint.manager import saved_steps
from train.console import say
from train.distributed.processes import run_on_process_zero
from train.evaluation.interval import Interval
from train.finetuning.baselines import FOUNDATION
from train.finetuning.comparison import FINE_TUNED
from train.finetuning.rows import read_task
from train.finetuning.run import as_started, finetune
from train.learning_curve.curve import Point, helped, is_flat
from train.run.record import config_changes, open_run
from train.run.results import NAME, add_results
from train.settings import from_config
from train.tasks.classification import Classification
from train.tasks.loading import absolute_name
from train.tasks.task import Task, fields_without_effect

Config = dict[str, Any]
_TEST = "test_fingerprint"  # in results.json: of the rows that a point was scored on
_LABELS = (8, 4)  # the first point, and the factor from one to the next


@dataclasses.dataclass(frozen=True)
class LearningCurve:
    """The points of a learning curve.

    Attributes:
        metric: its name.
        points: ascending number of labels.
        test_rows: number of rows that all points are scored on.
        stopped: the remaining points were skipped.
    """

    metric: str
    points: list[Point]
    test_rows: int
    stopped: bool


def label_counts(largest: int, given: Sequence[int] = ()) -> list[int]:
    """Returns the numbers of labels per class of the points, ascending; 0, the last one, stands for all.

    Args:
        largest: rows of the largest class.
        given: numbers to use instead of 8, 32, 128, 512 and so on.
    """
    if given:
        return [*sorted({count for count in given if 0 < count < largest}), 0]
    counts, (count, factor) = [], _LABELS
    while count < largest:
        counts.append(count)
        count *= factor
    return [*counts, 0]


def learning_curve(config: Config, foundation: Path, workdir: Path, labels: Sequence[int], seeds: int) -> LearningCurve:
    """Trains the points that are not finished and returns the curve.

    Args:
        config: of fine-tuning, complete.
        foundation: the run that is fine-tuned.
        workdir: each point has a run in a directory of its own below.
        labels: see `label_counts`.
        seeds: runs per point; fewer where two of them make its gain clear.

    Raises:
        UserError: see `finetune`; or a field of the config that this function sets.
    """
    if config["task"]["labels_per_class"]:
        raise UserError(
            f"config.task.labels_per_class={config['task']['labels_per_class']} has no effect on a learning curve; "
            "expected 0, and --labels for the points"
        )
    task, splits = read_task(from_config(config))
    counts = label_counts(max(rows_per_class(splits).values()), labels)
    if len(counts) == 1:
        raise UserError(f"{config['data']['path']}: {len(splits.train)} training rows are too few for two points")
    configs = [_config(config, task, count) for count in counts]
    found: list[list[dict[str, Any]]] = []
    for number, one in enumerate(configs, 1):
        count = one["task"]["labels_per_class"]
        results: list[dict[str, Any]] = []
        for seed in range(seeds):
            name = f"labels-{count or 'all'}-seed-{seed}"
            say(f"learning-curve: point {number} of {len(configs)}, seed {seed + 1} of {seeds}: {workdir / name}")
            seeded = {**one, "seed": config["seed"] + seed}
            if seed or number > 1:
                # The untrained foundation is the same everywhere.
                seeded = {**seeded, "task": _without_foundation(seeded["task"], task)}
            results.append(_results(seeded, foundation, workdir / name, splits))
            if found and helped(_tuned(found[-1]), _tuned(results)):
                break
        found.append(results)
        if is_flat([_tuned(results) for results in found]):
            break
    return _curve(found, counts)


def _config(config: Config, task: Task[Any], count: int) -> Config:
    """Returns the config of a point: the fine-tuned model alone, beside baselines of labels."""
    one = copy.deepcopy(config)
    one["task"]["labels_per_class"] = count
    if isinstance(task, Classification) and one["task"]["alternatives"] and not task.multi_label:
        # At some points only, a linear model would join.
        one["task"]["ensemble"] = False
    if "task.baseline" not in fields_without_effect(type(task)):
        one["task"]["baseline"] = False
    if "task.shots" not in fields_without_effect(type(task)):
        one["task"]["shots"] = 0
    return one


def _without_foundation(section: Config, task: Task[Any]) -> Config:
    """Returns the task's section without scoring the foundation."""
    if "task.zero_shot_rows" in fields_without_effect(type(task)):
        return section
    return {**section, "zero_shot_rows": 0}


def _results(config: Config, foundation: Path, directory: Path, splits: Splits) -> dict[str, Any]:
    """Returns the `results.json` of a point, which is trained if it is not finished."""
    config = config | {"task": config["task"] | {"name": absolute_name(config["task"]["name"])}}
    train = fewer_labels(splits, config["task"]["labels_per_class"], config["seed"]).fingerprint
    test = fingerprint(splits.test)
    stored = run_on_process_zero(lambda: _finished(config, directory, train, test))
    if stored:
        return stored
    results = finetune(config, foundation, directory, quiet=True)
    run_on_process_zero(lambda: add_results(directory / NAME, lambda found: found.update({_TEST: test})))
    return results


def _finished(config: Config, directory: Path, train: str, test: str) -> dict[str, Any] | None:
    """Returns the results of a point; None: it is not finished, or has other rows or another config."""
    if not (directory / NAME).exists() or not (directory / "run.json").exists():
        return None
    record, results = open_run(directory).record, json.loads((directory / NAME).read_text())
    changes = config_changes(record.config, as_started(directory, config))
    if (record.data_fingerprint, results.get(_TEST)) != (train, test) or changes:
        return None
    # A run whose length was changed has results of the old length until it ends.
    step = results["training"]["held_out"].get("step")
    ended = step == record.config["num_steps"] or config["evaluation"]["patience"]
    return results if ended and step in saved_steps(directory) else None


def _metric(results: dict[str, Any], model: str) -> Interval | None:
    """Returns the first metric of a model; None if it does not have it."""
    first = results["first_metric"]
    figure = results["models"].get(model, {}).get(first["name"])
    return figure and Interval(figure["value"], figure["low"], figure["high"], first["better"])


def _tuned(results: Sequence[dict[str, Any]]) -> list[Interval]:
    """Returns the first metric of the fine-tuned model with each seed."""
    return [figure for one in results if (figure := _metric(one, FINE_TUNED)) is not None]


def _curve(found: Sequence[list[dict[str, Any]]], counts: Sequence[int]) -> LearningCurve:
    first = found[0][0]
    points = []
    for count, results in zip(counts, found, strict=False):
        models = {}
        for name in first["models"]:
            # The untrained foundation, which uses no labels, is scored once.
            figures = [_metric(first if name.startswith(FOUNDATION) else one, name) for one in results]
            if None not in figures:
                models[name] = [figure for figure in figures if figure is not None]
        points.append(Point(count, sum(one["train_rows"] for one in results) / len(results), models))
    stopped = len(found) < len(counts)
    return LearningCurve(first["first_metric"]["name"], points, first["held_out_rows"], stopped)
