"""How sure a model is: probabilities of classes, the temperature that corrects them, and scores of both.

A decision is the choice of one class: of a row, of a word, or yes or no for one of several labels of a row.
N decisions, V classes.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from train.evaluation.interval import Better, Interval, draws, interval

UNSEEN = -1  # the label of a decision whose class the model does not have
BINS = 15  # of the expected calibration error (Guo et al. 2017, arXiv:1706.04599)
# Temperatures that a fit considers.
_TEMPERATURES = (0.05, 20.0)
_PRIOR_ROWS = 10
_THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclasses.dataclass(frozen=True)
class Decisions:
    """The logits of decisions, and what was right.

    Attributes:
        logits: (N, V).
        labels: (N,) index of the right class, or `UNSEEN`.
        rows: (N,) index of the example that a decision is part of; resamples draw examples.
    """

    logits: np.ndarray
    labels: np.ndarray
    rows: np.ndarray

    def probabilities(self, temperature: float) -> np.ndarray:
        """Returns (N, V), rows that sum to 1."""
        return softmax(self.logits / temperature)


def joined(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Decisions:
    """Returns the decisions of several examples, (logits, labels) each."""
    logits, labels = zip(*parts, strict=True)
    rows = np.repeat(np.arange(len(parts)), [len(of_example) for of_example in labels])
    return Decisions(np.concatenate(logits), np.concatenate(labels), rows)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns probabilities over the last axis, float64."""
    from scipy import special

    return special.softmax(logits.astype(np.float64), axis=-1)


def sigmoid(logits: np.ndarray | np.floating) -> np.ndarray:
    """Returns the probability of each decision, float64."""
    from scipy import special

    return special.expit(logits.astype(np.float64))


