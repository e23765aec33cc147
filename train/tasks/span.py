"""Extractive question answering: where in a text its answer stands, or that it has none (SQuAD 2.0)."""

from typing import Any

import numpy as np

from configs.errors import UserError
from data.examples import Rendered, labeled_segment
from data.labeled import Example, column, fill
from data.readers import Row
from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.heads import Objective
from model.task_heads import CANDIDATE, END, START, span
from train.evaluation import metrics as figures
from train.evaluation.interval import Interval
from train.settings import LossSettings, TaskSettings
from train.tasks.task import Facts, Prediction, Task, Untrained

_LONGEST_ANSWER = 30  # tokens
_LONGEST_QUESTION = 1 / 3  # of a row
_NO_ANSWER = "no answer"
# What the sums of CANDIDATE, START and END say of a token.
_FLAGS = ("", "candidate", "", "start", "", "end", "", "start and end")


def parse(row: Row, task: TaskSettings) -> Example:
    """Returns fields {"question", "context", "answers": [{"text", "start"}]}; start is a character of the context."""
    question = fill(task.input, row, "config.task.input")
    context = fill(task.context, row, "config.task.context")
    answers = _answers(column(row, task.target, "config.task.target"), task.target)
    for answer in answers:
        found = context[answer["start"] : answer["start"] + len(answer["text"])]
        if found != answer["text"]:
            raise UserError(f"{answer['text']!r:.60} does not stand at character {answer['start']} of its text")
    group = fill(task.group, row, "config.task.group") if task.group else context
    fields = {"question": question, "context": context, "answers": answers}
    return Example(f"{context}\n{question}", group, fields)


def _answers(value: object, name: str) -> list[dict[str, Any]]:
    """Returns the answers of SQuAD's two layouts: a list of {text, answer_start}, or a dict of two lists."""
    try:
        if isinstance(value, dict):
            pairs = list(zip(value["text"], value["answer_start"], strict=True))
        else:
            pairs = [(answer["text"], answer["answer_start"]) for answer in value]  # type: ignore[attr-defined]
        return [{"text": str(text), "start": int(start)} for text, start in pairs]
    except (TypeError, KeyError, ValueError):
        raise UserError(f"{name!r} is {value!r:.80}; legal: a list of {{text, answer_start}}, empty: none") from None


def facts(examples: list[Example], task: TaskSettings) -> Facts:
    """Returns how the foundation is asked."""
    return {"prompt": task.prompt}


def render(example: Example, facts: Facts, tokenizer: Tokenizer, length: int) -> Rendered:
    """Returns `bos question eos context eos`; the last token, which has seen all, stands for "no answer".

    An answer beyond the cut of a long text counts as none.
    """
    fields = example.fields
    question = tokenizer.encode(fields["question"])[: int(length * _LONGEST_QUESTION)]
    ids, offsets = tokenizer.encode_with_offsets(fields["context"])
    room = length - len(question) - 3
    tokens = [tokenizer.bos_id, *question, tokenizer.eos_id, *ids[:room], tokenizer.eos_id]
    first, last = len(question) + 2, len(tokens) - 1
    flags = dict.fromkeys(range(first, last + 1), CANDIDATE)
    start, end = _places(fields["answers"], offsets[:room]) or (last - first, last - first)
    weights = {first + start: 0.5}
    weights[first + end] = weights.get(first + end, 0.0) + 0.5
    flags[first + start] |= START
    flags[first + end] |= END
    return Rendered((labeled_segment(tokens, dict(flags), weights, np.int32),), len(ids) > room)


def _places(answers: list[dict[str, Any]], offsets: list[tuple[int, int]]) -> tuple[int, int] | None:
    """Returns the first and the last token of the first answer that the text still holds whole."""
    for answer in answers:
        stop = answer["start"] + len(answer["text"])
        if answer["text"] and offsets and offsets[-1][1] >= stop:
            touched = [i for i, (a, b) in enumerate(offsets) if a < stop and b > answer["start"]]
            return touched[0], touched[-1]
    return None


def objective(model: ModelConfig, facts: Facts, loss: LossSettings) -> Objective:
    """Returns two linear scores a token: the answer starts here, and it ends here."""
    return span(model)


def read(
    example: Example, facts: Facts, outputs: tuple[np.ndarray, ...], rendered: Rendered, tokenizer: Tokenizer
) -> Prediction:
    """Returns the likeliest answer as it stands in the text, "" for none."""
    flags = rendered.segments[0]["targets"]
    scores = outputs[0][flags > 0]
    found = best_span(scores[:, 0], scores[:, 1], _LONGEST_ANSWER)
    if found is None:
        return ""
    _, offsets = tokenizer.encode_with_offsets(example.fields["context"])
    return example.fields["context"][offsets[found[0]][0] : offsets[found[1]][1]].strip()


def best_span(start: np.ndarray, end: np.ndarray, longest: int) -> tuple[int, int] | None:
    """Returns the pair of places of highest start + end score, at most `longest` apart; None when the last place wins.

    The last place stands for "no answer" (SQuAD 2.0: Rajpurkar et al. 2018).
    """
    scores = np.triu(np.ones((len(start) - 1, len(start) - 1), bool))
    scores &= ~np.triu(scores, longest)
    table = np.where(scores, start[:-1, None] + end[None, :-1], -np.inf)
    if not table.size or table.max() <= start[-1] + end[-1]:
        return None
    first, last = np.unravel_index(table.argmax(), table.shape)
    return int(first), int(last)


def metrics(
    examples: list[Example], predictions: list[Prediction], untrained: list[Prediction] | None, facts: Facts
) -> dict[str, Interval]:
    """Returns exact match, F1 and, where some questions have no answer, how often that was seen."""
    return figures.squad([[answer["text"] for answer in e.fields["answers"]] for e in examples], predictions)


def show(example: Example, prediction: Prediction | None, facts: Facts) -> str:
    """Returns the answer."""
    answers = example.fields["answers"]
    text = prediction if prediction is not None else answers[0]["text"] if answers else ""
    return text or _NO_ANSWER


def guess(examples: list[Example], facts: Facts) -> Prediction:
    """Returns "no answer"."""
    return ""


def _prompt(example: Example, facts: Facts) -> tuple[str, str]:
    fields = example.fields
    prompt = facts["prompt"].replace("{input}", fields["question"]).replace("{context}", fields["context"])
    return prompt, show(example, None, facts)


def _read_text(answers: list[str], facts: Facts) -> Prediction:
    return "" if answers[0].strip() == _NO_ANSWER else answers[0].strip()


TASK = Task(
    parse=parse,
    facts=facts,
    render=render,
    objective=objective,
    read=read,
    metrics=metrics,
    show=show,
    guess=guess,
    target_names=_FLAGS,
    untrained=Untrained(_prompt, None, _read_text),
)
