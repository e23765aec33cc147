"""Plots a scaling law: loss over training compute, one line per model size, and the compute-optimal frontier."""

import io
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import UserError
from train.scaling.law import Analysis, Law, Point, optimum
from train.scaling.report import human

_GREY, _ACCENT = "#30343b", "#d1495b"
# With more model sizes than this a color bar replaces the legend.
_LEGEND_SIZES = 8


def draw(analysis: Analysis, budgets: Sequence[float], path: Path) -> None:
    """Writes the plot as a PNG.

    Args:
        analysis: the fitted law and its runs.
        budgets: FLOPs; the optimum of each is marked.
        path: the file.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import ListedColormap, LogNorm
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("the plot needs matplotlib: pip install -e '.[plots]'") from None
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(7.2, 4.6), dpi=120, layout="constrained")
        axes = figure.add_subplot()
        axes.set_xscale("log")
        axes.grid(True, color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.margins(x=0.04, y=0.12)
        _frontier(axes, analysis, budgets)
        sizes = [point.parameters for point in analysis.points]
        # The palest colors of the map are invisible on white.
        colors = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.85, 0.05, 256)))
        shade: Any = ScalarMappable(LogNorm(min(sizes), max(sizes)), colors)
        named = len(set(sizes)) <= _LEGEND_SIZES
        _runs(axes, analysis, lambda parameters: shade.to_rgba(np.asarray(parameters)), named)
        if analysis.held_out is not None:
            held_out = analysis.held_out
            axes.plot(
                [held_out.point.flops], [held_out.predicted], "x", markersize=7, color=_ACCENT, zorder=4,
                label="largest run, predicted from the others",
            )  # fmt: skip
        if not named:
            figure.colorbar(shade, ax=axes, label="parameters", pad=0.01)
        _budgets(axes, analysis, budgets)
        axes.set_xlabel("training compute (model FLOPs)")
        axes.set_ylabel("held-out loss (nats per token)")
        axes.set_title(_formula(analysis.law), loc="left", fontsize=10)
        axes.legend(frameon=False, fontsize=8, loc="upper right")
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        path.write_bytes(picture.getvalue())


def _formula(law: Law) -> str:
    return f"L = {law.E:.2f} + {law.A:.3g} / N$^{{{law.alpha:.2f}}}$ + {law.B:.3g} / D$^{{{law.beta:.2f}}}$"


def _frontier(axes: Any, analysis: Analysis, budgets: Sequence[float]) -> None:  # noqa: ANN401 - matplotlib's Axes
    """Draws the lowest loss at each compute, with the 95 % band of the resamples."""
    flops = [point.flops for point in analysis.points]
    grid = np.geomspace(min(flops), max(*flops, *budgets) * 1.5, 100)
    rate = analysis.flops_per_parameter
    bands = [[optimum(law, c, rate).loss for c in grid] for law in analysis.laws]
    low, high = np.percentile(bands, [2.5, 97.5], axis=0)
    axes.fill_between(grid, low, high, color=_GREY, alpha=0.12, linewidth=0)
    best = [optimum(analysis.law, c, rate).loss for c in grid]
    axes.plot(grid, best, color=_GREY, linewidth=1.6, linestyle="--", label="compute-optimal, fitted (95 %)")


def _runs(axes: Any, analysis: Analysis, color_of: Callable[[float], Any], named: bool) -> None:  # noqa: ANN401
    """Draws one color per model size: runs as dots, the law as a line."""
    by_size: dict[float, list[Point]] = defaultdict(list)
    for point in sorted(analysis.points, key=lambda point: (point.parameters, point.tokens)):
        by_size[point.parameters].append(point)
    for parameters, points in by_size.items():
        color = color_of(parameters)
        tokens = np.geomspace(points[0].tokens, points[-1].tokens, 50)
        flops = tokens * points[-1].flops / points[-1].tokens
        label = f"{human(parameters)} parameters" if named else None
        axes.plot(flops, [analysis.law.loss(parameters, d) for d in tokens], color=color, linewidth=1)
        axes.plot([p.flops for p in points], [p.loss for p in points], "o", markersize=4.5, color=color, label=label)


def _budgets(axes: Any, analysis: Analysis, budgets: Sequence[float]) -> None:  # noqa: ANN401 - matplotlib's Axes
    for number, flops in enumerate(budgets):
        best = optimum(analysis.law, flops, analysis.flops_per_parameter)
        label = "optimum of the budget" if number == 0 else None
        axes.plot([flops], [best.loss], "*", markersize=13, color=_ACCENT, zorder=5, label=label)
        axes.annotate(
            f"{human(best.parameters)} parameters\n{human(best.tokens)} tokens",
            (flops, best.loss), xytext=(-6, -9), textcoords="offset points", ha="right", va="top",
            color=_ACCENT, fontsize=8,
        )  # fmt: skip
