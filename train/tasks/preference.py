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
from data.templates import Rendered as RenderedChat
from data.templates import check_messages, conversation_template, render_answers
from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.heads import Objective
from model.task_heads import preference
from train.evaluation.calibration import sigmoid
from train.evaluation.interval import Interval, mean_interval
from train.settings import LossSettings, TaskSettings
from train.tasks.task import Answer, AnswerOptions, P, Task, group_of, router_losses, row_rules

CHOSEN, REJECTED = "chosen", "rejected"
ANSWER = "answer"  # the column of a single answer to score


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
        *("task.context", "task.target", "task.pooling", "task.multi_label"),
        *("task.class_weights", "task.out_of_scope", "task.metrics"),
        *("task.center", "loss.z_loss", "loss.label_smoothing"),
    )

    @classmethod
    def parse(cls, row: Row, settings: TaskSettings) -> Example:
        """Returns fields {"prompt", "chosen", "rejected"}, all text, or {"messages", "chosen", "rejected"}.

        A prompt may be a conversation in the column of `config.task.input`, or the turns before the two answers where
        these are conversations.
        """
        return cls._parsed(row, (CHOSEN, REJECTED), settings)

    @classmethod
    def parse_input(cls, row: Row, settings: TaskSettings) -> Example:
        """Returns the example of two answers, or of one in the column "answer", which is read as a chosen one."""
        return cls._parsed(row, (ANSWER,) if ANSWER in row else (CHOSEN, REJECTED), settings)

    @classmethod
    def _parsed(cls, row: Row, columns: tuple[str, ...], settings: TaskSettings) -> Example:
        rules = row_rules(settings)
        before: list[Conversation] = []
        answers = {}
        for name in columns:
            *turns, answer = _answer(column(row, name, "a column of that name"), name, rules)
            answers[CHOSEN if name == ANSWER else name] = answer["content"]
            before.append(turns)
        if before[0] != before[-1]:
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
        return cls(conversation_template(settings.template), settings.beta)

    def encode(self, example: Example, tokenizer: Tokenizer, length: int) -> Rendered | None:
        """Returns two segments, chosen and rejected, of at most half a row each, or None if an answer does not fit.

        Both have the same prompt, and only the last turn in the loss. One segment for an example of one answer.
        """
        rendered = self._rendered(example, tokenizer, length // 2 + 1)
        segments = tuple(text_segment(each.tokens, each.mask) for each in rendered)
        if not all(segment["weights"].any() for segment in segments):
            return None
        return Rendered(segments, any(each.cut for each in rendered))

    def text_tokens(self, example: Example, tokenizer: Tokenizer, length: int) -> list[list[int]]:
        """Returns the prompt in the template with each of its answers."""
        return [each.tokens for each in self._rendered(example, tokenizer, length)]

    def _rendered(self, example: Example, tokenizer: Tokenizer, length: int) -> list[RenderedChat]:
        fields = example.fields
        prompt = fields["messages"] if "messages" in fields else [{"role": "user", "content": fields["prompt"]}]
        answers = [fields[name] for name in (CHOSEN, REJECTED) if name in fields]
        return render_answers(prompt, answers, self.template, tokenizer, length)

    def scores(self, outputs: tuple[np.ndarray, ...], encoded: Rendered) -> list[float]:
        """Returns the score of each answer; their difference is the log-odds that the first one is preferred."""
        raise NotImplementedError(f"{type(self).__name__} does not define scores")

    def answer_columns(self, options: AnswerOptions) -> tuple[str, ...]:
        """Returns "prediction" (chosen or rejected), "probability" (that of chosen), "score" and "rejected_score"."""
        return ("prediction", "probability", "score", "rejected_score")

    def answer(
        self, example: Example, outputs: tuple[np.ndarray, ...], encoded: Rendered, tokenizer: Tokenizer,
        options: AnswerOptions,
    ) -> Answer:  # fmt: skip
        """Returns the scores of the answers and which one is preferred; of one answer, its score alone."""
        score, *other = self.scores(outputs, encoded)
        if not other:
            return {"prediction": None, "probability": None, "score": score, "rejected_score": None}
        chosen = float(sigmoid(np.float64(score - other[0])))
        found = CHOSEN if chosen > 0.5 else REJECTED
        return {"prediction": found, "probability": round(chosen, 6), "score": score, "rejected_score": other[0]}

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

    def scores(self, outputs: tuple[np.ndarray, ...], encoded: Rendered) -> list[float]:
        """Returns DPO's implicit rewards: beta times the log-probability relative to the foundation's, in nats."""
        pairs = zip(outputs, encoded.segments, strict=True)
        return [self.beta * float(-(nll * part["weights"]).sum() - part["reference"].sum()) for nll, part in pairs]

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
