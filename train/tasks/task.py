"""The base class of a task, and what tasks share. docs/tasks.md shows how to write one."""

import abc
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

import numpy as np

from configs.errors import UserError
from data.columns import Row, RowRules, fill, parse_pattern
from data.examples import Rendered
from data.labeled import Example
from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.heads import Objective, RouterLosses
from train.evaluation.interval import Interval
from train.settings import LossSettings, TaskSettings

Attention = Literal["causal", "bidirectional"]
P = TypeVar("P")  # the type of a task's predictions
# What `rootstock predict` writes for a row: column -> JSON value.
Answer = dict[str, Any]
# A prediction of any task; only the task that made it reads it.
Prediction = Any
# examples -> a prediction for each; their targets must not be read
Fitted = Callable[[Sequence[Example]], list[Any]]
# (training, validation examples) -> what was learned from them
Alternative = Callable[[Sequence[Example], Sequence[Example]], Fitted]


@dataclasses.dataclass(frozen=True)
class AnswerOptions:
    """What the answers of `rootstock predict` contain.

    Attributes:
        top_k: number of classes per row, most likely first.
        temperature: logits are divided by this before they become probabilities (`train.evaluation.calibration`).
        abstain_below: a less likely prediction is left out; 0: none is.
        set_threshold: classes of at least this probability are in a row's set of classes; None: there are no sets.
    """

    top_k: int = 1
    temperature: float = 1.0
    abstain_below: float = 0.0
    set_threshold: float | None = None


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC, Generic[P]):
    """What a head is trained to predict, and how predictions are judged.

    A task is a frozen dataclass. Its fields hold what the task takes from the config and the training rows, such as the
    names of the classes. They are saved in `run.json`, so each must be an int, float, bool, str or `Literal`, or a
    tuple of one of these.

    Attributes:
        trains_lm_head: the task trains the language-model head instead of a new head.
        default_attention: what `config.task.attention="auto"` stands for where all weights train (`attention_of`).
        generates: a prediction is the text generated after `prompt_tokens`; `decode` is not used.
        needs_reference: the objective reads the foundation's log-probabilities from the batch (see
            `model.task_heads.preference`).
        zero_shot: how the foundation is scored before fine-tuning. "prompt": it answers `question`; "head": its
            language-model head is scored by `decode`; "none": not at all.
        prompt_fields: the names in braces that `config.task.prompt` must have, where `zero_shot` is "prompt".
        baseline_name: the name of `baseline_prediction` in the table.
        replies: `rootstock predict` writes the text generated after `prompt_tokens`, which `metrics` do not read.
        ensembles: a linear model of the same texts may join the model (`config.task.ensemble`).
        list_separator: what stands between the values of a list in a CSV file of predictions.
        unused_fields: config fields that this task does not read, e.g. "task.beta"; setting one is an error. Fields
            that follow from the attributes above need not be listed: see `fields_without_effect`.
        renamed_fields: old name -> new name of fields that older `run.json` files contain.
    """

    trains_lm_head: ClassVar[bool] = False
    default_attention: ClassVar[Attention] = "causal"
    generates: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False
    zero_shot: ClassVar[Literal["none", "prompt", "head"]] = "none"
    prompt_fields: ClassVar[tuple[str, ...]] = ("input",)
    baseline_name: ClassVar[str] = "most frequent answer"
    replies: ClassVar[bool] = False
    ensembles: ClassVar[bool] = False
    list_separator: ClassVar[str] = "|"
    unused_fields: ClassVar[tuple[str, ...]] = ()
    renamed_fields: ClassVar[Mapping[str, str]] = {}

    @classmethod
    @abc.abstractmethod
    def parse(cls, row: Row, settings: TaskSettings) -> Example:
        """Returns the example in a row.

        Raises:
            UserError: a column is missing or has the wrong type.
        """

    @classmethod
    @abc.abstractmethod
    def fit(cls, examples: Sequence[Example], settings: TaskSettings) -> Self:
        """Returns the task for these training examples.

        Raises:
            UserError: the examples cannot be used for training, such as those of a single class.
        """

    @abc.abstractmethod
    def encode(self, example: Example, tokenizer: Tokenizer, length: int) -> Rendered | None:
        """Returns segments of at most `length` tokens together, or None if no target fits."""

    def text_tokens(self, example: Example, tokenizer: Tokenizer, length: int) -> list[list[int]]:
        """Returns texts to pre-train on (`config.adapt.task_text_steps`): the content, of at most `length` tokens."""
        return [[tokenizer.bos_id, *tokenizer.encode(example.content), tokenizer.eos_id][:length]]

    @abc.abstractmethod
    def objective(self, model: ModelConfig, loss: LossSettings) -> Objective:
        """Returns the model with its head, and the loss."""

    @abc.abstractmethod
    def metrics(self, examples: Sequence[Example], predictions: Sequence[P]) -> dict[str, Interval]:
        """Returns the metrics of the predictions, each with its interval."""

    @abc.abstractmethod
    def expected(self, example: Example) -> str:
        """Returns the expected answer as text."""

    @abc.abstractmethod
    def format(self, example: Example, prediction: P) -> str:
        """Returns a prediction as text."""

    def decode(self, example: Example, outputs: tuple[np.ndarray, ...], encoded: Rendered, tokenizer: Tokenizer) -> P:
        """Returns the prediction for an example.

        Args:
            example: the example.
            outputs: the head's outputs at the tokens of each segment.
            encoded: what `encode` returned.
            tokenizer: of the model.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define decode")

    @classmethod
    def parse_input(cls, row: Row, settings: TaskSettings) -> Example:
        """Returns the example in a row whose target is unknown: `encode` and `prompt_tokens` accept it.

        Raises:
            UserError: see `parse`. A task that does not define this method expects the target as well.
        """
        return cls.parse(row, settings)

    @property
    def answer_options(self) -> tuple[str, ...]:
        """The options of `rootstock predict` that have an effect: some of "top_k", "abstain_below" and "coverage"."""
        return ()

    def answer_columns(self, options: AnswerOptions) -> tuple[str, ...]:
        """Returns the names of the columns that `answer` returns."""
        return ("prediction",)

    def answer(
        self, example: Example, outputs: tuple[np.ndarray, ...], encoded: Rendered, tokenizer: Tokenizer,
        options: AnswerOptions,
    ) -> Answer:  # fmt: skip
        """Returns what `rootstock predict` writes for an example; the arguments are those of `decode`."""
        return {"prediction": self.format(example, self.decode(example, outputs, encoded, tokenizer))}

    def decisions(
        self, example: Example, outputs: tuple[np.ndarray, ...], encoded: Rendered, tokenizer: Tokenizer
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns (logits, labels) of the choices of a class in an example (`train.evaluation.calibration`).

        None if the task chooses none, so that its predictions have no probabilities to calibrate. The arguments are
        those of `decode`.
        """
        return None

    def prompt_tokens(self, example: Example, tokenizer: Tokenizer, max_prompt_len: int) -> list[int]:
        """Returns the tokens after which the model generates its answer, for tasks with `generates`."""
        raise NotImplementedError(f"{type(self).__name__} does not define prompt_tokens")

    def compare(self, predictions: Sequence[P], zero_shot: Sequence[P]) -> dict[str, Interval]:
        """Returns metrics relative to the foundation's predictions, for tasks whose `zero_shot` is "head"."""
        return {}

    def baseline_prediction(self, examples: Sequence[Example]) -> P | None:
        """Returns the best constant prediction given the training examples, or None if the task has none."""
        return None

    def alternatives(self) -> "dict[str, Alternative]":
        """Returns what a user would do instead of fine-tuning a model, name -> how it is learned from examples."""
        return {}

    def question(self, example: Example) -> tuple[str, str]:
        """Returns (question, answer) as text, for tasks whose `zero_shot` is "prompt"."""
        raise NotImplementedError(f"{type(self).__name__} does not define question")

    def choices(self) -> list[str]:
        """Returns the answers that the foundation chooses from by likelihood; empty: it generates its answer."""
        return []

    def read_answers(self, answers: list[str]) -> P:
        """Returns the prediction for the foundation's answers: the choices by likelihood, or one generated text."""
        raise NotImplementedError(f"{type(self).__name__} does not define read_answers")

    def unseen(self, example: Example) -> list[str]:
        """Returns the labels of an example that were not in the training rows, so that the model cannot predict them.

        Only rows that are scored have such labels; each counts as an error of the model.
        """
        return []

    @property
    def target_names(self) -> tuple[str, ...]:
        """Names of the integer targets, or of the columns of target vectors; empty: targets are tokens or numbers."""
        return ()


