"""How sure a fine-tuned model is: a temperature from the validation rows, and what it does on held-out rows."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from data.labeled import Example
from train.evaluation import calibration
from train.evaluation.calibration import Answered, Bin, Decisions, Sets
from train.evaluation.ensemble import Weights
from train.evaluation.interval import Interval, as_json
from train.run.calibration import Calibration
from train.tasks.classification import Classification
from train.tasks.task import Task

COVERAGES = (0.9, 0.95, 0.99)


@dataclasses.dataclass(frozen=True)
class Scores:
    """How good the probabilities are on held-out rows at one temperature."""

    brier: Interval
    calibration_error: Interval
    bins: list[Bin]


@dataclasses.dataclass(frozen=True)
class Confidence:
    """How sure a model is on held-out rows.

    Attributes:
        calibration: from the validation rows.
        before: without the temperature.
        after: with it.
        answered: what a threshold for answers would do; empty unless `rootstock predict` has one for the task.
        sets: {coverage that was asked for: the sets of classes}; empty unless there is one class per row.
        out_of_scope: area under the ROC curve of 1 - the highest probability of a class in scope, as the score of a row
            of `config.task.out_of_scope`; None without such rows, or without others.
    """

    calibration: Calibration
    before: Scores
    after: Scores
    answered: list[Answered]
    sets: dict[float, Sets]
    out_of_scope: Interval | None


def calibrate(task: Task[Any], validation: Decisions, step: int, weights: Weights | None = None) -> Calibration:
    """Returns what the validation rows tell.

    Args:
        task: the task.
        validation: decisions of the validation rows; with `weights`, of both models together, calibrated already.
        step: of the checkpoint.
        weights: of a linear model that joins the model.
    """
    temperature = calibration.fit_temperature(validation) if weights is None else 1.0
    single = isinstance(task, Classification) and not task.multi_label
    found = calibration.label_probabilities(validation, temperature) if single else []
    return Calibration(temperature, int(validation.rows.max()) + 1, found, step, weights)


def score_confidence(task: Task[Any], found: Calibration, test: Decisions, examples: Sequence[Example]) -> Confidence:
    """Returns how good calibrated probabilities are on held-out rows."""
    before, after = (
        Scores(
            calibration.brier_score(test, temperature),
            calibration.calibration_error(test, temperature),
            calibration.reliability(test, temperature),
        )
        for temperature in (1.0, found.temperature)
    )
    sets = {}
    for coverage in COVERAGES if found.label_probabilities else ():
        threshold = calibration.set_threshold(found.label_probabilities, coverage)
        sets[coverage] = calibration.score_sets(test, found.temperature, threshold)
    answered = calibration.answered(test, found.temperature) if "abstain_below" in task.answer_options else []
    return Confidence(found, before, after, answered, sets, _out_of_scope(task, found.temperature, test, examples))


def _out_of_scope(task: Task[Any], temperature: float, test: Decisions, examples: Sequence[Example]) -> Interval | None:
    """Returns how well the probabilities of the classes in scope tell rows out of scope from others."""
    if not isinstance(task, Classification) or not task.out_of_scope:
        return None
    outside = np.array([task.is_out_of_scope(example) for example in examples])
    scope = np.array(task.classes) != task.out_of_scope
    score = 1.0 - test.probabilities(temperature)[:, scope].max(-1)
    return calibration.rank_area(score, outside) if 0 < outside.sum() < len(outside) else None


def confidence_json(found: Confidence) -> dict[str, Any]:
    """Returns what `results.json` contains."""

    def scores(s: Scores) -> dict[str, Any]:
        figures = as_json({"brier": s.brier, "calibration_error": s.calibration_error})
        return figures | {"reliability": [b._asdict() for b in s.bins]}

    sets = {f"{coverage:g}": as_json(s._asdict()) for coverage, s in found.sets.items()}
    return {
        "temperature": found.calibration.temperature,
        "validation_rows": found.calibration.rows,
        "before": scores(found.before),
        "after": scores(found.after),
        **({"answered": [a._asdict() for a in found.answered]} if found.answered else {}),
        **({"sets": sets} if sets else {}),
        **(as_json({"out_of_scope_auroc": found.out_of_scope}) if found.out_of_scope else {}),
    }
