"""The best evaluation so far and early stopping, both recomputed from the run's history after a resume."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from configs.errors import UserError
from train.run.history import read_records
from train.settings import EvaluationSettings

# Lower is better for metrics whose name ends with one of these, before the source in "loss/books"; higher is better for
# all others.
_LOWER_IS_BETTER = ("loss", "error", "distance", "bits_per_byte")


@dataclasses.dataclass
class Selection:
    """The best value of `config.evaluation.metric` and the number of evaluations since.

    Checkpoints do not contain it: `resume_selection` recomputes it from metrics.jsonl.
    """

    settings: EvaluationSettings
    best: float | None = None
    since: int = 0

    def take(self, metrics: Mapping[str, float]) -> bool:
        """Adds an evaluation and returns whether it is the best so far.

        Raises:
            UserError: the evaluation does not compute `config.evaluation.metric`.
        """
        name = self.settings.metric
        if name not in metrics:
            raise UserError(f"config.evaluation.metric={name!r} is not computed; expected one of: {', '.join(metrics)}")
        value = metrics[name] * (-1 if name.partition("/")[0].endswith(_LOWER_IS_BETTER) else 1)
        better = self.best is None or value > self.best
        self.best, self.since = (value, 0) if better else (self.best, self.since + 1)
        return better

    @property
    def stops(self) -> bool:
        """Whether `config.evaluation.patience` consecutive evaluations brought no improvement."""
        return 0 < self.settings.patience <= self.since


def resume_selection(settings: EvaluationSettings, workdir: Path, step: int) -> Selection:
    """Returns the selection of the run in `workdir` after `step` steps."""
    selection = Selection(settings)
    for record in read_records(workdir, "eval") if step else []:
        if record["phase"] == "eval" and record["step"] <= step:
            selection.take(record)
    return selection
