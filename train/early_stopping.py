"""The best evaluation so far and early stopping, both recomputed from the run's history after a resume."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

from configs.errors import UserError
from train.run.history import read_records
from train.settings import EvaluationSettings

# Lower is better for losses, whose names end with one of these, before the source in "loss/books". The others are for
# evaluations that were recorded without "better".
_LOWER_IS_BETTER = ("loss", "error", "distance", "bits_per_byte")


@dataclasses.dataclass
class Selection:
    """The best value of `config.evaluation.metric` and the number of evaluations since.

    Checkpoints do not contain it: `resume_selection` recomputes it from metrics.jsonl.
    """

    settings: EvaluationSettings
    best: float | None = None
    since: int = 0

    def take(self, metrics: Mapping[str, float], better: Mapping[str, str]) -> bool:
        """Adds an evaluation and returns whether it is the best so far.

        Args:
            metrics: name -> value; any number is better than NaN, which metrics.jsonl has as None.
            better: name -> "higher" or "lower", of the metrics that have a direction of their own.

        Raises:
            UserError: the evaluation does not compute `config.evaluation.metric`.
        """
        name = self.settings.metric
        if name not in metrics:
            raise UserError(f"config.evaluation.metric={name!r} is not computed; expected one of: {', '.join(metrics)}")
        value = math.nan if metrics[name] is None else metrics[name]
        by_name = "lower" if name.partition("/")[0].endswith(_LOWER_IS_BETTER) else "higher"
        sign = -1 if better.get(name, by_name) == "lower" else 1
        improved = self.best is None or sign * value > sign * self.best or math.isnan(self.best) > math.isnan(value)
        self.best, self.since = (value, 0) if improved else (self.best, self.since + 1)
        return improved

    @property
    def stops(self) -> bool:
        """Whether `config.evaluation.patience` consecutive evaluations brought no improvement."""
        return 0 < self.settings.patience <= self.since


def resume_selection(settings: EvaluationSettings, workdir: Path, step: int) -> Selection:
    """Returns the selection of the run in `workdir` after `step` steps."""
    selection = Selection(settings)
    for record in read_records(workdir, "eval") if step else []:
        if record["phase"] == "eval" and record["step"] <= step:
            selection.take(record, record.get("better", {}))
    return selection
