"""A fine-tuning run whose rows are read and encoded, and a row of its table."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jax.sharding import Mesh

from data.labeled import Example
from model.heads import Objective
from train.evaluation.calibration import Decisions
from train.evaluation.ensemble import Ensemble
from train.evaluation.interval import Interval
from train.finetuning.confidence import Confidence
from train.finetuning.rows import TaskData
from train.run.record import Run, RunRecord
from train.settings import Settings
from train.tasks.task import Prediction


@dataclasses.dataclass(frozen=True)
class FinetuneRun:
    """A fine-tuning run whose rows are read and encoded.

    Attributes:
        workdir: directory of the run.
        record: the contents of its `run.json`.
        settings: its config.
        foundation: the run that is fine-tuned, with this run's execution options.
        data: the task and its rows.
        mesh: the devices it trains on.
        source: the run whose parameters training starts from: the foundation, or what `task_text` makes of it.
    """

    workdir: Path
    record: RunRecord
    settings: Settings
    foundation: Run
    data: TaskData
    mesh: Mesh
    source: Run

    def objective(self, adapted: bool = True) -> Objective:
        """Returns what the run trains; see `Run.objective`."""
        return Run(self.workdir, self.record).objective(adapted)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a row of the table took.

    Attributes:
        seconds: wall time.
        cpu_seconds: of all threads of this process.
    """

    seconds: float
    cpu_seconds: float


@contextlib.contextmanager
def measured() -> Iterator[Callable[[], Cost]]:
    """Yields a function that returns the cost since the block began."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield lambda: Cost(time.perf_counter() - wall, time.process_time() - cpu)


@dataclasses.dataclass(frozen=True)
class Scored:
    """A row of the table: a model and its metrics on held-out examples.

    Attributes:
        name: of the model.
        examples: the held-out examples.
        predictions: one per example.
        metrics: over all of them.
        cost: what it took to train and score it; None: unknown, because an earlier process did a part.
        decisions: (of the validation rows, of the held-out rows) the choices of classes, for the fine-tuned model.
        confidence: how sure the model is, for the fine-tuned model of a task with classes.
        ensemble: the linear model that joins the fine-tuned one in this row.
    """

    name: str
    examples: list[Example]
    predictions: list[Prediction]
    metrics: dict[str, Interval]
    cost: Cost | None = None
    decisions: tuple[Decisions, Decisions] | None = None
    confidence: Confidence | None = None
    ensemble: Ensemble | None = None


def score(
    run: FinetuneRun,
    name: str,
    examples: list[Example],
    predictions: list[Prediction],
    zero_shot: Sequence[Prediction] | None = None,
) -> Scored:
    """Returns the row of a model; `zero_shot` are the foundation's predictions, for tasks that compare with them."""
    task = run.data.task
    metrics = task.metrics(examples, predictions)
    if zero_shot is not None:
        metrics |= task.compare(predictions, zero_shot)
    return Scored(name, examples, predictions, metrics)
