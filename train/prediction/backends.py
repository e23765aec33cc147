"""What answers examples: a head whose outputs are decoded, or a language model that writes text."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from configs.errors import UserError
from data.examples import Rendered
from data.labeled import Example
from data.tokenizer import Tokenizer
from model.heads import Objective
from model.transformer import Params
from train.distributed.mesh import spread_mesh
from train.distributed.placement import row_parts
from train.evaluation.ensemble import Ensemble
from train.evaluation.scoring import head_outputs
from train.finetuning.predictor import is_cut, joined_outputs, task_prompt, written
from train.finetuning.rows import TaskRows, with_reference
from train.finetuning.score_rows import load_reference
from train.generation.language_model import LanguageModel
from train.prediction.buckets import batches
from train.run.language_model import open_language_model
from train.run.record import Run
from train.settings import Settings
from train.tasks.task import Answer, AnswerOptions, Task
from train.trees import boxed_params

# The column of the reason for which a row has no prediction.
ERROR = "error"
# Of an answer to a text that is longer than the rows the model was trained on, so that a part was left out: True.
TRUNCATED = "truncated"


class Backend(Protocol):
    """Answers examples of a task."""

    @property
    def rows_at_once(self) -> int:
        """Examples to answer together; few where each takes long, so that the first answers come soon."""

    def answers(self, examples: Mapping[int, Example]) -> dict[int, Answer]:
        """Returns the answer to each example, or its `ERROR`."""


@dataclasses.dataclass(frozen=True)
class Head:
    """A backbone with a task's head.

    Attributes:
        task: what it predicts.
        objective: the model with its head, adapters merged.
        params: its parameters, on `mesh`.
        tokenizer: its tokenizer.
        length: maximum number of tokens of an example.
        mesh: the devices it runs on.
        options: what answers contain.
        reference: the model that it was fine-tuned from, for tasks that need it.
        ensemble: the linear model that joins a classifier; None: it is alone.
    """

    task: Task[Any]
    objective: Objective
    params: Params
    tokenizer: Tokenizer
    length: int
    mesh: Mesh
    options: AnswerOptions
    reference: LanguageModel | None
    ensemble: Ensemble | None
    rows_at_once: int = 2048

    def answers(self, examples: Mapping[int, Example]) -> dict[int, Answer]:
        """Returns the answer to each example, with `TRUNCATED` if only its beginning was read, or its `ERROR`."""
        encoded: dict[int, Rendered] = {}
        found: dict[int, Answer] = {}
        for number, example in examples.items():
            try:
                made = self.task.encode(example, self.tokenizer, self.length)
            except UserError as error:
                found[number] = {ERROR: str(error)}
                continue
            if made is None:
                found[number] = {ERROR: f"nothing to predict fits config.sequence_length={self.length} tokens"}
            else:
                encoded[number] = made
        order = list(encoded)
        segments = [encoded[number].segments for number in order]
        with jax.set_mesh(self.mesh):
            for places, rows, size in batches(segments, self.tokenizer.pad_id, row_parts(self.mesh)):
                numbers = [order[place] for place in places]
                part = TaskRows([examples[n] for n in numbers], [encoded[n] for n in numbers], rows, 0)
                if self.reference is not None:
                    part = with_reference(part, self.reference, size)
                join = joined_outputs(self.ensemble, self.task, part.examples)
                for i, outputs in head_outputs(self.objective, self.params, part.rows, size, self.mesh):
                    read = (part.examples[i], join(i, outputs), part.encoded[i], self.tokenizer)
                    found[numbers[i]] = self.task.answer(*read, self.options)
                    if part.encoded[i].cut:
                        found[numbers[i]] |= {TRUNCATED: True}
        return found


@dataclasses.dataclass(frozen=True)
class Writer:
    """A language model that writes its answers.

    Attributes:
        task: what it was fine-tuned for.
        language_model: the model.
        settings: the config of its run.
    """

    task: Task[Any]
    language_model: LanguageModel
    settings: Settings
    rows_at_once: int = 64

    def answers(self, examples: Mapping[int, Example]) -> dict[int, Answer]:
        """Returns the text that the model writes for each example, with `TRUNCATED` as for a head, or its `ERROR`."""
        tokenizer, prompts, found = self.language_model.tokenizer, dict[int, list[int]](), dict[int, Answer]()
        for number, example in examples.items():
            try:
                prompts[number] = task_prompt(self.task, tokenizer, self.settings, example)
            except UserError as error:
                found[number] = {ERROR: str(error)}
        with jax.set_mesh(self.language_model.mesh):
            texts = written(self.language_model, self.settings, list(prompts.values()))
        for (number, prompt), text in zip(prompts.items(), texts, strict=True):
            found[number] = {"prediction": text}
            if is_cut(prompt, self.task, tokenizer, examples[number]):
                found[number] |= {TRUNCATED: True}
        return found


def open_backend(
    run: Run, task: Task[Any], settings: Settings, options: AnswerOptions, ensemble: Ensemble | None
) -> Backend:
    """Returns what answers the examples of a run's task, on all devices that its parameters can be sharded over.

    Raises:
        UserError: see `Run.load`.
    """
    if task.generates or task.replies:
        return Writer(task, open_language_model(run.directory), settings)
    objective = run.objective(adapted=False)
    mesh, tokenizer = spread_mesh(boxed_params(objective)), run.tokenizer()
    with jax.set_mesh(mesh):
        params = run.load_merged(mesh, ("backbone", "head"))
        reference = load_reference(run, tokenizer, mesh) if task.needs_reference else None
    return Head(task, objective, params, tokenizer, settings.sequence_length, mesh, options, reference, ensemble)
