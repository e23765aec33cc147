"""Fits the Chinchilla law L(N, D) = E + A / N^alpha + B / D^beta, with intervals and compute-optimal points.

Pure functions of finished runs. N: parameters; D: training tokens; L: held-out loss in nats per token.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter

import numpy as np

from configs.errors import UserError
from train.evaluation.interval import Interval, interval

# L-BFGS-B solves tiny linear systems; OpenBLAS would use all threads for each, 30 times slower on busy cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from scipy.optimize import minimize, nnls

# Hoffmann et al. 2022 (arXiv:2203.15556), section 3.3.
HUBER_DELTA = 1e-3
RESAMPLES = 400
_SEED = 0  # of the resamples
# The law has five parameters; with fewer than three values of N (or D) its curvature is undetermined.
MIN_DISTINCT = 3
_UNKNOWNS = 5
_EXPONENTS = (0.01, 2.0)
_STARTS = (0.1, 0.3, 0.7, 1.5)
# Thresholds for cautions.
_FEW_POINTS = 10
_LARGE_MISS = 0.02
_FAR = 10.0
_AT_BOUND_SHARE = 0.05
_PARTS = {
    "the irreducible loss": ["E"],
    "how the loss depends on parameters": ["A", "alpha"],
    "how the loss depends on tokens": ["B", "beta"],
}


@dataclasses.dataclass(frozen=True)
class Point:
    """One finished run: N parameters, D tokens, training FLOPs of the model, held-out loss (nats per token)."""

    parameters: float
    tokens: float
    flops: float
    loss: float


@dataclasses.dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^alpha + B / D^beta, in nats per token."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """Returns L(N, D)."""
        return self.E + self.A * parameters**-self.alpha + self.B * tokens**-self.beta


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The compute-optimal N and D for a budget, and the loss that the law predicts there."""

    parameters: float
    tokens: float
    loss: float


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The run with the largest compute, and its loss predicted by the law fitted on all other runs."""

    point: Point
    predicted: float

    @property
    def relative_error(self) -> float:
        """(predicted - measured) / measured."""
        return self.predicted / self.point.loss - 1


def check_points(points: Sequence[Point]) -> None:
    """Raises UserError if there are too few points to fit the law and estimate its uncertainty."""
    sizes, lengths = _distinct(points)
    if not _determined(points) or len(set(points)) == _UNKNOWNS:
        raise UserError(
            f"{len(set(points))} runs of {sizes} model sizes and {lengths} numbers of tokens do not determine the law; "
            f"expected at least {_UNKNOWNS + 1} runs, {MIN_DISTINCT} sizes and {MIN_DISTINCT} numbers of tokens"
        )


def _distinct(points: Sequence[Point]) -> tuple[int, int]:
    return len({p.parameters for p in points}), len({p.tokens for p in points})


def _determined(points: Sequence[Point]) -> bool:
    return min(_distinct(points)) >= MIN_DISTINCT and len(set(points)) >= _UNKNOWNS


def fit(points: Sequence[Point]) -> Law:
    """Returns the law that minimizes the summed Huber loss of log L (arXiv:2203.15556, eq. 3) by L-BFGS.

    The starting points are a grid over alpha and beta; at each, E, A and B, in which the law is linear, are solved by
    non-negative least squares (variable projection, arXiv:2603.22339).
    """
    problem = _Problem.of(points)
    return problem.minimize(problem.grid())


@dataclasses.dataclass(frozen=True)
class _Problem:
    """The objective over x = (log E, log A/n^alpha, alpha, log B/d^beta, beta), n and d geometric means of N and D.

    Centering at the means makes the terms comparable to the loss and nearly decouples A from alpha; log A itself is so
    strongly correlated with alpha that the optimizer would follow a narrow valley in tiny steps.
    """

    log_n: np.ndarray
    log_d: np.ndarray
    log_loss: np.ndarray
    center: tuple[float, float]
    bounds: np.ndarray

    @classmethod
    def of(cls, points: Sequence[Point]) -> "_Problem":
        log_n, log_d, log_loss = np.log([(p.parameters, p.tokens, p.loss) for p in points]).T
        center = float(log_n.mean()), float(log_d.mean())
        low, high = log_loss.min(), log_loss.max()
        term = (low - math.log(1e6), high + math.log(10))
        bounds = np.array([(low - math.log(1e3), high), term, _EXPONENTS, term, _EXPONENTS])
        return cls(log_n - center[0], log_d - center[1], log_loss, center, bounds)

    def take(self, rows: np.ndarray) -> "_Problem":
        """Returns the problem of a resample, in the same coordinates and bounds."""
        return dataclasses.replace(self, log_n=self.log_n[rows], log_d=self.log_d[rows], log_loss=self.log_loss[rows])

    def objective(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Returns (summed Huber loss divided by delta^2, its gradient)."""
        e, a, alpha, b, beta = x
        terms = np.stack([np.full_like(self.log_n, e), a - alpha * self.log_n, b - beta * self.log_d])
        total = np.logaddexp.reduce(terms)
        shares = np.exp(terms - total)
        residual = (total - self.log_loss) / HUBER_DELTA
        small = np.abs(residual) <= 1
        value = np.where(small, residual**2 / 2, np.abs(residual) - 0.5).sum()
        e_slope, a_slope, b_slope = shares * np.clip(residual, -1, 1) / HUBER_DELTA
        slopes = [e_slope, a_slope, -a_slope * self.log_n, b_slope, -b_slope * self.log_d]
        return float(value), np.array([slope.sum() for slope in slopes])

    def minimize(self, starts: Sequence[np.ndarray]) -> Law:
        """Returns the best L-BFGS result over all starting points.

        The objective is a sum in units of delta, not a mean, and the tolerances are tight: with a small objective the
        paper's optimizer stopped too early (Besiroglu et al. 2024, arXiv:2404.10102).
        """
        results = [
            minimize(
                self.objective,
                np.clip(start, *self.bounds.T),
                jac=True,
                method="L-BFGS-B",
                bounds=self.bounds,
                options={"maxiter": 2000, "maxfun": 4000, "ftol": 1e-11, "gtol": 1e-6},
            )
            for start in starts
        ]
        return self.law(min(results, key=lambda result: result.fun).x)

    def grid(self) -> list[np.ndarray]:
        """Returns starting points x over a grid of alpha and beta, with the best E, A and B of each."""
        loss = np.exp(self.log_loss)
        starts = []
        for alpha in _STARTS:
            for beta in _STARTS:
                columns = [np.ones_like(loss), np.exp(-alpha * self.log_n), np.exp(-beta * self.log_d)]
                amplitudes, _ = nnls(np.stack(columns, 1) / loss[:, None], np.ones_like(loss))
                e, a, b = np.log(np.maximum(amplitudes, 1e-2 * loss.min()))
                starts.append(np.array([e, a, alpha, b, beta]))
        return starts

    def vector(self, law: Law) -> np.ndarray:
        n, d = self.center
        return np.array(
            [math.log(law.E), math.log(law.A) - law.alpha * n, law.alpha, math.log(law.B) - law.beta * d, law.beta]
        )

    def law(self, x: np.ndarray) -> Law:
        e, a, alpha, b, beta = map(float, x)
        return Law(math.exp(e), math.exp(a + alpha * self.center[0]), alpha, math.exp(b + beta * self.center[1]), beta)

    def at_bound(self, law: Law) -> dict[str, bool]:
        """Returns {parameter of the law: whether it is at a bound of the fit}."""
        x = self.vector(law)
        near = (x - self.bounds[:, 0] < 1e-6) | (self.bounds[:, 1] - x < 1e-6)
        return dict(zip(dataclasses.asdict(law), near.tolist(), strict=True))


