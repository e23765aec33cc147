"""Rows whose label a model of the other rows contradicts with high confidence: confident learning.

Northcutt et al. 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels" (arXiv:1911.00068). The rows are
cut into folds, and the classes of each fold are predicted by a linear SVM that is trained on the other folds, so no row
is judged by a model that has seen its label. N rows, V classes.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from train.evaluation import linear_svm
from train.evaluation.calibration import UNSEEN, Decisions, fit_temperature

# A row is suspicious only if its own label has at most this probability. docs/results.md has the precision.
MAX_LABEL_PROBABILITY = 0.05
# Classes with fewer rows are not judged: a model that has seen four examples of a class hardly ever predicts it.
MIN_CLASS_ROWS = 5
# (rows times classes, number of folds, whether characters are features): the first that is large enough. The bounds
# keep 50,000 rows of a hundred classes under a minute of CPU time.
_EFFORTS = ((250_000, 5, True), (1_500_000, 5, False))
_LEAST_FOLDS = 3


class Suspect(NamedTuple):
    """A row whose label is suspicious.

    Attributes:
        row: its index.
        suggested: the class that it seems to have.
        label_probability: of the label that it has.
        suggested_probability: of the class that it seems to have.
    """

    row: int
    suggested: str
    label_probability: float
    suggested_probability: float


def suspicious_labels(texts: Sequence[str], labels: Sequence[str], groups: Sequence[str]) -> list[Suspect]:
    """Returns the rows whose label is suspicious, the most suspicious first.

    Args:
        texts: the text of each row.
        labels: the class of each row.
        groups: the group of each row; the rows of a group are in one fold.
    """
    names, labels_N = np.unique(np.array(labels, object), return_inverse=True)
    if len(names) < 2:
        return []
    folds, characters = next(
        ((folds, characters) for most, folds, characters in _EFFORTS if len(texts) * len(names) <= most),
        (_LEAST_FOLDS, False),
    )
    folds_N = np.array([_fold(group, folds) for group in groups])
    margins_NV = linear_svm.cross_fit(texts, labels_N, folds_N, len(names), characters)
    rows = np.arange(len(texts))
    judged = np.isfinite(margins_NV[rows, labels_N]) & (np.bincount(labels_N)[labels_N] >= MIN_CLASS_ROWS)
    if not judged.any():
        return []
    # A class that the other folds lack has a probability of 0.
    finite_NV = np.where(np.isfinite(margins_NV), margins_NV, -1e9)
    decisions = Decisions(finite_NV, np.where(judged, labels_N, UNSEEN), rows)
    return _contradicted(decisions.probabilities(fit_temperature(decisions)), labels_N, judged, names)


def _contradicted(
    probabilities_NV: np.ndarray, labels_N: np.ndarray, judged: np.ndarray, names: np.ndarray
) -> list[Suspect]:
    """Returns the rows off the diagonal of the confident joint whose label is improbable."""
    own_N = probabilities_NV[np.arange(len(labels_N)), labels_N]
    counts_V = np.bincount(labels_N[judged], minlength=len(names))
    sums_V = np.bincount(labels_N[judged], own_N[judged], minlength=len(names))
    # How sure the model is, on average, of a class where a row has it; of a class without judged rows, never.
    thresholds_V = np.where(counts_V > 0, sums_V / np.maximum(counts_V, 1), 2.0)
    confident_NV = np.where(probabilities_NV >= thresholds_V, probabilities_NV, -1.0)
    best_N = confident_NV.argmax(-1)
    best_probability_N = confident_NV.max(-1)
    found = judged & (best_probability_N > 0) & (best_N != labels_N) & (own_N <= MAX_LABEL_PROBABILITY)
    rows = np.flatnonzero(found)
    order = rows[np.argsort(own_N[rows] / best_probability_N[rows], kind="stable")]
    return [
        Suspect(int(row), str(names[best_N[row]]), float(own_N[row]), float(best_probability_N[row])) for row in order
    ]


def _fold(group: str, folds: int) -> int:
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:4], "big") % folds
