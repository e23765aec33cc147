"""Preference training (DPO): makes the chosen of two answers more likely, relative to the foundation."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import numpy as np

from data.examples import Rendered, text_segment
from data.labeled import Example, column, fill
from data.readers import Row
from data.templates import render as render_messages
from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.heads import Objective
from model.task_heads import preference
from train.evaluation.interval import Interval, mean_interval
from train.settings import LossSettings, TaskSettings
from train.tasks.generation import texts_of
from train.tasks.task import P, Task

CHOSEN, REJECTED = "chosen", "rejected"


@dataclasses.dataclass(frozen=True)
class AnswerPair(Task[P]):
    """Base class of tasks on two answers to one prompt, of which one was chosen.

    Attributes:
        template: the chat template.
        beta: strength of the pull toward the foundation (DPO).
    """

    template: str
    beta: float

    unused_fields: ClassVar[tuple[str, ...]] = (
        *("task.context", "task.target", "task.pooling", "task.multi_label", "task.class_weights", "task.metrics"),
        *("loss.z_loss", "loss.label_smoothing"),
    )

    @classmethod
    def parse(cls, row: Row, settings: TaskSettings) -> Example:
        """Returns fields {"prompt", "chosen", "rejected"}, all text."""
        prompt = fill(settings.input, row, "config.task.input")
        answers = {name: texts_of(column(row, name, "a column of that name"), name)[0] for name in (CHOSEN, REJECTED)}
        group = fill(settings.group, row, "config.task.group") if settings.group else prompt
        return Example("\n".join([prompt, *answers.values()]), group, {"prompt": prompt, **answers})

    @classmethod
    def fit(cls, examples: Sequence[Example], settings: TaskSettings) -> Self:
        """Returns the task with its template and `beta`."""
        return cls(settings.template, settings.beta)

    def encode(self, example: Example, tokenizer: Tokenizer, length: int) -> Rendered | None:
        """Returns two segments, chosen and rejected, of at most half a row each, or None if an answer does not fit."""
        segments, cut = [], False
        for name in (CHOSEN, REJECTED):
            messages = [
                {"role": "user", "content": example.fields["prompt"]},
                {"role": "assistant", "content": example.fields[name]},
            ]
            rendered = render_messages(messages, self.template, tokenizer, length // 2 + 1)
            segment = text_segment(rendered.tokens, rendered.mask)
            if not segment["weights"].any():
                return None
            segments.append(segment)
            cut |= rendered.cut
        return Rendered(tuple(segments), cut)

    def expected(self, example: Example) -> str:
        """Returns the chosen answer."""
        return example.fields[CHOSEN]


@dataclasses.dataclass(frozen=True)
class Preference(AnswerPair[tuple[float, float]]):
    """Predicts (log-probability of chosen minus rejected in nats, the same under the foundation)."""

    trains_lm_head: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True
    zero_shot: ClassVar[Literal["none", "prompt", "head"]] = "head"

    def objective(self, model: ModelConfig, loss: LossSettings) -> Objective:
        """Returns DPO on the language-model head."""
        return preference(model, self.beta, loss.chunk)

    def decode(
        self, example: Example, outputs: tuple[np.ndarray, ...], encoded: Rendered, tokenizer: Tokenizer
    ) -> tuple[float, float]:
        """Returns the margins in nats: of this model, of the foundation."""
        chosen, rejected = (
            (nll * segment["weights"]).sum() for nll, segment in zip(outputs, encoded.segments, strict=True)
        )
        before = [segment["reference"].sum() for segment in encoded.segments]
        return float(rejected - chosen), float(before[0] - before[1])

    def metrics(self, examples: Sequence[Example], predictions: Sequence[tuple[float, float]]) -> dict[str, Interval]:
        """Returns how often chosen is more likely than rejected, and by how many nats the margin grew."""
        now, before = np.array(predictions).T
        return {"accuracy": mean_interval(now > 0), "margin_gained": mean_interval(now - before)}

    def format(self, example: Example, prediction: tuple[float, float]) -> str:
        """Returns the margin."""
        return f"margin {prediction[0]:+.2f} nats"
