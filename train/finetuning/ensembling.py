"""The row of the table in which a linear model of the same texts joins the fine-tuned model."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from train.console import say
from train.evaluation.calibration import Decisions
from train.evaluation.ensemble import Ensemble, fit_weights
from train.finetuning.confidence import calibrate, confidence_json, score_confidence
from train.finetuning.finetune_run import Cost, FinetuneRun, Scored, score
from train.tasks.classification import LINEAR, Classification, LinearClassifier
from train.tasks.task import Fitted

ENSEMBLE = "fine-tuned + TF-IDF"
# Weights that a run does not store: 512 MB.
_MOST_WEIGHTS = 1 << 28


def joined_by_linear_model(run: FinetuneRun, table: Sequence[Scored], learned: Mapping[str, Fitted]) -> list[Scored]:
    """Returns the row of both models together, or none if the validation rows do not show that it is better.

    Args:
        run: the run.
        table: the rows before, the fine-tuned model last.
        learned: what `alternatives` learned.
    """
    tuned, task, fitted = table[-1], run.data.task, learned.get(LINEAR)
    if not (run.settings.task.ensemble and isinstance(task, Classification) and isinstance(fitted, LinearClassifier)):
        return []
    if tuned.decisions is None or tuned.confidence is None:
        return []
    if (size := fitted.model.weights_FV.size) > _MOST_WEIGHTS:
        say(f"finetune: the linear SVM has {size:,} weights, too many to store; it does not join the fine-tuned model")
        return []
    validation, test = tuned.decisions
    examples = {name: run.data.parts[name].examples for name in ("validation", "test")}
    margins = {
        name: fitted.model.margins([example.fields["text"] for example in part], task.classes)
        for name, part in examples.items()
    }
    weights = fit_weights(validation, margins["validation"])
    if weights is None:
        say("finetune: the validation rows do not show that the linear SVM helps the fine-tuned model; it is left out")
        return []
    ensemble = Ensemble(fitted.model, weights)
    both = [
        Decisions(ensemble.combined(alone.logits, margins[name]), alone.labels, alone.rows)
        for name, alone in (("validation", validation), ("test", test))
    ]
    ranked = [[task.classes[i] for i in np.argsort(-row, kind="stable")] for row in both[1].logits]
    found = calibrate(task, both[0], tuned.confidence.calibration.step, weights)
    scored = score(run, ENSEMBLE, examples["test"], ranked)
    confidence = score_confidence(task, found, both[1], examples["test"])
    costs = [row.cost for row in table if row.name in (LINEAR, tuned.name)]
    return [dataclasses.replace(scored, cost=_sum(costs), confidence=confidence, ensemble=ensemble)]


def ensemble_json(row: Scored) -> dict[str, Any]:
    """Returns what `results.json` contains of the row."""
    assert row.ensemble is not None and row.confidence is not None
    return {"weights": row.ensemble.weights._asdict(), "calibration": confidence_json(row.confidence)}


def _sum(costs: Sequence[Cost | None]) -> Cost | None:
    """Returns the cost of several rows together; None if one of them is unknown."""
    known = [cost for cost in costs if cost is not None]
    if len(known) < len(costs):
        return None
    return Cost(sum(cost.seconds for cost in known), sum(cost.cpu_seconds for cost in known))
