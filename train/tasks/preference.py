"""Preference training (DPO): makes the chosen of two answers more likely, relative to the foundation."""

import dataclasses
import json
from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import numpy as np

from configs.errors import UserError
from data.columns import Row, RowRules, column, fill, find, parse_pattern, text_of
from data.conversations import Conversation, conversation, is_conversation, without_system
from data.examples import Rendered, text_segment
from data.labeled import Example
from data.templates import check_messages
from data.templates import render as render_messages
from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.heads import Objective
from model.task_heads import preference
from train.evaluation.interval import Interval, mean_interval
from train.settings import LossSettings, TaskSettings
from train.tasks.task import P, Task, group_of, router_losses, row_rules

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
        *("task.center", "loss.z_loss", "loss.label_smoothing"),
    )

    @classmethod
    def parse(cls, row: Row, settings: TaskSettings) -> Example:
        """Returns fields {"prompt", "chosen", "rejected"}, all text, or {"messages", "chosen", "rejected"}.

        A prompt may be a conversation in the column of `config.task.input`, or the turns before the two answers where
        these are conversations.
        """
        rules = row_rules(settings)
        before: list[Conversation] = []
        answers = {}
        for name in (CHOSEN, REJECTED):
            *turns, answer = _answer(column(row, name, "a column of that name"), name, rules)
            answers[name] = answer["content"]
            before.append(turns)
        if before[0] != before[1]:
            raise UserError(f"the turns before the answers differ in {CHOSEN!r} and {REJECTED!r}; expected one prompt")
        prompt = before[0] or _prompt(row, settings.input, rules)
        if isinstance(prompt, str):
            content = group = prompt
            fields: dict[str, object] = {"prompt": prompt}
        else:
            check_messages([*prompt, {"role": "assistant", "content": answers[CHOSEN]}], settings.template)
            content, group = json.dumps(prompt, ensure_ascii=False), without_system(prompt)
            fields = {"messages": prompt}
        return Example("\n".join([content, *answers.values()]), group_of(row, settings, group), fields | answers)

    @classmethod
    def fit(cls, examples: Sequence[Example], settings: TaskSettings) -> Self:
        """Returns the task with its template and `beta`."""
        return cls(settings.template, settings.beta)

    def encode(self, example: Example, tokenizer: Tokenizer, length: int) -> Rendered | None:
        """Returns two segments, chosen and rejected, of at most half a row each, or None if an answer does not fit."""
        segments, cut, fields = [], False, example.fields
        prompt = fields["messages"] if "messages" in fields else [{"role": "user", "content": fields["prompt"]}]
        for name in (CHOSEN, REJECTED):
            messages = [*prompt, {"role": "assistant", "content": fields[name]}]
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
        return preference(model, self.beta, loss.chunk, router_losses(loss))

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


def _answer(value: object, name: str, rules: RowRules) -> Conversation:
    """Returns the turns in a column that ends with an answer: a text, or a conversation."""
    if is_conversation(value):
        turns = conversation(value, name, rules)
        if turns[-1]["role"] != "assistant":
            raise UserError(f"{name!r} ends with the {turns[-1]['role']}'s message; expected the assistant's")
    else:
        turns = [{"role": "assistant", "content": text_of(value, repr(name), rules)}]
    if not turns[-1]["content"].strip():
        raise UserError(f"{name!r} has an empty answer; expected a text")
    return turns


def _prompt(row: Row, pattern: str, rules: RowRules) -> str | Conversation:
    """Returns the filled-in pattern or, if it is one column that holds a conversation, that conversation."""
    parts = parse_pattern(pattern)
    found = find(row, parts[0][0]) if len(parts) == 1 and parts[0][1] else ()
    if found and is_conversation(found[0]):
        return conversation(found[0], parts[0][0], rules)
    return fill(pattern, row, "config.task.input", rules)
