"""Selection of the best evaluation, and early stopping."""

import dataclasses
import json

import pytest

from configs import default
from train.early_stopping import Selection, resume_selection
from train.settings import from_config


def settings(metric, patience=0):
    evaluation = from_config(default.get_config().to_dict()).evaluation
    return dataclasses.replace(evaluation, metric=metric, patience=patience)


@pytest.mark.parametrize(
    ("metric", "improves"),
    [("loss", [True, False, True]), ("accuracy", [True, True, False]), ("bits_per_byte", [True, False, True])],
)
def test_lower_loss_and_higher_accuracy_are_better(metric, improves):
    selection = Selection(settings(metric))
    assert [selection.take({metric: value}, {}) for value in (0.5, 0.7, 0.3)] == improves


@pytest.mark.parametrize(
    ("metric", "better", "improves"),
    [("mse", "lower", [True, False, True]), ("distance", "higher", [True, True, False])],
)
def test_a_metric_of_a_task_has_the_direction_of_its_interval(metric, better, improves):
    selection = Selection(settings(metric))
    assert [selection.take({metric: value}, {metric: better}) for value in (0.5, 0.7, 0.3)] == improves


def test_any_number_is_better_than_an_undefined_metric():
    selection = Selection(settings("spearman"))
    values = (None, float("nan"), -0.5, float("nan"), 0.1)
    assert [selection.take({"spearman": value}, {}) for value in values] == [True, False, True, False, True]


def test_patience_counts_consecutive_evaluations():
    selection = Selection(settings("accuracy", patience=2))
    stops = []
    for value in (0.5, 0.4, 0.6, 0.6, 0.1):
        selection.take({"accuracy": value}, {})
        stops.append(selection.stops)
    assert stops == [False, False, False, False, True]


def test_resumed_run_restores_the_best_metric(tmp_path):
    lines = [{"step": step, "phase": "eval", "loss": loss} for step, loss in ((2, 3.0), (4, 1.0), (6, 2.0), (8, 0.5))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 1')
    selection = resume_selection(settings("loss"), tmp_path, 6)
    assert (selection.best, selection.since) == (1.0, 1)
    assert resume_selection(settings("loss"), tmp_path, 0).best is None


def test_resumed_run_reads_which_direction_is_better(tmp_path):
    values = ((2, 3.0), (4, 1.0), (6, 2.0))
    lines = [{"step": step, "phase": "eval", "mse": mse, "better": {"mse": "lower"}} for step, mse in values]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    selection = resume_selection(settings("mse"), tmp_path, 6)
    assert (selection.best, selection.since) == (1.0, 1)
