"""A number that a text stands for: a score, a price, a rating."""

import math

import numpy as np

from configs.errors import UserError
from data.examples import Rendered, labeled_segment
from data.labeled import Example, column, fill
from data.readers import Row
from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.heads import Objective
from model.task_heads import regressor
from train.evaluation import metrics as figures
from train.evaluation.interval import Interval
from train.settings import LossSettings, TaskSettings
from train.tasks.task import Facts, Prediction, Task


def parse(row: Row, task: TaskSettings) -> Example:
    """Returns fields {"text", "value"}."""
    text = fill(task.input, row, "config.task.input")
    found = column(row, task.target, "config.task.target")
    try:
        value = float(found)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{task.target!r} is {found!r:.60}; legal: a finite number")
    group = fill(task.group, row, "config.task.group") if task.group else text
    return Example(text, group, {"text": text, "value": value})


def facts(examples: list[Example], task: TaskSettings) -> Facts:
    """Returns mean and standard deviation of the values, which the head is spared.

    Raises:
        UserError: one value only.
    """
    values = [example.fields["value"] for example in examples]
    if np.std(values) == 0.0:
        raise UserError(f"config.data.path has one value only ({values[0]:g}); legal: at least two")
    return {"mean": float(np.mean(values)), "std": float(np.std(values)), "pooling": task.pooling}


def render(example: Example, facts: Facts, tokenizer: Tokenizer, length: int) -> Rendered:
    """Returns `bos text eos` with the standardised value as the target of its last token."""
    ids = tokenizer.encode(example.fields["text"])
    tokens = [tokenizer.bos_id, *ids[: length - 2], tokenizer.eos_id]
    target = (example.fields["value"] - facts["mean"]) / facts["std"]
    last = len(tokens) - 1
    return Rendered((labeled_segment(tokens, {last: target}, {last: 1.0}, np.float32),), len(ids) > length - 2)


def objective(model: ModelConfig, facts: Facts, loss: LossSettings) -> Objective:
    """Returns one linear output and its squared error."""
    return regressor(model, facts["pooling"])


def read(
    example: Example, facts: Facts, outputs: tuple[np.ndarray, ...], rendered: Rendered, tokenizer: Tokenizer
) -> Prediction:
    """Returns the value."""
    return float(outputs[0][-1]) * facts["std"] + facts["mean"]


def metrics(
    examples: list[Example], predictions: list[Prediction], untrained: list[Prediction] | None, facts: Facts
) -> dict[str, Interval]:
    """Returns R2, mean absolute error and Spearman's rank correlation."""
    return figures.regression([example.fields["value"] for example in examples], predictions)


def show(example: Example, prediction: Prediction | None, facts: Facts) -> str:
    """Returns the value."""
    return f"{example.fields['value'] if prediction is None else prediction:.4g}"


def guess(examples: list[Example], facts: Facts) -> Prediction:
    """Returns the mean."""
    return facts["mean"]


TASK = Task(
    parse=parse, facts=facts, render=render, objective=objective, read=read, metrics=metrics, show=show, guess=guess
)