def row_rules(settings: TaskSettings) -> RowRules:
    """Returns how the rows of a config become examples."""
    first = settings.row_rules == 1
    return RowRules(settings.missing, clean=not first, first_version=first)


def group_of(row: Row, settings: TaskSettings, default: str) -> str:
    """Returns the group of a row: `config.task.group` filled in, or the default where it is empty.

    Raises:
        UserError: see `data.columns.fill`.
    """
    if not settings.group:
        return default
    group = fill(settings.group, row, "config.task.group", row_rules(settings))
    # Where missing values are empty texts, rows without a group would otherwise be one group.
    return group if group.strip() or settings.row_rules == 1 else default


def filled_prompt(pattern: str, **fields: str) -> str:
    """Returns `config.task.prompt` with an example's texts; names that are none of them stay (`check_prompt`)."""
    return "".join(fields.get(text, f"{{{text}}}") if named else text for text, named in parse_pattern(pattern))


def check_prompt(cls: type[Task[Any]], settings: TaskSettings) -> None:
    """Raises UserError if the foundation would be scored with a prompt that lacks a text, or names an unknown one."""
    if cls.zero_shot != "prompt" or not settings.zero_shot_rows:
        return
    names = {text for text, named in parse_pattern(settings.prompt) if named}
    if names != set(cls.prompt_fields):
        expected = " and ".join(f"{{{name}}}" for name in cls.prompt_fields)
        raise UserError(f"config.task.prompt={settings.prompt!r}; expected text with {expected} and no other names")


