"""Predictions of a task model for encoded rows."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from configs.errors import UserError
from data.labeled import Example
from data.templates import end_of_turn
from data.tokenizer import Tokenizer
from model.adapt import merge
from model.config import ModelConfig
from model.heads import Objective
from model.transformer import Params
from train.evaluation.calibration import Decisions, joined
from train.evaluation.ensemble import Ensemble, Join
from train.evaluation.scoring import head_outputs
from train.finetuning.rows import TaskRows
from train.generation.decode import generate_text
from train.generation.language_model import GenerationOptions, LanguageModel
from train.settings import Settings
from train.tasks.classification import Classification
from train.tasks.task import Prediction, Task


@dataclasses.dataclass(frozen=True)
class Predictor:
    """Everything that a task's predictions need besides parameters and rows.

    Attributes:
        task: the task.
        objective: the model with its head.
        model: its architecture.
        tokenizer: of the model.
        settings: config of the run; `adapt`, `batch_size` and `task.max_new_tokens` are used.
        mesh: the devices it runs on.
        ensemble: the linear model that joins a classifier; None: it is alone.
    """

    task: Task[Any]
    objective: Objective
    model: ModelConfig
    tokenizer: Tokenizer
    settings: Settings
    mesh: Mesh
    ensemble: Ensemble | None = None

    def __call__(self, params: Params, part: TaskRows) -> list[Prediction]:
        """Returns one prediction per example, in order."""
        return self.with_decisions(params, part)[0]

    def with_decisions(self, params: Params, part: TaskRows) -> tuple[list[Prediction], Decisions | None]:
        """Returns one prediction per example, and the choices of classes that they come from, if there are any."""
        if self.task.generates:
            merged = merge(params, self.settings.adapt)
            prompts = [task_prompt(self.task, self.tokenizer, self.settings, e) for e in part.examples]
            return written(self._language_model(merged), self.settings, prompts), None
        found: dict[int, Prediction] = {}
        choices: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        join = joined_outputs(self.ensemble, self.task, part.examples)
        for i, outputs in head_outputs(self.objective, params, part.rows, self.settings.batch_size, self.mesh):
            read = (part.examples[i], join(i, outputs), part.encoded[i], self.tokenizer)
            found[i] = self.task.decode(*read)
            if (chosen := self.task.decisions(*read)) is not None:
                choices[i] = chosen
        order = range(len(part.examples))
        return [found[i] for i in order], joined([choices[i] for i in order]) if choices else None

    def _language_model(self, merged: Params) -> LanguageModel:
        template = self.settings.task.template
        eos_id = end_of_turn(template, self.tokenizer)
        return LanguageModel(self.model, merged, self.tokenizer, template, eos_id, self.mesh)


def joined_outputs(ensemble: Ensemble | None, task: Task[Any], examples: Sequence[Example]) -> Join:
    """Returns a function that adds the linear model, if there is one, to the head's outputs for an example."""
    if ensemble is None:
        return lambda _, outputs: outputs
    assert isinstance(task, Classification)
    return ensemble.joined([example.fields["text"] for example in examples], task.classes)


def task_prompt(task: Task[Any], tokenizer: Tokenizer, settings: Settings, example: Example) -> list[int]:
    """Returns the tokens after which a model writes its answer to an example.

    Raises:
        UserError: `config.task.max_new_tokens` leaves no room for a prompt in `config.sequence_length`, or the example
            does not fit.
    """
    max_new_tokens, length = settings.task.max_new_tokens, settings.sequence_length
    if max_new_tokens >= length:
        raise UserError(
            f"config.task.max_new_tokens={max_new_tokens} must be less than config.sequence_length={length}"
        )
    return task.prompt_tokens(example, tokenizer, length - max_new_tokens)


def is_cut(prompt: Sequence[int], task: Task[Any], tokenizer: Tokenizer, example: Example) -> bool:
    """Returns whether a prompt of an example lacks a part of it."""
    return len(prompt) < len(task.prompt_tokens(example, tokenizer, sys.maxsize))


def written(language_model: LanguageModel, settings: Settings, prompts: Sequence[list[int]]) -> list[str]:
    """Returns the text that a model writes after each prompt, greedily."""
    options = GenerationOptions(settings.task.max_new_tokens)
    return [text.strip() for text in generate_text(language_model, prompts, options)]
