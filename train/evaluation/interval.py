"""Metrics with 95 % intervals: the percentile bootstrap over held-out rows (Efron 1979)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

RESAMPLES = 1000
_SEED = 0
_PERCENTILES = (2.5, 97.5)
# Drawn rows that are averaged at once, which bounds the memory.
_CHUNK_ROWS = 1 << 22

Better = Literal["higher", "lower"]


class Interval(NamedTuple):
    """A value, the range that contains 95 % of its bootstrap resamples, and which direction is better."""

    value: float
    low: float
    high: float
    better: Better = "higher"


def resamples(n: int) -> np.ndarray:
    """Returns int32 (`RESAMPLES`, n): row indices drawn with replacement, the same in every call.

    All metrics share these draws. `scipy.stats.bootstrap` draws its own, which would change every published interval.
    """
    return np.random.default_rng(_SEED).integers(0, n, (RESAMPLES, n), dtype=np.int32)


def draws(n: int) -> np.ndarray:
    """Returns float32 (`RESAMPLES`, n): how often each row occurs in each of the `resamples`."""
    return np.stack([np.bincount(rows, minlength=n) for rows in resamples(n)]).astype(np.float32)


def interval(value: float, resampled: Sequence[float] | np.ndarray, better: Better = "higher") -> Interval:
    """Returns a value with the percentiles of its resampled values, widened if necessary to contain the value.

    Args:
        value: the metric over all rows.
        resampled: the metric in each resample; NaN where it is undefined there, such as an F1 without any label. These
            resamples are left out, because any number in their place would be made up.
        better: which direction is better.
    """
    found = np.asarray(resampled, np.float64)
    found = found[~np.isnan(found)]
    low, high = np.percentile(found, _PERCENTILES) if len(found) else (value, value)
    # Rounding, and the bias of metrics that are not means, can leave the value just outside.
    return Interval(float(value), min(float(low), float(value)), max(float(high), float(value)), better)


def bootstrap(
    metric: Callable[[np.ndarray], float], n: int, better: Better = "higher", undefined: float = math.nan
) -> Interval:
    """Returns the interval of a metric over n rows.

    Args:
        metric: row indices, which may repeat -> the metric over these rows, or NaN if it is undefined for them.
        n: number of rows.
        better: which direction is better.
        undefined: the value to report if the metric is undefined for all rows together.
    """
    value = metric(np.arange(n))
    if math.isnan(value):
        return Interval(undefined, undefined, undefined, better)
    return interval(value, [metric(rows) for rows in resamples(n)], better)


def mean_interval(per_row: Sequence[float] | np.ndarray, better: Better = "higher") -> Interval:
    """Returns the interval of a mean over rows."""
    values = np.asarray(per_row, np.float64)
    size = max(_CHUNK_ROWS // len(values), 1)
    rows = resamples(len(values))
    means = [values[rows[i : i + size]].mean(-1) for i in range(0, RESAMPLES, size)]
    return interval(values.mean(), np.concatenate(means), better)


def gain(before: Interval, after: Interval) -> dict[str, Any]:
    """Returns {"relative_gain", "intervals_overlap"} of one model's metric over that of another.

    The relative gain is the relative increase, or decrease if lower is better; None if `before` is not above 0.
    """
    sign = 1 if after.better == "higher" else -1
    disjoint = after.low > before.high or after.high < before.low
    return {
        "relative_gain": sign * (after.value / before.value - 1) if before.value > 0 else None,
        "intervals_overlap": not disjoint,
    }


def as_json(metrics: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    """Returns the metrics as `results.json` and `--json` contain them."""
    return {name: {"value": i.value, "low": i.low, "high": i.high} for name, i in metrics.items()}
