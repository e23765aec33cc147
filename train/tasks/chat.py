"""Multi-turn conversations. Trains the language-model head on the assistant's turns."""

import dataclasses
import json
from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import numpy as np

from configs.errors import UserError
from data.columns import Row
from data.conversations import messages_of, prompt_of, without_system
from data.examples import Rendered
from data.labeled import Example
from data.templates import check_messages, conversation_template
from data.templates import render as render_messages
from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.heads import Objective, language_model
from train.evaluation.interval import Interval, bootstrap, mean_interval
from train.settings import LossSettings, TaskSettings
from train.tasks.generation import encode_messages
from train.tasks.task import Task, group_of, router_losses, row_rules


@dataclasses.dataclass(frozen=True)
class Chat(Task[tuple[float, float]]):
    """Predicts the assistant's turns; a prediction is (their loss in nats, their number of tokens).

    Attributes:
        template: the chat template.
    """

    template: str

    trains_lm_head: ClassVar[bool] = True
    replies: ClassVar[bool] = True
    zero_shot: ClassVar[Literal["none", "prompt", "head"]] = "head"
    unused_fields: ClassVar[tuple[str, ...]] = (
        *("task.input", "task.context", "task.pooling", "task.multi_label"),
        *("task.class_weights", "task.out_of_scope", "task.metrics"),
        *("task.beta", "task.center"),
    )

    @classmethod
    def parse(cls, row: Row, settings: TaskSettings) -> Example:
        """Returns fields {"messages": [{"role", "content"}]} of messages, or of an instruction and its answer."""
        rules = row_rules(settings)
        messages = messages_of(row, settings.target, rules)
        if not any(message["role"] == "assistant" for message in messages):
            raise UserError("the row has no assistant turn; expected at least one message with role 'assistant'")
        check_messages(messages, settings.template)
        content = json.dumps([[message["role"], message["content"]] for message in messages], ensure_ascii=False)
        group = messages[0]["content"] if rules.first_version else without_system(messages)
        return Example(content, group_of(row, settings, group), {"messages": messages})

    @classmethod
    def parse_input(cls, row: Row, settings: TaskSettings) -> Example:
        """Returns fields {"messages"} that end with the user's last turn."""
        messages = prompt_of(row, settings.target, row_rules(settings))
        check_messages(messages, settings.template, prompt=True)
        return Example("", "", {"messages": messages})

    @classmethod
    def fit(cls, examples: Sequence[Example], settings: TaskSettings) -> Self:
        """Returns the task with its template."""
        return cls(conversation_template(settings.template))

    def encode(self, example: Example, tokenizer: Tokenizer, length: int) -> Rendered | None:
        """Returns the conversation with the assistant's turns as targets; the oldest turns are cut first."""
        return encode_messages(example.fields["messages"], self.template, tokenizer, length)

    def text_tokens(self, example: Example, tokenizer: Tokenizer, length: int) -> list[list[int]]:
        """Returns the conversation in the template."""
        return [render_messages(example.fields["messages"], self.template, tokenizer, length).tokens]

    def prompt_tokens(self, example: Example, tokenizer: Tokenizer, max_prompt_len: int) -> list[int]:
        """Returns the conversation in the template, cut to `max_prompt_len` tokens."""
        return render_messages(example.fields["messages"], self.template, tokenizer, max_prompt_len, prompt=True).tokens

    def objective(self, model: ModelConfig, loss: LossSettings) -> Objective:
        """Returns next-token prediction, which computes few logits beside those of the answers."""
        router = router_losses(loss)
        return language_model(model, loss.z_loss, loss.chunk, loss.label_smoothing, router, few_targets=True)

    def decode(
        self, example: Example, outputs: tuple[np.ndarray, ...], encoded: Rendered, tokenizer: Tokenizer
    ) -> tuple[float, float]:
        """Returns (nats, tokens) of the assistant's turns."""
        weights = encoded.segments[0]["weights"]
        return float((outputs[0] * weights).sum()), float(weights.sum())

    def metrics(self, examples: Sequence[Example], predictions: Sequence[tuple[float, float]]) -> dict[str, Interval]:
        """Returns the loss of the assistant's turns in nats per token."""
        nats, tokens = np.array(predictions).T

        def loss(rows: np.ndarray) -> float:
            return float(nats[rows].sum() / tokens[rows].sum())

        return {"assistant_loss": bootstrap(loss, len(nats), better="lower")}

    def compare(
        self, predictions: Sequence[tuple[float, float]], zero_shot: Sequence[tuple[float, float]]
    ) -> dict[str, Interval]:
        """Returns the fraction of conversations that are more likely than under the foundation."""
        now, before = np.array(predictions)[:, 0], np.array(zero_shot)[:, 0]
        return {"win_by_likelihood": mean_interval((now < before) + 0.5 * (now == before))}

    def expected(self, example: Example) -> str:
        """Returns the last answer."""
        return next(m["content"] for m in reversed(example.fields["messages"]) if m["role"] == "assistant")

    def format(self, example: Example, prediction: tuple[float, float]) -> str:
        """Returns the loss of the assistant's turns."""
        return f"{prediction[0] / prediction[1]:.3f} nats per token"
