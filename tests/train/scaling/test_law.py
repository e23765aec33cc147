"""The fit recovers a known law; optima agree with published ones and minimize the loss of a budget."""

import dataclasses
import math

import numpy as np
import pytest

from configs.errors import UserError
from train.scaling import law as laws
from train.scaling.law import Law, Point, analyze, cautions, check_points, fit, hold_out_largest, optimum

TRUE = Law(E=1.9, A=320.0, alpha=0.34, B=1100.0, beta=0.37)
SIZES = np.geomspace(1e6, 1e8, 5)
TOKENS = np.geomspace(2e7, 2e9, 5)
CHINCHILLA_FLOPS = 5.76e23


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """A fraction of the resamples: wider noise in the bounds of intervals, which no test here depends on."""
    monkeypatch.setattr(laws, "RESAMPLES", 60)


def sweep(noise=0.0, law=TRUE, sizes=SIZES, tokens=TOKENS, seed=0):
    """A grid of runs with the losses of a law times exp(noise)."""
    rng = np.random.default_rng(seed)
    return [
        Point(n, d, 6 * n * d, law.loss(n, d) * math.exp(noise * rng.standard_normal())) for n in sizes for d in tokens
    ]


def test_fit_recovers_the_law_from_noiseless_losses():
    found = fit(sweep())
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(TRUE), rel=1e-3)


@pytest.mark.integration
@pytest.mark.parametrize("seed", range(3))
def test_fit_recovers_the_law_within_its_intervals_from_noisy_losses(seed):
    points = sweep(noise=0.005, seed=seed)
    found = analyze(points)
    assert found.law.alpha == pytest.approx(TRUE.alpha, abs=0.03)
    assert found.law.beta == pytest.approx(TRUE.beta, abs=0.03)
    assert pytest.approx(TRUE.E, rel=0.05) == found.law.E
    for name, (value, low, high, _) in found.law_figures().items():
        assert low <= value <= high, name
    best, figures = optimum(TRUE, 1e19), found.budget_figures(1e19)
    assert figures["parameters"][1] < best.parameters < figures["parameters"][2]
    assert figures["loss"][1] < best.loss < figures["loss"][2]
    assert figures["parameters"][2] / figures["parameters"][1] < 3
    assert not cautions(found, [])


@pytest.mark.integration
def test_fit_is_robust_to_one_outlier():
    points = sweep(noise=0.002)
    spoiled = [dataclasses.replace(points[7], loss=2 * points[7].loss), *points[:7], *points[8:]]
    assert optimum(fit(spoiled), 1e19).loss == pytest.approx(optimum(fit(points), 1e19).loss, rel=0.005)


def test_gradient_of_the_objective_equals_finite_differences():
    problem = laws._Problem.of(sweep(noise=0.01))
    x = problem.vector(Law(2.0, 200.0, 0.3, 900.0, 0.4))
    value, gradient = problem.objective(x)
    assert value > 0
    steps = 1e-6 * np.eye(5)
    numeric = [(problem.objective(x + h)[0] - problem.objective(x - h)[0]) / 2e-6 for h in steps]
    assert gradient == pytest.approx(numeric, rel=1e-3, abs=1e-3 * np.abs(numeric).max())


@pytest.mark.integration
def test_other_starting_points_find_no_lower_objective():
    points = sweep(noise=0.01, sizes=SIZES[:4], tokens=TOKENS[:4])
    problem = laws._Problem.of(points)
    found = problem.objective(problem.vector(fit(points)))[0]
    rng = np.random.default_rng(0)
    low, high = np.transpose(problem.bounds)
    for _ in range(30):
        other = problem.minimize([rng.uniform(np.maximum(low, high - 5), high)])
        assert found <= problem.objective(problem.vector(other))[0] * (1 + 1e-6)


