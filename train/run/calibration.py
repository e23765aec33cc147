"""What `rootstock predict` needs beside the model: calibration, sets of classes, and a linear model that joins it.

`calibration.json` of a run has the numbers, `linear_model.npz` the linear model.
"""

import dataclasses
import json
from pathlib import Path

from configs.errors import UserError, one_line
from data.storage.files import write_atomically
from train.checkpoint.manager import saved_steps
from train.evaluation.ensemble import Ensemble, Weights
from train.evaluation.linear_text import read_linear_text
from train.run.record import Run

FILE = "calibration.json"
LINEAR_FILE = "linear_model.npz"


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What was learned from the validation rows.

    Attributes:
        temperature: logits are divided by it.
        rows: number of validation rows.
        label_probabilities: with one class per row, the probability of the right class of each, lowest first.
        step: of the checkpoint.
        weights: of the model and of the linear model that joins it, see `train.evaluation.ensemble`; None: it is alone.
    """

    temperature: float
    rows: int
    label_probabilities: list[float]
    step: int
    weights: Weights | None = None


def write_calibration(directory: Path, found: Calibration, ensemble: Ensemble | None = None) -> None:
    """Writes `calibration.json` and, if a linear model joins the model, `linear_model.npz`."""
    if ensemble is not None:
        write_atomically(directory / LINEAR_FILE, ensemble.linear.to_bytes())
    write_atomically(directory / FILE, json.dumps(dataclasses.asdict(found)))
    if ensemble is None:
        (directory / LINEAR_FILE).unlink(missing_ok=True)


def read_calibration(run: Run) -> Calibration | None:
    """Returns the calibration of a run, or None if it has none, or one of another checkpoint.

    Raises:
        UserError: the file is corrupt.
    """
    path = run.directory / FILE
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text())
        weights = values.get("weights")
        found = Calibration(
            float(values["temperature"]),
            int(values["rows"]),
            [float(probability) for probability in values["label_probabilities"]],
            int(values["step"]),
            Weights(*map(float, weights)) if weights else None,
        )
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        found_instead = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(
            f"{path} is corrupt: {found_instead}; delete it, or run the same `rootstock finetune` again"
        ) from None
    return found if found.step == newest_step(run) else None


def read_ensemble(run: Run, found: Calibration | None) -> Ensemble | None:
    """Returns the linear model that joins a run's model, None if the model is alone.

    Raises:
        UserError: its file is missing or corrupt.
    """
    if found is None or found.weights is None:
        return None
    path = run.directory / LINEAR_FILE
    if not path.is_file():
        raise UserError(
            f"{path} is missing, the linear model that {path.with_name(FILE)} has weights for; restore it, or run the "
            "same `rootstock finetune` again to write it"
        )
    return Ensemble(read_linear_text(path.read_bytes(), str(path)), found.weights)


def newest_step(run: Run) -> int:
    """Returns the step of the parameters that the run's predictions are made with."""
    return next(iter(saved_steps(run.directory, run.checkpoint_dir)), 0)
