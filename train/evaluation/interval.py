"""A figure with its 95 % interval: a percentile bootstrap over held-out rows (Efron 1979)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

RESAMPLES = 1000
_SEED = 0
_PERCENTILES = (2.5, 97.5)
# Rows of a resample that are averaged at once, which bounds the memory.
_AT_ONCE = 1 << 22

Better = Literal["higher", "lower"]


class Interval(NamedTuple):
    """A figure, between which values 95 % of its resamples lie, and which direction is better."""

    value: float
    low: float
    high: float
    better: Better = "higher"


def resamples(n: int) -> np.ndarray:
    """Returns int32 (`RESAMPLES`, n): row numbers drawn with replacement, the same each time."""
    return np.random.default_rng(_SEED).integers(0, n, (RESAMPLES, n), dtype=np.int32)


def draws(n: int) -> np.ndarray:
    """Returns float32 (`RESAMPLES`, n): how often each row is in each of the `resamples`."""
    return np.stack([np.bincount(rows, minlength=n) for rows in resamples(n)]).astype(np.float32)


def interval(value: float, resampled: Sequence[float] | np.ndarray, better: Better = "higher") -> Interval:
    """Returns a figure with the percentiles of its resamples."""
    low, high = np.percentile(np.asarray(resampled, np.float64), _PERCENTILES)
    return Interval(float(value), float(low), float(high), better)


def bootstrap(metric: Callable[[np.ndarray], float], n: int, better: Better = "higher") -> Interval:
    """Returns the interval of a figure of n rows.

    Args:
        metric: row numbers, which may repeat -> the figure over these rows.
        n: rows.
        better: which direction is.
    """
    return interval(metric(np.arange(n)), [metric(rows) for rows in resamples(n)], better)


def mean_interval(per_row: Sequence[float] | np.ndarray, better: Better = "higher") -> Interval:
    """Returns the interval of a mean over rows."""
    values = np.asarray(per_row, np.float64)
    size = max(_AT_ONCE // len(values), 1)
    rows = resamples(len(values))
    means = [values[rows[i : i + size]].mean(-1) for i in range(0, RESAMPLES, size)]
    return interval(values.mean(), np.concatenate(means), better)


def gain(before: Interval, after: Interval) -> dict[str, Any]:
    """Returns {"relative_gain", "apart"}: by which part it got better, and whether the two intervals do not overlap.

    Of a figure that is better when lower, the gain is the part by which it fell. None where it was not above 0.
    """
    sign = 1 if after.better == "higher" else -1
    apart = after.low > before.high if sign > 0 else after.high < before.low
    return {"relative_gain": sign * (after.value / before.value - 1) if before.value > 0 else None, "apart": apart}


def as_json(metrics: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    """Returns the figures as `results.json` and `--json` hold them."""
    return {name: {"value": i.value, "low": i.low, "high": i.high} for name, i in metrics.items()}
