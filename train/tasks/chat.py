"""Conversations of several turns, of which the assistant's alone are learnt."""

import json

import numpy as np

from configs.errors import UserError
from data.examples import Rendered, text_segment
from data.labeled import Example, fill
from data.readers import Row
from data.templates import render as render_messages
from data.tokenizer import Tokenizer
from train.evaluation.interval import Interval, bootstrap, mean_interval
from train.settings import TaskSettings
from train.tasks.generation import objective
from train.tasks.task import Facts, Prediction, Task

# Columns of one-turn rows: Alpaca's, and those of prompt and answer.
_PAIRS = (("instruction", "output"), ("prompt", "completion"), ("prompt", "response"), ("question", "answer"))


def parse(row: Row, task: TaskSettings) -> Example:
    """Returns fields {"messages": [{"role", "content"}]} of a row of messages, or of an instruction and its answer."""
    messages = messages_of(row, task.target)
    if not any(message["role"] == "assistant" for message in messages):
        raise UserError("no turn is the assistant's; legal: at least one message whose role is 'assistant'")
    content = json.dumps([[message["role"], message["content"]] for message in messages], ensure_ascii=False)
    group = fill(task.group, row, "config.task.group") if task.group else messages[0]["content"]
    return Example(content, group, {"messages": messages})


def messages_of(row: Row, name: str) -> list[dict[str, str]]:
    """Returns a row's conversation: its column `name` of messages, else its instruction (and input) and output.

    Raises:
        UserError: it has neither, or a message without role and content.
    """
    value = row.get(name)
    if isinstance(value, str):
        value = _from_json(value)
    if isinstance(value, list):
        if all(isinstance(m, dict) and isinstance(m.get("role"), str) and "content" in m for m in value):
            return [{"role": m["role"], "content": str(m["content"])} for m in value]
        raise UserError(f"{name!r} is {value!r:.80}; legal: a list of {{role, content}}")
    for question, answer in _PAIRS:
        if row.get(question) and row.get(answer):
            text = "\n".join(str(part) for part in (row[question], row.get("input")) if part)
            return [{"role": "user", "content": text}, {"role": "assistant", "content": str(row[answer])}]
    pairs = ", ".join(f"{question} and {answer}" for question, answer in _PAIRS)
    raise UserError(f"no {name!r}; columns found: {', '.join(map(str, row))}; set config.task.target, or have {pairs}")


def _from_json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def facts(examples: list[Example], task: TaskSettings) -> Facts:
    """Returns the template."""
    return {"template": task.template}


def render(example: Example, facts: Facts, tokenizer: Tokenizer, length: int) -> Rendered | None:
    """Returns the conversation, the assistant's turns as targets; of one that is too long, the oldest go first."""
    rendered = render_messages(example.fields["messages"], facts["template"], tokenizer, length + 1)
    return Rendered((text_segment(rendered.tokens, rendered.mask),), rendered.cut) if any(rendered.mask[1:]) else None


def read(
    example: Example, facts: Facts, outputs: tuple[np.ndarray, ...], rendered: Rendered, tokenizer: Tokenizer
) -> Prediction:
    """Returns (nats, tokens) of the assistant's turns."""
    weights = rendered.segments[0]["weights"]
    return float((outputs[0] * weights).sum()), float(weights.sum())


def metrics(
    examples: list[Example], predictions: list[Prediction], untrained: list[Prediction] | None, facts: Facts
) -> dict[str, Interval]:
    """Returns nats a token of the assistant's turns, and how often they are likelier than the foundation found them."""
    nats, tokens = np.array(predictions).T
    found = {
        "assistant_loss": bootstrap(
            lambda rows: float(nats[rows].sum() / tokens[rows].sum()), len(nats), better="lower"
        )
    }
    if untrained is not None:
        before = np.array(untrained)[:, 0]
        found["win_by_likelihood"] = mean_interval((nats < before) + 0.5 * (nats == before))
    return found


def show(example: Example, prediction: Prediction | None, facts: Facts) -> str:
    """Returns the last answer, or how likely it was found."""
    if prediction is None:
        return next(m["content"] for m in reversed(example.fields["messages"]) if m["role"] == "assistant")
    return f"{prediction[0] / prediction[1]:.3f} nats a token"


TASK = Task(
    parse=parse,
    facts=facts,
    render=render,
    objective=objective,
    read=read,
    metrics=metrics,
    show=show,
    language=True,
)
