"""Extractive question answering: the part of a text that answers a question, or that there is none (SQuAD 2.0)."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np

from configs.errors import UserError
from data.cleaning import clean
from data.columns import Row, RowRules, column, described, fill, is_empty, text_of
from data.examples import Rendered, labeled_segment
from data.labeled import Example
from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.heads import Objective
from model.task_heads import CANDIDATE, END, START, span
from train.evaluation import metrics as scores
from train.evaluation.interval import Interval
from train.evaluation.squad import NO_ANSWER
from train.settings import LossSettings, TaskSettings
from train.tasks.classification import class_weights
from train.tasks.task import Answer, AnswerOptions, Attention, Task, filled_prompt, group_of, router_losses, row_rules

_ANSWERABLE, _UNANSWERABLE = "with an answer", "without an answer"
_MAX_ANSWER_TOKENS = 30
_MAX_QUESTION_FRACTION = 1 / 3  # of the row
# Names of the sums of CANDIDATE, START and END.
_FLAG_NAMES = ("", "candidate", "", "start", "", "end", "", "start and end")


@dataclasses.dataclass(frozen=True)
class Span(Task[str]):
    """Predicts the answer as text, "" if the text contains none.

    Attributes:
        prompt: the question for zero-shot scoring, with {input} and {context}.
        weights: of questions with and without an answer in the loss (`config.task.class_weights`).
    """

    prompt: str
    weights: tuple[float, float] = (1.0, 1.0)

    zero_shot: ClassVar[Literal["none", "prompt", "head"]] = "prompt"
    default_attention: ClassVar[Attention] = "bidirectional"
    prompt_fields: ClassVar[tuple[str, ...]] = ("input", "context")
    baseline_name: ClassVar[str] = "always no answer"
    unused_fields: ClassVar[tuple[str, ...]] = (
        *("task.pooling", "task.multi_label", "task.out_of_scope", "task.template", "task.metrics", "task.beta"),
        *("task.center", "loss.z_loss", "loss.label_smoothing", "loss.chunk"),
    )

    @classmethod
    def parse(cls, row: Row, settings: TaskSettings) -> Example:
        """Returns fields {"question", "context", "answers": [{"text", "start"}]}; start counts characters."""
        rules = row_rules(settings)
        question = fill(settings.input, row, "config.task.input", rules)
        # Answers are located in the text as the file has it.
        original = fill(settings.context, row, "config.task.context", rules.uncleaned)
        context = clean(original) if rules.clean else original
        answers = _answers(column(row, settings.target, "config.task.target"), settings.target, rules)
        for answer in answers:
            place = answer["start"]
            answer["start"] = len(clean(original[:place])) if rules.clean else place
            found = context[answer["start"] : answer["start"] + len(answer["text"])]
            if place < 0 or found != answer["text"]:
                raise UserError(f"answer {answer['text']!r:.60} is not at character {place} of its context")
        fields = {"question": question, "context": context, "answers": answers}
        return Example(f"{context}\n{question}", group_of(row, settings, context), fields)

    @classmethod
    def parse_input(cls, row: Row, settings: TaskSettings) -> Example:
        """Returns fields {"question", "context", "answers": []}."""
        rules = row_rules(settings)
        question = fill(settings.input, row, "config.task.input", rules)
        context = fill(settings.context, row, "config.task.context", rules)
        return Example(f"{context}\n{question}", context, {"question": question, "context": context, "answers": []})

    @classmethod
    def fit(cls, examples: Sequence[Example], settings: TaskSettings) -> Self:
        """Returns the task with its zero-shot prompt and the weights of both kinds of questions."""
        counts = Counter(_ANSWERABLE if example.fields["answers"] else _UNANSWERABLE for example in examples)
        kinds = [kind for kind in (_ANSWERABLE, _UNANSWERABLE) if counts[kind]]
        weights = dict(zip(kinds, class_weights(counts, kinds, settings.class_weights), strict=True))
        return cls(settings.prompt, (weights.get(_ANSWERABLE, 1.0), weights.get(_UNANSWERABLE, 1.0)))

    def encode(self, example: Example, tokenizer: Tokenizer, length: int) -> Rendered:
        """Returns `bos question eos context eos`; the last token, which attends to all others, stands for "no answer".

        An answer that was cut off counts as no answer.
        """
        fields = example.fields
        question = tokenizer.encode(fields["question"])[: int(length * _MAX_QUESTION_FRACTION)]
        ids, offsets = tokenizer.encode_with_offsets(fields["context"])
        max_context = length - len(question) - 3
        tokens = [tokenizer.bos_id, *question, tokenizer.eos_id, *ids[:max_context], tokenizer.eos_id]
        first, last = len(question) + 2, len(tokens) - 1
        flags = dict.fromkeys(range(first, last + 1), CANDIDATE)
        place = _answer_tokens(fields["answers"], offsets[:max_context])
        start, end = place or (last - first, last - first)
        half = self.weights[0 if place else 1] / 2
        weights = {first + start: half}
        weights[first + end] = weights.get(first + end, 0.0) + half
        flags[first + start] |= START
        flags[first + end] |= END
        return Rendered((labeled_segment(tokens, dict(flags), weights, np.int32),), len(ids) > max_context)

    def objective(self, model: ModelConfig, loss: LossSettings) -> Objective:
        """Returns two linear scores per token: as the start and as the end of the answer."""
        return span(model, router_losses(loss))

    def decode(self, example: Example, outputs: tuple[np.ndarray, ...], encoded: Rendered, tokenizer: Tokenizer) -> str:
        """Returns the most likely answer as written in the context, "" for none."""
        place = _place(example, outputs, encoded, tokenizer)
        return example.fields["context"][place] if place else ""

    def answer_columns(self, options: AnswerOptions) -> tuple[str, ...]:
        """Returns "prediction", and "start" and "end": its place in the cleaned context, in characters."""
        return ("prediction", "start", "end")

    def answer(
        self, example: Example, outputs: tuple[np.ndarray, ...], encoded: Rendered, tokenizer: Tokenizer,
        options: AnswerOptions,
    ) -> Answer:  # fmt: skip
        """Returns the answer and its place in the cleaned context; "" and None for no answer."""
        place = _place(example, outputs, encoded, tokenizer)
        if place is None:
            return {"prediction": "", "start": None, "end": None}
        return {"prediction": example.fields["context"][place], "start": place.start, "end": place.stop}

    def metrics(self, examples: Sequence[Example], predictions: Sequence[str]) -> dict[str, Interval]:
        """Returns exact match and F1; if some questions have no answer, also for both kinds apart."""
        return scores.squad([[answer["text"] for answer in e.fields["answers"]] for e in examples], predictions)

    def expected(self, example: Example) -> str:
        """Returns the first answer."""
        answers = example.fields["answers"]
        return self.format(example, answers[0]["text"] if answers else "")

    def format(self, example: Example, prediction: str) -> str:
        """Returns the answer."""
        return prediction or NO_ANSWER

    def baseline_prediction(self, examples: Sequence[Example]) -> str:
        """Returns "no answer"."""
        return ""

    def question(self, example: Example) -> tuple[str, str]:
        """Returns the prompt with question and context filled in, and the answer."""
        fields = example.fields
        prompt = filled_prompt(self.prompt, input=fields["question"], context=fields["context"])
        return prompt, self.expected(example)

    def read_answers(self, answers: list[str]) -> str:
        """Returns the generated text, "" for "no answer"."""
        text = answers[0].strip()
        return "" if text == NO_ANSWER else text

    @property
    def target_names(self) -> tuple[str, ...]:
        """Returns the names of the flags."""
        return _FLAG_NAMES


def _place(example: Example, outputs: tuple[np.ndarray, ...], encoded: Rendered, tokenizer: Tokenizer) -> slice | None:
    """Returns where the context has the most likely answer, None for none."""
    flags = encoded.segments[0]["targets"]
    token_scores = outputs[0][flags > 0]
    found = best_span(token_scores[:, 0], token_scores[:, 1], _MAX_ANSWER_TOKENS)
    if found is None:
        return None
    _, offsets = tokenizer.encode_with_offsets(example.fields["context"])
    start, stop = offsets[found[0]][0], offsets[found[1]][1]
    text = example.fields["context"][start:stop]
    start += len(text) - len(text.lstrip())
    return slice(start, start + len(text.strip())) if text.strip() else None


def _answers(value: object, name: str, rules: RowRules) -> list[dict[str, Any]]:
    """Returns the answers in either of SQuAD's layouts: a list of {text, answer_start}, or a dict of two lists."""
    if is_empty(value, name, rules):
        return []
    try:
        if isinstance(value, dict):
            pairs = list(zip(value["text"], value["answer_start"], strict=True))
        else:
            pairs = [(answer["text"], answer["answer_start"]) for answer in value]  # type: ignore[attr-defined]
        starts = [int(start) for _, start in pairs]
    except (TypeError, KeyError, ValueError):
        raise UserError(
            f"{name!r} is {described(value)}; expected a list of {{text, answer_start}}, empty if there is no answer"
        ) from None
    texts = [text_of(text, f"the text of an answer in {name!r}", rules) for text, _ in pairs]
    return [{"text": text, "start": start} for text, start in zip(texts, starts, strict=True)]


def _answer_tokens(answers: list[dict[str, Any]], offsets: list[tuple[int, int]]) -> tuple[int, int] | None:
    """Returns the first and last token of the first answer that lies completely within the encoded text."""
    for answer in answers:
        stop = answer["start"] + len(answer["text"])
        if answer["text"] and offsets and offsets[-1][1] >= stop:
            touched = [i for i, (a, b) in enumerate(offsets) if a < stop and b > answer["start"]]
            return touched[0], touched[-1]
    return None


def best_span(start: np.ndarray, end: np.ndarray, max_tokens: int) -> tuple[int, int] | None:
    """Returns (first, last) of the span of at most `max_tokens` with the highest start + end score.

    The last position stands for "no answer" (SQuAD 2.0: Rajpurkar et al. 2018): None if its score is at least as high.
    """
    allowed = np.triu(np.ones((len(start) - 1, len(start) - 1), bool))
    allowed &= ~np.triu(allowed, max_tokens)
    table = np.where(allowed, start[:-1, None] + end[None, :-1], -np.inf)
    if not table.size or table.max() <= start[-1] + end[-1]:
        return None
    first, last = np.unravel_index(table.argmax(), table.shape)
    return int(first), int(last)
