"""Predictions of a task model for packed rows."""

import dataclasses

from jax.sharding import Mesh

from configs.errors import UserError
from data.templates import end_of_turn
from data.tokenizer import Tokenizer
from model.adapt import Adaptation, merge
from model.config import ModelConfig
from model.heads import Objective
from model.transformer import Params
from train.evaluation.scoring import head_outputs
from train.finetuning.rows import TaskRows
from train.generation.decode import complete
from train.tasks.task import Facts, Prediction, Task


@dataclasses.dataclass(frozen=True)
class Predictor:
    """How a task's predictions are made, whatever the parameters.

    Attributes:
        task: what is predicted.
        facts: of the task.
        objective: the model with its head.
        adaptation: how it was trained.
        model: its architecture.
        tokenizer: of the model.
        batch_size: rows at once.
        max_new_tokens: of written text.
        mesh: where it runs.
    """

    task: Task
    facts: Facts
    objective: Objective
    adaptation: Adaptation
    model: ModelConfig
    tokenizer: Tokenizer
    batch_size: int
    max_new_tokens: int
    mesh: Mesh

    def __call__(self, params: Params, part: TaskRows) -> list[Prediction]:
        """Returns a prediction an example, in their order."""
        if self.task.read is None:
            return list(self._write(params, part))
        found: dict[int, Prediction] = {}
        for example, outputs in head_outputs(self.objective, params, part.rows, self.batch_size, self.mesh):
            rendered = part.rendered[example]
            found[example] = self.task.read(part.examples[example], self.facts, outputs, rendered, self.tokenizer)
        return [found[example] for example in range(len(part.examples))]

    def _write(self, params: Params, part: TaskRows) -> list[Prediction]:
        assert self.task.ask is not None
        room = part.rows.sequence_length - self.max_new_tokens
        if room < 1:
            raise UserError(
                f"config.task.max_new_tokens is {self.max_new_tokens}; "
                f"legal: less than config.sequence_length {part.rows.sequence_length}"
            )
        prompts = [self.task.ask(example, self.facts, self.tokenizer, room) for example in part.examples]
        plain = merge(params, self.adaptation)
        end = end_of_turn(self.facts["template"], self.tokenizer)
        texts = complete(self.model, plain, prompts, self.max_new_tokens, self.tokenizer, self.mesh, eos_id=end)
        return [text.strip() for text in texts]
