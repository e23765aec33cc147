"""What a task is: data plus pure functions. Adding one is one file in this folder and one config (docs/tasks.md)."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import UserError, did_you_mean
from data.examples import Rendered
from data.labeled import Example
from data.readers import Row
from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.heads import Objective
from train.evaluation.interval import Interval
from train.settings import LossSettings, TaskSettings

# What the training rows and the config say of a task; JSON, kept in the run's `run.json`, enough for all that follows.
Facts = dict[str, Any]
# What a model says of an example: a task's own `metrics` reads it.
Prediction = Any


@dataclasses.dataclass(frozen=True)
class Untrained:
    """How a foundation model is asked without training.

    Attributes:
        prompt: (example, facts) -> (the question as text, its answer as text); examples with an answer are the shots.
        choices: facts -> the answers to choose from by likelihood; None: the model writes the answer.
        read: (answers as text, the likeliest or the written one first, facts) -> prediction.
    """

    prompt: Callable[[Example, Facts], tuple[str, str]]
    choices: Callable[[Facts], list[str]] | None
    read: Callable[[list[str], Facts], Prediction]


@dataclasses.dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        parse: (row, config.task) -> example. Raises UserError for a column that is missing or not what it should be.
        facts: (training examples, config.task) -> facts. Raises UserError where nothing can be learnt from them.
        render: (example, facts, tokenizer, T) -> segments of at most T tokens, or None: nothing to train on is left.
        objective: (architecture, facts, config.loss) -> head and loss.
        read: (example, facts, the head's output at the tokens of each segment, these, tokenizer) -> prediction;
            None: the prediction is the text that the model writes after `ask`.
        metrics: (examples, predictions, the foundation's predictions without training or None, facts) -> figures.
        show: (example, prediction or None, facts) -> as text for a person: the prediction, or what was expected.
        ask: (example, facts, tokenizer, room) -> the prompt's tokens, for tasks whose prediction is text.
        untrained: how the foundation is asked without training. None: its own language-model head is scored as it is,
            where the task trains that head (`language`), or not at all.
        guess: (training examples, facts) -> the prediction that needs no model.
        language: the head is the language model's own, so that the whole foundation is grafted.
        target_names: what integer targets stand for, where that is not the facts' "classes".
        reference: the rows hold the foundation's log-probabilities, as "reference" (see `model.task_heads.preference`).
    """

    parse: Callable[[Row, TaskSettings], Example]
    facts: Callable[[list[Example], TaskSettings], Facts]
    render: Callable[[Example, Facts, Tokenizer, int], Rendered | None]
    objective: Callable[[ModelConfig, Facts, LossSettings], Objective]
    read: Callable[[Example, Facts, tuple[np.ndarray, ...], Rendered, Tokenizer], Prediction] | None
    metrics: Callable[[list[Example], list[Prediction], list[Prediction] | None, Facts], dict[str, Interval]]
    show: Callable[[Example, Prediction | None, Facts], str]
    ask: Callable[[Example, Facts, Tokenizer, int], list[int]] | None = None
    untrained: Untrained | None = None
    guess: Callable[[list[Example], Facts], Prediction] | None = None
    language: bool = False
    target_names: tuple[str, ...] = ()
    reference: bool = False


def load(name: str) -> Task:
    """Returns the task of `train/tasks/NAME.py`.

    Raises:
        UserError: there is none.
    """
    names = sorted({module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])} - {"contract"})
    if name not in names:
        raise UserError(f"config.task.name is {name!r}{did_you_mean(name, names)}; legal: {', '.join(names)}")
    return importlib.import_module(f"train.tasks.{name}").TASK
