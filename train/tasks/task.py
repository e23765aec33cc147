"""The base class of a task, and how a task is found by name, by file, or in a run's `run.json`.

docs/tasks.md shows how to write one.
"""

import abc
import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

import numpy as np

from configs.errors import UserError, did_you_mean
from configs.schema import build
from data.columns import Row, RowRules, fill
from data.examples import Rendered
from data.labeled import Example
from data.storage.paths import is_url
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


# (training, validation, held-out examples) -> a prediction for each held-out example; its target must not be read.
Alternative = Callable[[Sequence[Example], Sequence[Example], Sequence[Example]], list[Any]]


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
        baseline_name: the name of `baseline_prediction` in the table.
        replies: `rootstock predict` writes the text generated after `prompt_tokens`, which `metrics` do not read.
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
    baseline_name: ClassVar[str] = "most frequent answer"
    replies: ClassVar[bool] = False
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
        """Returns what a user would do instead of fine-tuning a model, name -> its predictions."""
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
    return fill(settings.group, row, "config.task.group", row_rules(settings)) if settings.group else default


def attention_of(settings: TaskSettings, method: str) -> Attention:
    """Returns which tokens a task's model attends to: `config.task.attention`, with "auto" decided.

    Frozen weights were trained with causal attention, so "auto" keeps it where the layers' weights are frozen.

    Args:
        settings: `config.task`.
        method: `config.adapt.method`.

    Raises:
        UserError: the task trains a language-model head, which would see the tokens that it predicts.
    """
    cls = load_task(settings.name)
    if cls.trains_lm_head and settings.attention == "bidirectional":
        raise UserError(
            f"config.task.attention='bidirectional' needs a head that does not write text, but "
            f"config.task.name={settings.name!r} trains a language model; expected 'auto' or 'causal'"
        )
    if settings.attention != "auto":
        return settings.attention
    return cls.default_attention if method == "full" and not cls.trains_lm_head else "causal"


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


def is_file(name: str) -> bool:
    """Returns whether `config.task.name` is the path of a file."""
    return name.endswith(".py") or "/" in name


def absolute_name(name: str) -> str:
    """Returns `config.task.name` with the path of a file made absolute."""
    return str(Path(name).expanduser().absolute()) if is_file(name) and not is_url(name) else name


def load_task(name: str) -> type[Task[Any]]:
    """Returns the task class of `train/tasks/NAME.py`, or of the file at path `name`.

    Raises:
        UserError: the task is unknown, or the file is missing, cannot be imported or does not define one task.
    """
    if is_url(name):
        raise UserError(f"config.task.name={name!r}: Python files are read from this machine only; copy it here")
    if is_file(name):
        path = Path(absolute_name(name))
        if not path.is_file():
            raise UserError(
                f"config.task.name={name!r} is not a file; expected a Python file that defines a subclass of Task"
            )
        return _task_of(_import_file(path, path.stat().st_mtime_ns), f"config.task.name={name!r}")
    names = sorted({module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])} - {"task"})
    if name not in names:
        raise UserError(
            f"config.task.name={name!r} is unknown{did_you_mean(name, names)}; "
            f"expected one of {', '.join(names)}, or the path of a Python file"
        )
    return _task_of(importlib.import_module(f"train.tasks.{name}"), name)


@functools.lru_cache(maxsize=32)
def _import_file(path: Path, modified_ns: int) -> ModuleType:
    """Returns the module of a file; `modified_ns` makes an edited file a new one."""
    name = f"rootstock_task_{path.stem}_{hashlib.sha256(f'{path} {modified_ns}'.encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up the module of a class there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        if isinstance(error, SyntaxError):
            line = error.lineno
        else:
            line = next(
                (f.lineno for f in reversed(traceback.extract_tb(error.__traceback__)) if f.filename == str(path)), 1
            )
        text = " ".join(str(error).split())
        raise UserError(f"{path}, line {line}: {type(error).__name__}: {text}") from None
    return module


def _task_of(module: ModuleType, source: str) -> type[Task[Any]]:
    """Returns the one task class that a module defines; base classes that leave methods undefined do not count."""
    defined = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Task) and value.__module__ == module.__name__
    ]
    complete = [cls for cls in defined if not inspect.isabstract(cls)]
    if len(complete) == 1:
        return complete[0]
    if complete:
        names = ", ".join(cls.__name__ for cls in complete)
        raise UserError(f"{source} defines several subclasses of Task ({names}); expected one")
    if defined:
        missing = ", ".join(sorted(defined[-1].__abstractmethods__))
        raise UserError(f"{source}: class {defined[-1].__name__} does not define {missing}")
    raise UserError(f"{source} does not define a subclass of Task; expected one, see docs/tasks.md")


def fields_without_effect(cls: type[Task[Any]]) -> set[str]:
    """Returns the config fields that change nothing when a model is fine-tuned for a task."""
    unused = set(cls.unused_fields)
    if cls.zero_shot != "prompt":
        unused.add("task.prompt")
    if cls.alternatives is Task.alternatives:
        unused.add("task.alternatives")
    if cls.zero_shot == "none":
        unused |= {"task.zero_shot_rows", "task.shots"}
    if cls.needs_reference:
        unused |= {"task.baseline", "task.shots"}
    if not cls.generates and cls.zero_shot != "prompt":
        unused.add("task.max_new_tokens")
    return unused


def task_to_record(name: str, task: Task[Any]) -> dict[str, Any]:
    """Returns a task as `run.json` stores it: its name, or the absolute path of its file, and its fields."""
    fields = {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(task).items()}
    return {"name": absolute_name(name), **fields}


def task_from_record(record: Mapping[str, Any]) -> Task[Any]:
    """Returns the task stored in a `run.json`.

    Raises:
        UserError: its file is missing, or the class no longer has the stored fields.
    """
    name = record["name"]
    if is_file(name) and not Path(name).is_file():
        raise UserError(
            f"the run's task is defined in {name}, which is missing; "
            "restore the file, or set task.name in run.json to its new path"
        )
    cls = load_task(name)
    fields = {cls.renamed_fields.get(key, key): value for key, value in record.items() if key != "name"}
    return build(cls, fields, f"the task {name!r} in run.json")