def fit_temperature(decisions: Decisions) -> float:
    """Returns the temperature with the lowest log loss (Guo et al. 2017, section 4.2), 1 if none is clearly better.

    Clearly: the mean log loss of a row's decisions is lower by two standard errors over the rows, and by two nats in
    all rows together. Otherwise few rows fit a temperature that makes other rows' probabilities worse. As many as
    `_PRIOR_ROWS` further rows count as labeled by the model itself: without an error the log loss of the others falls
    with the temperature down to 0. A temperature changes no order of classes, so it changes no accuracy.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    known = decisions.labels != UNSEEN
    if not known.any():
        return 1.0
    logits = decisions.logits[known].astype(np.float64)
    rows, sizes = np.unique(decisions.rows[known], return_inverse=True, return_counts=True)[1:]
    targets = targets_with_prior(logits, decisions.labels[known], len(sizes))

    def losses(temperature: float) -> np.ndarray:
        """Returns the log loss of each decision."""
        return -(targets * log_softmax(logits / temperature, -1)).sum(-1)

    bounds = tuple(map(math.log, _TEMPERATURES))
    best = minimize_scalar(lambda log: float(losses(math.exp(log)).mean()), bounds=bounds, method="bounded").x
    temperature = float(math.exp(best))
    gains = np.bincount(rows, losses(1.0) - losses(temperature)) / sizes
    return temperature if clearly_positive(gains) else 1.0


def targets_with_prior(logits: np.ndarray, labels: np.ndarray, rows: int) -> np.ndarray:
    """Returns the targets of decisions, (N, V): the labels, and as many as `_PRIOR_ROWS` that are the model's own.

    Args:
        logits: (N, V), of the model.
        labels: (N,) index of the right class.
        rows: how many rows the decisions are part of.
    """
    targets = softmax(logits) * (_PRIOR_ROWS / rows)
    targets[np.arange(len(labels)), labels] += 1.0
    return targets


def clearly_positive(gains: np.ndarray) -> bool:
    """Returns whether the mean gain of rows in log loss is above two standard errors, and their sum above two nats."""
    return bool(gains.sum() > 2.0 * max(math.sqrt(len(gains)) * gains.std(), 1.0))


def brier_score(decisions: Decisions, temperature: float) -> Interval:
    """Returns the mean squared distance between probabilities and what happened, 0 to 2 (Brier 1950)."""
    p_NV = decisions.probabilities(temperature)
    known = decisions.labels != UNSEEN
    p_label = np.where(known, p_NV[np.arange(len(p_NV)), np.where(known, decisions.labels, 0)], 0.0)
    return _row_mean(np.square(p_NV).sum(-1) - 2 * p_label + 1.0, decisions.rows, "lower")


class Bin(NamedTuple):
    """The decisions whose highest probability lies in one of `BINS` equal parts of 0 to 1."""

    decisions: int
    confidence: float
    accuracy: float


def reliability(decisions: Decisions, temperature: float) -> list[Bin]:
    """Returns the bins that are not empty."""
    confidence, right = _confidence(decisions, temperature)
    # A probability of 1 belongs to the last bin.
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    chosen = (place == number for number in range(BINS))
    return [Bin(int(m.sum()), float(confidence[m].mean()), float(right[m].mean())) for m in chosen if m.any()]


def calibration_error(decisions: Decisions, temperature: float) -> Interval:
    """Returns the expected calibration error: the mean distance of accuracy and confidence in a bin of decisions."""
    confidence, right = _confidence(decisions, temperature)
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    examples = int(decisions.rows.max()) + 1
    gaps = np.zeros((examples, BINS))
    counts = np.zeros(examples)
    np.add.at(gaps, (decisions.rows, place), right - confidence)
    np.add.at(counts, decisions.rows, 1)
    drawn = draws(examples)
    resampled = np.abs(drawn @ gaps).sum(-1) / np.maximum(drawn @ counts, 1)
    return interval(np.abs(gaps.sum(0)).sum() / counts.sum(), resampled, better="lower")


class Answered(NamedTuple):
    """What happens below a threshold: the share of decisions that are at least as sure, and the accuracy of these."""

    threshold: float
    share: float
    accuracy: float | None


def answered(decisions: Decisions, temperature: float) -> list[Answered]:
    """Returns the share and accuracy of the decisions at each of several thresholds."""
    confidence, right = _confidence(decisions, temperature)
    sure = [(threshold, confidence >= threshold) for threshold in _THRESHOLDS]
    return [Answered(t, float(m.mean()), float(right[m].mean()) if m.any() else None) for t, m in sure]


def label_probabilities(decisions: Decisions, temperature: float) -> list[float]:
    """Returns the probability of the right class of each decision, lowest first; 0 for a class the model lacks."""
    p_NV, known = decisions.probabilities(temperature), decisions.labels != UNSEEN
    found = np.where(known, p_NV[np.arange(len(p_NV)), np.where(known, decisions.labels, 0)], 0.0)
    return np.sort(found).tolist()


def set_threshold(label_probabilities: Sequence[float], coverage: float) -> float:
    """Returns the probability from which on a class is in the set of a row (Sadinle et al. 2019, arXiv:1609.00451).

    Split conformal prediction: the sets contain the right class of at least `coverage` of the rows on average, if these
    are drawn as the held-out rows of `label_probabilities` were. 0, all classes, where these are too few to tell.

    Args:
        label_probabilities: of held-out rows, lowest first.
        coverage: between 0 and 1.
    """
    surplus = math.floor((len(label_probabilities) + 1) * (1.0 - coverage) + 1e-9)
    return float(label_probabilities[surplus - 1]) if surplus else 0.0


class Sets(NamedTuple):
    """Sets of classes: how many contain the right one, and their mean size."""

    coverage: Interval
    size: Interval


def score_sets(decisions: Decisions, temperature: float, threshold: float) -> Sets:
    """Returns how good the sets of classes of at least a probability are; the most likely class is always in."""
    p_NV = decisions.probabilities(temperature)
    inside_NV = (p_NV >= threshold) | (p_NV == p_NV.max(-1, keepdims=True))
    known = decisions.labels != UNSEEN
    hits = known & inside_NV[np.arange(len(p_NV)), np.where(known, decisions.labels, 0)]
    return Sets(_row_mean(hits, decisions.rows, "higher"), _row_mean(inside_NV.sum(-1), decisions.rows, "lower"))


def rank_area(scores: np.ndarray, positive: np.ndarray) -> Interval:
    """Returns the area under the ROC curve: how often a positive row has a higher score than another row.

    NaN if all rows are positive, or none is.
    """
    if positive.all() or not positive.any():
        return Interval(math.nan, math.nan, math.nan)
    order = np.argsort(scores, kind="stable")
    # Rows with the same score are one group: they count half.
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))

    def area(weights: np.ndarray) -> np.ndarray:
        ordered = weights[:, order].astype(np.float64)
        good, bad = (np.add.reduceat(ordered * chosen[order], starts, axis=-1) for chosen in (positive, ~positive))
        below = np.cumsum(bad, -1) - bad
        pairs = good.sum(-1) * bad.sum(-1)
        return np.where(pairs > 0, (good * (below + 0.5 * bad)).sum(-1) / np.maximum(pairs, 1), np.nan)

    return interval(float(area(np.ones((1, len(scores))))[0]), area(draws(len(scores))))


def _confidence(decisions: Decisions, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns (N,) highest probabilities and (N,) whether the class with it is right."""
    p_NV = decisions.probabilities(temperature)
    return p_NV.max(-1), decisions.logits.argmax(-1) == decisions.labels


def _row_mean(values: np.ndarray, rows: np.ndarray, better: Better) -> Interval:
    """Returns the mean over decisions, in resamples of the examples that these are part of."""
    examples = int(rows.max()) + 1
    totals, counts = np.bincount(rows, values, examples), np.bincount(rows, minlength=examples)
    drawn = draws(examples)
    return interval(totals.sum() / counts.sum(), drawn @ totals / np.maximum(drawn @ counts, 1), better)
