"""`calibration.json` of a run: what `rootstock predict` needs to give calibrated probabilities and sets of classes."""

import dataclasses
import json
from pathlib import Path

from configs.errors import UserError
from data.storage.files import write_atomically
from train.checkpoint.manager import saved_steps
from train.run.record import Run

FILE = "calibration.json"


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What was learned from the validation rows.

    Attributes:
        temperature: logits are divided by it.
        rows: number of validation rows.
        label_probabilities: with one class per row, the probability of the right class of each, lowest first.
        step: of the checkpoint.
    """

    temperature: float
    rows: int
    label_probabilities: list[float]
    step: int


def write_calibration(directory: Path, found: Calibration) -> None:
    """Writes `calibration.json`."""
    write_atomically(directory / FILE, json.dumps(dataclasses.asdict(found)))


def read_calibration(run: Run) -> Calibration | None:
    """Returns the calibration of a run, or None if it has none, or one of another checkpoint.

    Raises:
        UserError: the file is corrupt.
    """
    path = run.directory / FILE
    if not path.exists():
        return None
    try:
        found = Calibration(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is corrupt: {error}; delete it, or run the same `rootstock finetune` again") from None
    return found if found.step == newest_step(run) else None


def newest_step(run: Run) -> int:
    """Returns the step of the parameters that the run's predictions are made with."""
    return next(iter(saved_steps(run.directory, run.checkpoint_dir)), 0)
