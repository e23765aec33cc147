"""A learning curve: the metric at each number of labels, what each step gained, and whether more labels help.

Intervals are 95 % and come from two sources: the test rows, which all points share, and the seeds, which draw other
training rows, initial heads and orders. They are normal approximations. Gains are as if two points had different test
rows, which makes their intervals wider than necessary.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from train.evaluation.interval import Interval

_Z = 1.96  # standard errors in half a 95 % interval
# From so many seeds on, their spread says something.
_MIN_SEEDS = 2
# Steps in a row without a clear gain after which the curve ends.
_FLAT_STEPS = 2


@dataclasses.dataclass(frozen=True)
class Point:
    """The models at one number of labels.

    Attributes:
        labels: training rows per class; 0: all.
        rows: training rows, the mean over the seeds.
        metrics: {model: the metric with each seed}.
    """

    labels: int
    rows: float
    metrics: Mapping[str, Sequence[Interval]]

    @property
    def name(self) -> str:
        """Returns the number of labels as text."""
        return f"{self.labels:,}" if self.labels else "all"


def mean(seeds: Sequence[Interval]) -> Interval:
    """Returns the mean over the seeds, with an interval for the test rows and the seeds together."""
    values = np.array([figure.value for figure in seeds])
    value, spread = float(values.mean()), _Z**2 * _variance_of_mean(values)
    # The bootstrap of an accuracy near 1 is wider below than above.
    below, above = (
        math.sqrt(float(np.mean([(getattr(figure, end) - figure.value) ** 2 for figure in seeds])) + spread)
        for end in ("low", "high")
    )
    low, high = value - below, value + above
    if all(0 <= figure.low and figure.high <= 1 for figure in seeds):
        # A share of rows, whose normal approximation knows no bounds.
        low, high = max(low, 0.0), min(high, 1.0)
    return Interval(value, low, high, seeds[0].better)


def gain(before: Sequence[Interval], after: Sequence[Interval]) -> Interval:
    """Returns how much better the mean over the seeds became; above 0 is better. The same seed is paired."""
    sign = 1 if after[0].better == "higher" else -1
    count = min(len(before), len(after))
    steps = np.array([sign * (b.value - a.value) for a, b in zip(before[:count], after[:count], strict=True)])
    rows = _variance_of_rows(before) + _variance_of_rows(after)
    half = _Z * math.sqrt(rows + _variance_of_mean(steps))
    value = float(steps.mean())
    return Interval(value, value - half, value + half)


def _variance_of_rows(seeds: Sequence[Interval]) -> float:
    """Returns the variance that the test rows cause: the same rows with every seed, so it does not shrink."""
    return float(np.mean([((figure.high - figure.low) / (2 * _Z)) ** 2 for figure in seeds]))


def _variance_of_mean(values: np.ndarray) -> float:
    return float(values.var(ddof=1) / len(values)) if len(values) > 1 else 0.0


def helped(before: Sequence[Interval], after: Sequence[Interval]) -> bool:
    """Returns whether the gain is clear: its interval is above 0, with at least two seeds."""
    return min(len(before), len(after)) >= _MIN_SEEDS and gain(before, after).low > 0


def is_flat(curve: Sequence[Sequence[Interval]]) -> bool:
    """Returns whether the last steps brought no clear gain, alone or together, so that the next will hardly."""
    if len(curve) <= _FLAT_STEPS:
        return False
    last = curve[-1 - _FLAT_STEPS :]
    return not any(helped(last[i], last[j]) for i in range(len(last)) for j in range(i + 1, len(last)))


def flat_from(curve: Sequence[Sequence[Interval]]) -> int:
    """Returns the index of the first point that no later point is clearly better than."""
    indices = range(len(curve))
    return next(i for i in indices if not any(helped(curve[i], later) for later in curve[i + 1 :]))


def verdict(points: Sequence[Point], model: str, metric: str, stopped: bool) -> str:
    """Returns a sentence: whether more labels help.

    Args:
        points: ascending number of labels, at least two.
        model: whose metric decides.
        metric: its name.
        stopped: the curve ended before all labels were used.
    """
    curve = [point.metrics[model] for point in points]
    start = flat_from(curve)
    last, whose = points[-1], f"{metric} of the {model} model"
    if start == len(points) - 1:
        step = gain(curve[-2], curve[-1])
        return (
            f"more labels help: from {_labels(points[-2])} to {_labels(last)}, {whose} went from "
            f"{mean(curve[-2]).value:.3f} to {mean(curve[-1]).value:.3f}, a gain of {_shown(step)}"
        )
    step = gain(curve[start], curve[-1])
    rest = "; the remaining points are skipped" if stopped else ""
    return (
        f"more labels do not help from {_labels(points[start])} on: up to {_labels(last)}, {whose} went from "
        f"{mean(curve[start]).value:.3f} to {mean(curve[-1]).value:.3f}, a gain of {_shown(step)}, which may be chance"
        f"{rest}"
    )


def against(points: Sequence[Point], model: str, other: str) -> str:
    """Returns a sentence: from how many labels on a model is clearly better than another, or that it never is."""
    better = [helped(point.metrics[other], point.metrics[model]) for point in points]
    if better[-1]:
        first = len(better) - next((i for i, b in enumerate(reversed(better)) if not b), len(better))
        return f"the {model} model is clearly better than {other} from {_labels(points[first])} on"
    worse = helped(points[-1].metrics[model], points[-1].metrics[other])
    how = "clearly worse" if worse else "not clearly better"
    return f"with {_labels(points[-1])}, the {model} model is {how} than {other}"


def _labels(point: Point) -> str:
    return f"{point.labels:,} labels per class" if point.labels else f"all {point.rows:,.0f} labels"


def _shown(figure: Interval) -> str:
    return f"{figure.value:+.3f} [{figure.low:+.3f}, {figure.high:+.3f}]"
