"""Of two answers the better one (DPO): the model's likelihood learns to tell them apart, against the foundation's."""

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
from train.tasks.task import Facts, Prediction, Task

CHOSEN, REJECTED = "chosen", "rejected"


def parse(row: Row, task: TaskSettings) -> Example:
    """Returns fields {"prompt", "chosen", "rejected"}, all text."""
    prompt = fill(task.input, row, "config.task.input")
    answers = {name: texts_of(column(row, name, "a column of that name"), name)[0] for name in (CHOSEN, REJECTED)}
    group = fill(task.group, row, "config.task.group") if task.group else prompt
    return Example("\n".join([prompt, *answers.values()]), group, {"prompt": prompt, **answers})


def facts(examples: list[Example], task: TaskSettings) -> Facts:
    """Returns the template and the strength of the pull back to the foundation."""
    return {"template": task.template, "beta": task.beta}


def render(example: Example, facts: Facts, tokenizer: Tokenizer, length: int) -> Rendered | None:
    """Returns two segments, chosen and rejected, each at most half a row; None: of one, no answer was left."""
    segments, cut = [], False
    for name in (CHOSEN, REJECTED):
        messages = [
            {"role": "user", "content": example.fields["prompt"]},
            {"role": "assistant", "content": example.fields[name]},
        ]
        rendered = render_messages(messages, facts["template"], tokenizer, length // 2 + 1)
        segment = text_segment(rendered.tokens, rendered.mask)
        if not segment["weights"].any():
            return None
        segments.append(segment)
        cut |= rendered.cut
    return Rendered(tuple(segments), cut)


def objective(model: ModelConfig, facts: Facts, loss: LossSettings) -> Objective:
    """Returns DPO on the model's own head."""
    return preference(model, facts["beta"], loss.chunk)


def read(
    example: Example, facts: Facts, outputs: tuple[np.ndarray, ...], rendered: Rendered, tokenizer: Tokenizer
) -> Prediction:
    """Returns (by how many nats chosen is likelier than rejected, the same of the foundation)."""
    chosen, rejected = (
        (nll * segment["weights"]).sum() for nll, segment in zip(outputs, rendered.segments, strict=True)
    )
    before = [segment["reference"].sum() for segment in rendered.segments]
    return float(rejected - chosen), float(before[0] - before[1])


def metrics(
    examples: list[Example], predictions: list[Prediction], untrained: list[Prediction] | None, facts: Facts
) -> dict[str, Interval]:
    """Returns how often chosen is likelier than rejected, and by how many nats the margin grew."""
    now, before = np.array(predictions).T
    return {"accuracy": mean_interval(now > 0), "margin_gained": mean_interval(now - before)}


def show(example: Example, prediction: Prediction | None, facts: Facts) -> str:
    """Returns the chosen answer, or the margin that it was given."""
    return example.fields[CHOSEN] if prediction is None else f"margin {prediction[0]:+.2f} nats"


TASK = Task(
    parse=parse,
    facts=facts,
    render=render,
    objective=objective,
    read=read,
    metrics=metrics,
    show=show,
    language=True,
    reference=True,
)
