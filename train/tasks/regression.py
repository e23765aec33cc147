"""Text regression: a number for each text, such as a score, a price or a rating."""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import numpy as np

from configs.errors import UserError
from data.columns import Row, RowRules, column, described, fill, text_of
from data.examples import Rendered, labeled_segment
from data.labeled import Example
from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.heads import Objective
from model.task_heads import regressor
from train.evaluation import metrics as scores
from train.evaluation.interval import Interval
from train.settings import LossSettings, TaskSettings
from train.tasks.task import (
    Answer,
    AnswerOptions,
    Attention,
    Task,
    group_of,
    pooling_of,
    router_losses,
    row_rules,
)


@dataclasses.dataclass(frozen=True)
class Regression(Task[float]):
    """Predicts a number in the units of the data.

    Attributes:
        mean: of the training values; 0 with `config.task.center=False`.
        std: root mean square of the training values around `mean`; the head is trained on (value - mean) / std.
        pooling: which state the head reads.
    """

    mean: float
    std: float
    pooling: Literal["last", "mean"]

    default_attention: ClassVar[Attention] = "bidirectional"
    baseline_name: ClassVar[str] = "mean of the training values"
    unused_fields: ClassVar[tuple[str, ...]] = (
        *("task.context", "task.multi_label", "task.class_weights", "task.out_of_scope"),
        *("task.template", "task.metrics", "task.beta"),
        *("loss.z_loss", "loss.label_smoothing", "loss.chunk"),
    )

    @classmethod
    def parse(cls, row: Row, settings: TaskSettings) -> Example:
        """Returns fields {"text", "value"}."""
        rules = row_rules(settings)
        text = fill(settings.input, row, "config.task.input", rules)
        value = _number(column(row, settings.target, "config.task.target"), settings.target, rules)
        return Example(text, group_of(row, settings, text), {"text": text, "value": value})

    @classmethod
    def parse_input(cls, row: Row, settings: TaskSettings) -> Example:
        """Returns fields {"text", "value": 0}."""
        text = fill(settings.input, row, "config.task.input", row_rules(settings))
        return Example(text, text, {"text": text, "value": 0.0})

    @classmethod
    def fit(cls, examples: Sequence[Example], settings: TaskSettings) -> Self:
        """Returns the task with the mean and standard deviation of the values.

        Raises:
            UserError: all values are equal.
        """
        values = [example.fields["value"] for example in examples]
        if np.ptp(values) == 0.0:
            raise UserError(f"config.data.path contains one value only ({values[0]:g}); expected at least two")
        if settings.center:
            return cls(float(np.mean(values)), float(np.std(values)), pooling_of(settings))
        return cls(0.0, float(np.sqrt(np.mean(np.square(values)))), pooling_of(settings))

    def encode(self, example: Example, tokenizer: Tokenizer, length: int) -> Rendered:
        """Returns `bos text eos` with the standardized value as the target of its last token."""
        ids = tokenizer.encode(example.fields["text"])
        tokens = [tokenizer.bos_id, *ids[: length - 2], tokenizer.eos_id]
        target = (example.fields["value"] - self.mean) / self.std
        last = len(tokens) - 1
        return Rendered((labeled_segment(tokens, {last: target}, {last: 1.0}, np.float32),), len(ids) > length - 2)

    def objective(self, model: ModelConfig, loss: LossSettings) -> Objective:
        """Returns one linear output with the squared error."""
        return regressor(model, self.pooling, router_losses(loss))

    def decode(
        self, example: Example, outputs: tuple[np.ndarray, ...], encoded: Rendered, tokenizer: Tokenizer
    ) -> float:
        """Returns the predicted value in the units of the data."""
        return float(outputs[0][-1]) * self.std + self.mean

    def answer(
        self, example: Example, outputs: tuple[np.ndarray, ...], encoded: Rendered, tokenizer: Tokenizer,
        options: AnswerOptions,
    ) -> Answer:  # fmt: skip
        """Returns the predicted value in the units of the data."""
        return {"prediction": self.decode(example, outputs, encoded, tokenizer)}

    def metrics(self, examples: Sequence[Example], predictions: Sequence[float]) -> dict[str, Interval]:
        """Returns R2, mean absolute error and Spearman's rank correlation."""
        return scores.regression([example.fields["value"] for example in examples], predictions)

    def expected(self, example: Example) -> str:
        """Returns the value."""
        return self.format(example, example.fields["value"])

    def format(self, example: Example, prediction: float) -> str:
        """Returns the value."""
        return f"{prediction:.4g}"

    def baseline_prediction(self, examples: Sequence[Example]) -> float:
        """Returns the mean."""
        return float(np.mean([example.fields["value"] for example in examples]))


def _number(value: object, name: str, rules: RowRules) -> float:
    written = "" if isinstance(value, bool) else text_of(value, repr(name), rules)
    try:
        number = float(written)
    except ValueError:
        number = math.nan
    # Python reads 1_000 as a number.
    if not math.isfinite(number) or "_" in written:
        raise UserError(f"{name!r} is {described(value)}; expected a finite number")
    return number
