"""Text generation from an input: summaries, translations, answers. Trains the language-model head on the answers."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

from configs.errors import UserError
from data.columns import Row, answers_of, column, fill
from data.examples import Rendered, text_segment
from data.labeled import Example
from data.templates import render as render_messages
from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.heads import Objective, language_model
from train.evaluation import metrics as scores
from train.evaluation.interval import Interval
from train.evaluation.squad import NO_ANSWER
from train.settings import LossSettings, TaskSettings
from train.tasks.task import Alternative, Task, filled_prompt, group_of, router_losses, row_rules

_LEAD = 3  # sentences that stand for a summary (lead-3)
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+|\n+")
_METRICS = {"rouge": scores.rouge, "bleu": scores.bleu_chrf, "squad": scores.squad}


@dataclasses.dataclass(frozen=True)
class Generation(Task[str]):
    """Predicts a text.

    Attributes:
        template: the chat template that puts input and answer together.
        metric_names: some of "rouge", "bleu" and "squad".
        prompt: the question for zero-shot scoring, with {input}.
    """

    template: str
    metric_names: tuple[str, ...]
    prompt: str

    trains_lm_head: ClassVar[bool] = True
    generates: ClassVar[bool] = True
    zero_shot: ClassVar[Literal["none", "prompt", "head"]] = "prompt"
    unused_fields: ClassVar[tuple[str, ...]] = (
        *("task.context", "task.pooling", "task.multi_label", "task.class_weights", "task.out_of_scope", "task.beta"),
        "task.center",
    )
    renamed_fields: ClassVar[Mapping[str, str]] = {"metrics": "metric_names"}

    @classmethod
    def parse(cls, row: Row, settings: TaskSettings) -> Example:
        """Returns fields {"input", "references"}: all correct texts; the first one is trained on."""
        rules = row_rules(settings)
        text = fill(settings.input, row, "config.task.input", rules)
        references = answers_of(column(row, settings.target, "config.task.target"), settings.target, rules)
        content = "\n".join([text, *references[:1]])
        return Example(content, group_of(row, settings, text), {"input": text, "references": references})

    @classmethod
    def parse_input(cls, row: Row, settings: TaskSettings) -> Example:
        """Returns fields {"input", "references": []}."""
        text = fill(settings.input, row, "config.task.input", row_rules(settings))
        return Example(text, text, {"input": text, "references": []})

    @classmethod
    def fit(cls, examples: Sequence[Example], settings: TaskSettings) -> Self:
        """Returns the task with its template and metrics.

        Raises:
            UserError: a metric is unknown, or there is none.
        """
        unknown = [name for name in settings.metrics if name not in _METRICS]
        if unknown or not settings.metrics:
            raise UserError(f"config.task.metrics={settings.metrics}; expected some of {', '.join(_METRICS)}")
        return cls(settings.template, settings.metrics, settings.prompt)

    def encode(self, example: Example, tokenizer: Tokenizer, length: int) -> Rendered | None:
        """Returns input and answer in the template with the answer as targets, or None if no answer token fits."""
        answer = (example.fields["references"] or [NO_ANSWER])[0]
        messages = [{"role": "user", "content": example.fields["input"]}, {"role": "assistant", "content": answer}]
        return encode_messages(messages, self.template, tokenizer, length)

    def objective(self, model: ModelConfig, loss: LossSettings) -> Objective:
        """Returns next-token prediction, which computes few logits beside those of the answers."""
        router = router_losses(loss)
        return language_model(model, loss.z_loss, loss.chunk, loss.label_smoothing, router, few_targets=True)

    def prompt_tokens(self, example: Example, tokenizer: Tokenizer, max_prompt_len: int) -> list[int]:
        """Returns the input in the template, cut to `max_prompt_len` tokens."""
        messages = [{"role": "user", "content": example.fields["input"]}]
        return render_messages(messages, self.template, tokenizer, max_prompt_len, prompt=True).tokens

    def metrics(self, examples: Sequence[Example], predictions: Sequence[str]) -> dict[str, Interval]:
        """Returns what config.task.metrics names: ROUGE-1, -2 and -L, BLEU and chrF, SQuAD's exact match and F1."""
        references = [example.fields["references"] for example in examples]
        found: dict[str, Interval] = {}
        for name in self.metric_names:
            answers = ["" if name == "squad" and text.strip() == NO_ANSWER else text for text in predictions]
            found |= _METRICS[name](references, answers)
        return found

    def expected(self, example: Example) -> str:
        """Returns the first reference."""
        return (example.fields["references"] or [NO_ANSWER])[0]

    def format(self, example: Example, prediction: str) -> str:
        """Returns the text."""
        return prediction

    def alternatives(self) -> dict[str, Alternative]:
        """Returns the beginning of the input, for summaries, and "no answer", for questions."""
        found: dict[str, Alternative] = {}
        if "rouge" in self.metric_names:
            found[f"first {_LEAD} sentences"] = lambda train, validation: lambda test: [_lead(e) for e in test]
        if "squad" in self.metric_names:
            found["always no answer"] = lambda train, validation: lambda test: [NO_ANSWER] * len(test)
        return found

    def question(self, example: Example) -> tuple[str, str]:
        """Returns the prompt with the input filled in, and the first reference."""
        return filled_prompt(self.prompt, input=example.fields["input"]), self.expected(example)

    def read_answers(self, answers: list[str]) -> str:
        """Returns the generated text."""
        return answers[0]


def _lead(example: Example) -> str:
    """Returns the first sentences, or turns of a dialogue, of the input."""
    return " ".join([part for part in _SENTENCE_ENDS.split(example.fields["input"]) if part.strip()][:_LEAD])


def encode_messages(
    messages: Sequence[Mapping[str, str]], template: str, tokenizer: Tokenizer, length: int
) -> Rendered | None:
    """Returns a conversation with the assistant's turns as targets, or None if none of their tokens fits."""
    rendered = render_messages(messages, template, tokenizer, length + 1)
    return Rendered((text_segment(rendered.tokens, rendered.mask),), rendered.cut) if any(rendered.mask[1:]) else None