def test_chinchilla_constants_give_the_published_optimum():
    """Hoffmann et al.: 40 billion parameters by approach 3, and N ~ C^0.46. Rounding the constants as printed moves the
    optimum to 32 billion (Besiroglu et al., arXiv:2404.10102, section 4)."""
    paper = Law(1.6934, 406.4, 0.3392, 410.7, 0.2849)
    best = optimum(paper, CHINCHILLA_FLOPS)
    assert best.parameters == pytest.approx(40e9, rel=0.02)
    assert best.parameters * best.tokens * 6 == pytest.approx(CHINCHILLA_FLOPS)
    growth = math.log10(optimum(paper, 10 * CHINCHILLA_FLOPS).parameters / best.parameters)
    assert growth == pytest.approx(0.46, abs=0.005)
    rounded = Law(1.69, 406.4, 0.34, 410.7, 0.28)
    assert optimum(rounded, CHINCHILLA_FLOPS).parameters == pytest.approx(32.2e9, rel=0.01)


def test_besiroglu_refit_agrees_with_chinchilla():
    """70 billion parameters, 20 tokens each."""
    best = optimum(Law(1.8172, 482.01, 0.3478, 2085.43, 0.3658), CHINCHILLA_FLOPS)
    assert 65e9 < best.parameters < 80e9
    assert 15 < best.tokens / best.parameters < 25


@pytest.mark.parametrize("flops, rate", [(1e13, 6.0), (1e19, 7.3), (1e24, 6.4)])
def test_optimum_minimizes_the_loss_of_the_budget(flops, rate):
    best = optimum(TRUE, flops, rate)
    assert best.parameters * best.tokens * rate == pytest.approx(flops)
    grid = np.geomspace(1e2, 1e14, 120_001)
    losses = TRUE.loss(grid, flops / rate / grid)
    assert best.loss == pytest.approx(losses.min(), rel=1e-9)
    assert best.parameters == pytest.approx(grid[losses.argmin()], rel=3e-4)


@pytest.mark.integration
def test_the_largest_run_is_held_out_of_the_fit():
    points = sweep()
    points[-1] = dataclasses.replace(points[-1], loss=points[-1].loss * 1.05)
    held_out = hold_out_largest(points)
    assert held_out.point is points[-1]
    assert held_out.predicted == pytest.approx(TRUE.loss(SIZES[-1], TOKENS[-1]), rel=1e-3)
    assert held_out.relative_error == pytest.approx(1 / 1.05 - 1, rel=1e-2)
    assert any("-4.8%" in line for line in cautions(analyze(points), []))


@pytest.mark.integration
def test_cautions_name_what_the_runs_do_not_determine():
    flat = [dataclasses.replace(p, loss=2 + 50 * p.tokens**-0.3) for p in sweep()]
    assert any("how the loss depends on parameters" in line for line in cautions(analyze(flat), []))
    below_zero = dataclasses.replace(TRUE, E=-0.5)
    no_floor = sweep(law=below_zero, tokens=TOKENS[:3])
    assert any(line.startswith("E is at a bound") for line in cautions(analyze(no_floor), []))
    few = analyze(sweep(sizes=SIZES[:3], tokens=TOKENS[:3]))
    assert any("only 9 runs" in line for line in cautions(few, []))
    # 300 times the compute is about 17 times the parameters.
    far = cautions(few, [300 * few.points[-1].flops])
    assert any("times beyond" in line for line in far)


def test_too_few_runs_are_an_error():
    for points in (sweep(sizes=SIZES[:2]), sweep(tokens=TOKENS[:2]), sweep(sizes=SIZES[:3], tokens=TOKENS[:3])[::4]):
        with pytest.raises(UserError, match="at least 6 runs, 3 sizes and 3 numbers of tokens"):
            check_points(points)
    diagonal = [Point(n, d, 6 * n * d, TRUE.loss(n, d)) for n, d in zip(SIZES, TOKENS, strict=True)]
    with pytest.raises(UserError, match="5 runs of 5 model sizes"):
        check_points(diagonal)
    assert hold_out_largest(diagonal) is None


def test_a_law_at_its_bounds_has_a_finite_optimum():
    for law in (Law(1.0, 1e9, 0.01, 1e-9, 0.01), Law(1.0, 1e-9, 0.01, 1e9, 0.01)):
        best = optimum(law, 1e20)
        assert best.parameters >= 1 and best.tokens >= 1 and math.isfinite(best.loss)
        assert best.parameters * best.tokens * 6 == pytest.approx(1e20)
