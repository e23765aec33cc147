"""`load(RUN)`: a fine-tuned model that predicts rows without labels, of every task."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.errors import UserError
from data.columns import Row, parse_pattern
from data.labeled import Example
from data.storage.paths import at
from train.evaluation.calibration import set_threshold
from train.prediction.backends import ERROR, Backend, open_backend
from train.run.calibration import FILE, Calibration, read_calibration, read_ensemble
from train.run.record import Run, open_run
from train.settings import Settings, from_config
from train.tasks.loading import task_from_record
from train.tasks.task import Answer, AnswerOptions, Task


@dataclasses.dataclass(frozen=True)
class TaskModel:
    """A fine-tuned model that is ready to predict; `load` makes one.

    Attributes:
        directory: of its run.
        task: what it predicts.
        settings: the config of its run.
        options: what answers contain.
        backend: the model.
        calibration: how the probabilities were calibrated; None: they were not.
    """

    directory: Path
    task: Task[Any]
    settings: Settings
    options: AnswerOptions
    backend: Backend
    calibration: Calibration | None = None

    def __call__(self, inputs: Sequence[str | Row]) -> list[Answer]:
        """Returns the answer to each input: a dict with the columns that `rootstock predict` writes.

        Args:
            inputs: texts, or rows with the columns that the task reads; the target may be missing.

        Raises:
            UserError: an input lacks a column or cannot be read.
        """
        if isinstance(inputs, str):
            raise UserError(f"expected a list of texts or rows, got the text {inputs!r:.40}")
        rows = [dict(item) if isinstance(item, Mapping) else self.row_of(item) for item in inputs]
        answers = self.answer_rows(rows)
        for number, answer in enumerate(answers, 1):
            if answer[ERROR] is not None:
                raise UserError(f"input {number}: {answer[ERROR]}")
        return [{name: value for name, value in answer.items() if name != ERROR} for answer in answers]

    def row_of(self, text: str) -> Row:
        """Returns the row whose only text is `text`.

        Raises:
            UserError: the run reads several columns.
        """
        names = self.text_columns
        if len(names) != 1:
            raise UserError(f"the run reads the columns {', '.join(names)}; expected a dict of them for each input")
        return {names[0]: text}

    @property
    def text_columns(self) -> list[str]:
        """The columns that the task reads."""
        if self.task.replies:
            return ["prompt"]
        pattern = self.settings.task.input
        if "task.input" in self.task.unused_fields:
            pattern = "{tokens}"
        elif "task.context" not in self.task.unused_fields:
            pattern += self.settings.task.context
        return list(dict.fromkeys(name for name, is_column in parse_pattern(pattern) if is_column))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of an answer; the last one is the reason for which a row has none."""
        return (*self.task.answer_columns(self.options), ERROR)

    def parse(self, row: Row) -> Example:
        """Returns the example in a row.

        Raises:
            UserError: the row lacks a column or cannot be read.
        """
        return self.task.parse_input(row, self.settings.task)

    def answer_rows(self, rows: Sequence[Row]) -> list[Answer]:
        """Returns all `columns` for each row; for a row that cannot be read, None in all but the last."""
        answers: list[Answer] = [dict.fromkeys(self.columns) for _ in rows]
        examples: dict[int, Example] = {}
        for number, row in enumerate(rows):
            try:
                examples[number] = self.parse(row)
            except UserError as error:
                answers[number][ERROR] = str(error)
        for number, answer in self.backend.answers(examples).items():
            answers[number] |= answer
        return answers


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """How `load` makes answers.

    Attributes:
        top_k: number of classes per row, most likely first.
        abstain_below: leave out a prediction that is less likely than this; 0: none.
        coverage: add sets of classes, of which this share contains the right one; 0: none.
        max_new_tokens: longest generated text in tokens; 0: the run's `config.task.max_new_tokens`.
    """

    top_k: int = 1
    abstain_below: float = 0.0
    coverage: float = 0.0
    max_new_tokens: int = 0


_DEFAULTS = PredictOptions()


def load(directory: str | Path, options: PredictOptions = _DEFAULTS) -> TaskModel:
    """Returns the model of a fine-tuned run, ready to predict.

    Raises:
        UserError: not a fine-tuned run, an option that its task does not have, or a checkpoint that cannot be read.
    """
    run = open_run(at(directory))
    if run.record.stage != "finetune":
        raise UserError(
            f"--run={directory} is a pre-trained model without a task; expected a fine-tuned run, or use "
            "`rootstock generate` to continue texts"
        )
    task, settings = task_from_record(run.record.task), from_config(run.record.config)
    new_tokens = options.max_new_tokens or settings.task.max_new_tokens
    if task.replies and not options.max_new_tokens:
        # Training does not read the run's value, so it may leave no room for a conversation.
        new_tokens = min(new_tokens, settings.sequence_length // 2)
    settings = dataclasses.replace(settings, task=dataclasses.replace(settings.task, max_new_tokens=new_tokens))
    for name in ("top_k", "abstain_below", "coverage"):
        value = getattr(options, name)
        if value != getattr(_DEFAULTS, name) and name not in task.answer_options:
            raise UserError(f"--{name}={value:g} has no effect with the task of {run.directory}; leave it out")
    if options.max_new_tokens and not (task.generates or task.replies):
        raise UserError(
            f"--max_new_tokens={options.max_new_tokens} has no effect with the task of {run.directory}; leave it out"
        )
    if options.max_new_tokens >= settings.sequence_length:
        raise UserError(
            f"--max_new_tokens={options.max_new_tokens} must be less than the run's config.sequence_length "
            f"({settings.sequence_length})"
        )
    calibration = read_calibration(run)
    found = AnswerOptions(
        options.top_k,
        calibration.temperature if calibration else 1.0,
        options.abstain_below,
        _set_threshold(run, calibration, options.coverage) if options.coverage else None,
    )
    backend = open_backend(run, task, settings, found, read_ensemble(run, calibration))
    return TaskModel(run.directory, task, settings, found, backend, calibration)


def _set_threshold(run: Run, calibration: Calibration | None, coverage: float) -> float:
    if not 0.0 < coverage < 1.0:
        raise UserError(f"--coverage={coverage:g} must be between 0 and 1, such as 0.95")
    if calibration is None:
        raise UserError(
            f"--coverage={coverage:g} needs {run.directory / FILE}, which is missing or of another checkpoint; run the "
            "same `rootstock finetune` again to write it"
        )
    return set_threshold(calibration.label_probabilities, coverage)


def calibration_line(model: TaskModel) -> str:
    """Returns whether the probabilities are calibrated, "" if the answers have none that could be."""
    if not {"probability", "probabilities"} & set(model.columns) or not model.task.target_names:
        return ""
    found = model.calibration
    if found is None:
        return "the probabilities are not calibrated; running the same `rootstock finetune` again calibrates them"
    rows = f"{found.rows:,} validation rows"
    if found.weights is not None:
        shares = f"weights {found.weights.model:.2f} and {found.weights.linear:.2f}"
        return f"the run's linear SVM joins the model: {shares}, of {rows}, calibrate both together"
    if found.temperature == 1.0:
        return f"the probabilities are as the model gives them: no temperature is clearly better on {rows}"
    return f"the probabilities are calibrated: temperature {found.temperature:.3f}, of {rows}"
