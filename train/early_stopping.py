"""Which evaluation was the best so far, and whether it is time to stop: read from the run's own history."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from configs.errors import UserError
from train.run.history import read_records
from train.settings import EvaluationSettings

# Figures of which less is better are called "loss", "bits_per_byte", or something that ends like these.
_LESS_IS_BETTER = ("loss", "error", "distance", "bits_per_byte")


@dataclasses.dataclass
class Selection:
    """The best value of `config.evaluation.metric`, and how many evaluations ago it was.

    It needs no place in the checkpoint: after a kill it is what the lines of metrics.jsonl up to the step say.
    """

    settings: EvaluationSettings
    best: float | None = None
    since: int = 0

    def take(self, figures: Mapping[str, float]) -> bool:
        """Takes an evaluation and returns whether it is the best so far.

        Raises:
            UserError: it has no such figure.
        """
        name = self.settings.metric
        if name not in figures:
            raise UserError(f"config.evaluation.metric is {name!r}; legal here: {', '.join(figures)}")
        value = figures[name] * (-1 if name.endswith(_LESS_IS_BETTER) else 1)
        better = self.best is None or value > self.best
        self.best, self.since = (value, 0) if better else (self.best, self.since + 1)
        return better

    @property
    def stops(self) -> bool:
        """Whether too many evaluations in a row brought nothing better."""
        return 0 < self.settings.patience <= self.since


def resume_selection(settings: EvaluationSettings, workdir: Path, step: int) -> Selection:
    """Returns the selection after `step` steps of the run in `workdir`."""
    selection = Selection(settings)
    for record in read_records(workdir) if step else []:
        if record["phase"] == "eval" and record["step"] <= step:
            selection.take(record)
    return selection