def optimum(law: Law, flops: float, flops_per_parameter: float = 6.0) -> Optimum:
    """Returns the N and D with the lowest loss under flops = flops_per_parameter * N * D (arXiv:2203.15556, eq. 4).

    Args:
        law: the fitted law.
        flops: the budget in model FLOPs for the whole training.
        flops_per_parameter: FLOPs per token and parameter; 6 if attention scores are not counted.
    """
    log_product = math.log(flops / flops_per_parameter)
    ratio = math.log(law.alpha * law.A / (law.beta * law.B))
    log_n = (ratio + law.beta * log_product) / (law.alpha + law.beta)
    # A law at its bounds may extrapolate to less than one parameter or one token.
    log_n = min(max(log_n, 0.0), log_product)
    parameters, tokens = math.exp(log_n), math.exp(log_product - log_n)
    return Optimum(parameters, tokens, law.loss(parameters, tokens))


def resampled_laws(points: Sequence[Point], law: Law) -> list[Law]:
    """Returns the laws fitted on `RESAMPLES` bootstrap resamples of the points; see `interval`.

    A resample that does not determine the law is redrawn. Each fit starts from `law` only: on resamples of synthetic
    sweeps the grid of starting points found nothing lower.
    """
    rng = np.random.default_rng(_SEED)
    problem = _Problem.of(points)
    start = problem.vector(law)
    laws: list[Law] = []
    while len(laws) < RESAMPLES:
        rows = rng.integers(0, len(points), len(points))
        if _determined([points[row] for row in rows]):
            laws.append(problem.take(rows).minimize([start]))
    return laws


