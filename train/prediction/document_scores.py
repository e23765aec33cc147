"""A fine-tuned run as a function that scores documents: a class's probability, or the number of a regression."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.errors import UserError
from data.storage.paths import at
from train.checkpoint.manager import saved_steps
from train.prediction.task_model import PredictOptions, TaskModel, load
from train.run.calibration import FILE as CALIBRATION_FILE
from train.run.record import open_run
from train.tasks.classification import Classification
from train.tasks.loading import task_from_record
from train.tasks.regression import Regression
from train.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class DocumentScorer:
    """Scores documents; it pickles as its path, and each process loads the model once.

    Attributes:
        run: directory of a fine-tuned run of a classification with one label per row, or of a regression.
        class_name: the class whose probability is the score; "" for a regression.
        fingerprint: identifies the model in the directory, which may be trained again.
    """

    run: str
    class_name: str = ""
    fingerprint: str = ""

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """Returns the score of each text; NaN where the model cannot read a text."""
        model = _load(self.run)
        return [_score(answer, self.class_name) for answer in model.answer_rows([model.row_of(t) for t in texts])]


@functools.lru_cache(1)
def _load(run: str) -> TaskModel:
    task = _task(run)
    return load(run, PredictOptions(top_k=len(task.classes) if isinstance(task, Classification) else 1))


def _task(run: str) -> Task[Any]:
    record = open_run(at(run)).record
    if record.stage != "finetune":
        raise UserError(f"--score_with={run} is a pre-trained model without a task; expected a fine-tuned classifier")
    return task_from_record(record.task)


def _score(answer: dict[str, Any], class_name: str) -> float:
    if not class_name:
        return float("nan") if answer["prediction"] is None else float(answer["prediction"])
    names = {answer[key]: answer[key.replace("prediction", "probability")] for key in answer if "prediction" in key}
    return float(names[class_name]) if class_name in names else float("nan")


def document_scorer(run: str, class_name: str) -> DocumentScorer:
    """Returns the scorer of a run, after checking that it can score.

    Raises:
        UserError: not a fine-tuned run, a task without such a score, or a class that it does not have.
    """
    task = _task(run)
    if isinstance(task, Regression):
        if class_name:
            raise UserError(f"--score_class={class_name}: the run {run} is a regression; leave it out")
    elif not isinstance(task, Classification) or task.multi_label:
        raise UserError(f"--score_with={run} is not a classifier with one label per row or a regression")
    elif class_name not in task.classes:
        listed = ", ".join(task.classes[:20])
        raise UserError(f"--score_class={class_name!r} is not a class of {run}; expected one of {listed}")
    return DocumentScorer(run, class_name, fingerprint(at(run)))


def fingerprint(directory: Path) -> str:
    """Returns a hash of what determines predictions: config, data, lineage, the step of the checkpoint, calibration."""
    record, calibration = directory / "run.json", directory / CALIBRATION_FILE
    learned = calibration.read_bytes() if calibration.exists() else b""
    return hashlib.sha256(record.read_bytes() + json.dumps(saved_steps(directory)[:1]).encode() + learned).hexdigest()
