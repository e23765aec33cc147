"""Of two answers the better one, as a score of each (a reward model: Bradley-Terry)."""

import numpy as np

from data.examples import Rendered
from data.labeled import Example
from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.heads import Objective
from model.task_heads import reward
from train.evaluation.interval import Interval, mean_interval
from train.settings import LossSettings
from train.tasks.preference import CHOSEN, facts, parse
from train.tasks.preference import render as render_pair
from train.tasks.task import Facts, Prediction, Task


def render(example: Example, facts: Facts, tokenizer: Tokenizer, length: int) -> Rendered | None:
    """Returns chosen and rejected as two segments; the last token of each is what the score is read from."""
    rendered = render_pair(example, facts, tokenizer, length)
    if rendered is None:
        return None
    for segment in rendered.segments:
        # A segment of next-token prediction lacks the last token, which ends the answer.
        last = np.zeros(len(segment["tokens"]) + 1, bool)
        last[-1] = True
        segment["tokens"] = np.append(segment["tokens"], segment["targets"][-1])
        segment["targets"] = np.zeros(len(last), np.int32)
        segment["weights"] = last.astype(np.float32)
    return rendered


def objective(model: ModelConfig, facts: Facts, loss: LossSettings) -> Objective:
    """Returns one linear output, whose difference between chosen and rejected is learnt."""
    return reward(model)


def read(
    example: Example, facts: Facts, outputs: tuple[np.ndarray, ...], rendered: Rendered, tokenizer: Tokenizer
) -> Prediction:
    """Returns by how much chosen scores higher."""
    return float(outputs[0][-1] - outputs[1][-1])


def metrics(
    examples: list[Example], predictions: list[Prediction], untrained: list[Prediction] | None, facts: Facts
) -> dict[str, Interval]:
    """Returns how often chosen scores higher than rejected."""
    return {"accuracy": mean_interval(np.array(predictions) > 0)}


def show(example: Example, prediction: Prediction | None, facts: Facts) -> str:
    """Returns the chosen answer, or the margin that it was given."""
    return example.fields[CHOSEN] if prediction is None else f"margin {prediction:+.2f}"


TASK = Task(parse=parse, facts=facts, render=render, objective=objective, read=read, metrics=metrics, show=show)