def hold_out_largest(points: Sequence[Point]) -> HeldOut | None:
    """Returns the largest run with its predicted loss, or None if the other runs do not determine a law."""
    largest = max(points, key=lambda point: point.flops)
    others = [point for point in points if point is not largest]
    if not _determined(others):
        return None
    return HeldOut(largest, fit(others).loss(largest.parameters, largest.tokens))


def rms_residual(points: Sequence[Point], law: Law) -> float:
    """Returns the root mean square of log(fitted loss / measured loss)."""
    return math.sqrt(np.mean([math.log(law.loss(p.parameters, p.tokens) / p.loss) ** 2 for p in points]))


@dataclasses.dataclass(frozen=True)
class Analysis:
    """The fitted law with its uncertainty and its check.

    Attributes:
        points: the runs.
        law: fitted on all runs.
        laws: fitted on resamples, for intervals.
        held_out: the check on the largest run; None if the other runs do not determine a law.
        flops_per_parameter: FLOPs per token and parameter of the largest run; budgets are converted with it.
    """

    points: Sequence[Point]
    law: Law
    laws: Sequence[Law]
    held_out: HeldOut | None
    flops_per_parameter: float

    def law_figures(self) -> dict[str, Interval]:
        """Returns the five parameters of the law with intervals."""
        return {f.name: self._interval(attrgetter(f.name)) for f in dataclasses.fields(Law)}

    def budget_figures(self, flops: float) -> dict[str, Interval]:
        """Returns the optimum of a budget with intervals: parameters, tokens, tokens_per_parameter, loss."""
        best = partial(optimum, flops=flops, flops_per_parameter=self.flops_per_parameter)
        figures: dict[str, Callable[[Law], float]] = {
            "parameters": lambda law: best(law).parameters,
            "tokens": lambda law: best(law).tokens,
            "tokens_per_parameter": lambda law: best(law).tokens / best(law).parameters,
            "loss": lambda law: best(law).loss,
        }
        return {name: self._interval(figure) for name, figure in figures.items()}

    def _interval(self, figure: Callable[[Law], float]) -> Interval:
        return interval(figure(self.law), [figure(law) for law in self.laws])


def analyze(points: Sequence[Point]) -> Analysis:
    """Returns the `Analysis` of finished runs.

    Raises:
        UserError: see `check_points`.
    """
    check_points(points)
    law = fit(points)
    largest = max(points, key=lambda point: point.flops)
    rate = largest.flops / (largest.parameters * largest.tokens)
    return Analysis(points, law, resampled_laws(points, law), hold_out_largest(points), rate)


def cautions(analysis: Analysis, budgets: Sequence[float]) -> list[str]:
    """Returns the reasons not to trust the fit, one line each; empty if there are none."""
    points, law, held_out, lines = analysis.points, analysis.law, analysis.held_out, []
    if len(points) < _FEW_POINTS:
        lines.append(f"only {len(points)} runs for the {_UNKNOWNS} parameters of the law; use at least {_FEW_POINTS}")
    lines += _undetermined(analysis)
    if held_out is None:
        lines.append("no held-out check: the runs without the largest one do not determine the law")
    elif abs(held_out.relative_error) > _LARGE_MISS:
        lines.append(f"the law fitted without the largest run misses it by {held_out.relative_error:+.1%}")
    for flops in budgets:
        best = optimum(law, flops, analysis.flops_per_parameter)
        reach = max(_outside(points, best.parameters, "parameters"), _outside(points, best.tokens, "tokens"))
        if reach > _FAR:
            lines.append(f"the optimum of {flops:.3g} FLOPs is {reach:.3g} times beyond the range of the runs")
    return lines


def _undetermined(analysis: Analysis) -> list[str]:
    """Returns one line for each term of the law that is at a bound of the fit, or of many resampled fits."""
    problem = _Problem.of(analysis.points)
    here, resampled = problem.at_bound(analysis.law), [problem.at_bound(law) for law in analysis.laws]
    lines = []
    for meaning, names in _PARTS.items():
        share = np.mean([any(at_bound[name] for name in names) for at_bound in resampled])
        if any(here[name] for name in names):
            lines.append(f"{' or '.join(names)} is at a bound of the fit: the runs do not determine {meaning}")
        elif share > _AT_BOUND_SHARE:
            lines.append(
                f"{' or '.join(names)} is at a bound in {share:.0%} of the resamples: {meaning} is poorly determined"
            )
    return lines


def _outside(points: Sequence[Point], value: float, name: str) -> float:
    """Returns the factor by which a value is outside the range of the points; 1 if inside."""
    values = [getattr(point, name) for point in points]
    return max(min(values) / value, value / max(values), 1.0)
