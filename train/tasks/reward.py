"""Reward modeling: a score per answer, trained so that the chosen of two answers scores higher (Bradley-Terry)."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from data.examples import Rendered
from data.labeled import Example
from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.heads import Objective
from model.task_heads import reward
from train.evaluation.interval import Interval, mean_interval
from train.settings import LossSettings
from train.tasks.preference import AnswerPair
from train.tasks.task import router_losses


@dataclasses.dataclass(frozen=True)
class Reward(AnswerPair[float]):
    """Predicts the score of the chosen answer minus that of the rejected one."""

    unused_fields: ClassVar[tuple[str, ...]] = (*AnswerPair.unused_fields, "task.beta", "loss.chunk")

    def encode(self, example: Example, tokenizer: Tokenizer, length: int) -> Rendered | None:
        """Returns chosen and rejected as two segments; the score is read at the last token of each."""
        encoded = self._scored(example, tokenizer, length)
        if encoded is None or sum(len(segment["tokens"]) for segment in encoded.segments) <= length:
            return encoded
        # Two answers that fill their halves have one token too many each.
        return self._scored(example, tokenizer, length - len(encoded.segments))

    def _scored(self, example: Example, tokenizer: Tokenizer, length: int) -> Rendered | None:
        encoded = super().encode(example, tokenizer, length)
        if encoded is None:
            return None
        for segment in encoded.segments:
            # A segment of next-token prediction lacks the last token, which ends the answer.
            last = np.zeros(len(segment["tokens"]) + 1, bool)
            last[-1] = True
            segment["tokens"] = np.append(segment["tokens"], segment["targets"][-1])
            segment["targets"] = np.zeros(len(last), np.int32)
            segment["weights"] = last.astype(np.float32)
        return encoded

    def objective(self, model: ModelConfig, loss: LossSettings) -> Objective:
        """Returns one linear output, trained on the difference between chosen and rejected."""
        return reward(model, router_losses(loss))

    def scores(self, outputs: tuple[np.ndarray, ...], encoded: Rendered) -> list[float]:
        """Returns the output at the end of each answer."""
        return [float(output[-1]) for output in outputs]

    def decode(
        self, example: Example, outputs: tuple[np.ndarray, ...], encoded: Rendered, tokenizer: Tokenizer
    ) -> float:
        """Returns the difference of the scores."""
        return float(outputs[0][-1] - outputs[1][-1])

    def metrics(self, examples: Sequence[Example], predictions: Sequence[float]) -> dict[str, Interval]:
        """Returns how often chosen scores higher than rejected."""
        return {"accuracy": mean_interval(np.array(predictions) > 0)}

    def format(self, example: Example, prediction: float) -> str:
        """Returns the margin."""
        return f"margin {prediction:+.2f}"
