"""A fine-tuned model and a linear model of the same texts together: their logits are added with weights.

The weights are learned from validation rows, which neither model was trained on (stacked generalization, Wolpert 1992).
N texts, V classes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from train.evaluation.calibration import UNSEEN, Decisions, clearly_positive, targets_with_prior
from train.evaluation.linear_text import LinearText

_LARGEST_WEIGHT = 50.0
# (number of the text, outputs of the head) -> outputs
Join = Callable[[int, tuple[np.ndarray, ...]], tuple[np.ndarray, ...]]


class Weights(NamedTuple):
    """What the logits of the model and the margins of the linear model are multiplied by."""

    model: float
    linear: float


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """A linear model that joins a fine-tuned one.

    Attributes:
        linear: the linear model.
        weights: of both; they contain the temperature, so that the sums are calibrated.
    """

    linear: LinearText
    weights: Weights

    def joined(self, texts: Sequence[str], classes: Sequence[str]) -> Join:
        """Returns a function that puts `combined` in place of the logits in the head's outputs for a text."""
        margins_NV = self.linear.margins(texts, classes)

        def join(number: int, outputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
            return self.combined(outputs[0][-1:], margins_NV[number : number + 1]), *outputs[1:]

        return join

    def combined(self, logits_NV: np.ndarray, margins_NV: np.ndarray) -> np.ndarray:
        """Returns the logits of both together, (N, V)."""
        return self.weights.model * logits_NV.astype(np.float64) + self.weights.linear * margins_NV


def fit_weights(decisions: Decisions, margins_NV: np.ndarray) -> Weights | None:
    """Returns the weights with the lowest log loss, None if both together are not clearly better than the model alone.

    The model alone has the best weight of its own. "Clearly" and the few rows that count as labeled by the model itself
    are those of `fit_temperature`.

    Args:
        decisions: of the model, one per text.
        margins_NV: of the linear model, for the same texts and classes.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    known = decisions.labels != UNSEEN
    if not known.any():
        return None
    logits_NV, margins_NV = decisions.logits[known].astype(np.float64), margins_NV[known]
    targets_NV = targets_with_prior(logits_NV, decisions.labels[known], int(known.sum()))

    def losses(weights: np.ndarray) -> np.ndarray:
        """Returns the log loss of each text."""
        return -(targets_NV * log_softmax(weights[0] * logits_NV + weights[1] * margins_NV, -1)).sum(-1)

    def best(largest_of_linear: float) -> np.ndarray:
        bounds = [(0.0, _LARGEST_WEIGHT), (0.0, largest_of_linear)]
        return minimize(lambda weights: float(losses(weights).mean()), (1.0, 0.0), bounds=bounds).x

    alone, both = best(0.0), best(_LARGEST_WEIGHT)
    return Weights(*both.tolist()) if clearly_positive(losses(alone) - losses(both)) else None