def pooling_of(settings: TaskSettings) -> Literal["last", "mean"]:
    """Returns which state a head reads: `config.task.pooling`, where "auto" follows from the attention."""
    if settings.pooling != "auto":
        return settings.pooling
    return "mean" if settings.attention == "bidirectional" else "last"


def router_losses(loss: LossSettings) -> RouterLosses:
    """Returns the weights of the losses of routers, for a task's objective."""
    return RouterLosses(loss.router_z_loss, loss.balance_loss)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the names without repetition: integers by value, so that '2' is before '10', others alphabetically."""
    unique = sorted(set(names))
    if all(re.fullmatch(r"0|-?[1-9][0-9]*", name) for name in unique):
        unique.sort(key=int)
    return tuple(unique)


def fields_without_effect(cls: type[Task[Any]]) -> set[str]:
    """Returns the config fields that change nothing when a model is fine-tuned for a task."""
    unused = set(cls.unused_fields)
    if cls.zero_shot != "prompt":
        unused.add("task.prompt")
    if cls.alternatives is Task.alternatives:
        unused.add("task.alternatives")
    if not cls.ensembles:
        unused.add("task.ensemble")
    if cls.zero_shot == "none":
        unused |= {"task.zero_shot_rows", "task.shots"}
    if cls.needs_reference:
        unused |= {"task.baseline", "task.shots"}
    if not cls.generates and cls.zero_shot != "prompt":
        unused.add("task.max_new_tokens")
    return unused
