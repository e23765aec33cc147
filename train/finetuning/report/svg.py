"""The charts of the report as inline SVG, one unit per pixel: interval bars, loss curves, the heat map.

Colors are CSS variables of the page, so that they follow its light and dark mode.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from rich.cells import cell_len

from train.evaluation.interval import Interval

Points = Sequence[tuple[float, float]]

# Number of line colors that `html.py` defines: --line-0, --line-1 and so on.
LINES = 4
_BAR_WIDTH, _BAR_HEIGHT = 140, 12
_CHART_WIDTH, _CHART_HEIGHT = 380, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 14, 10, 40
# More points than this are not visible at this width.
_MAX_POINTS = 400
_CELL, _GAP = 30, 2
# Character width of the widest font that browsers use for system-ui (DejaVu Sans).
_CHARACTER = 7.6
_MAX_NAME_LEN = 24


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Returns round numbers, the first at or below `low`, the last at or above `high`, in about `about` steps."""
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(m * power for m in (1, 2, 5, 10) if m * power * about >= span * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    # Twelve digits, so that 3 * 0.1 is 0.3, however small the step.
    return [float(f"{number * step:.12g}") for number in range(first, max(last, first + 1) + 1)]


def interval_bar(figure: Interval, low: float, high: float) -> str:
    """Returns the interval as a bar and the value as a dot, on a scale from `low` to `high`."""

    def x(value: float) -> float:
        return 4 + (value - low) / (high - low) * (_BAR_WIDTH - 8)

    left, right, middle = x(figure.low), x(figure.high), _BAR_HEIGHT / 2
    return (
        f'<svg class="interval" width="{_BAR_WIDTH}" height="{_BAR_HEIGHT}" aria-hidden="true">'
        f'<line class="axis" x1="4" x2="{_BAR_WIDTH - 4}" y1="{middle}" y2="{middle}"/>'
        f'<rect x="{left:.1f}" y="{middle - 4}" width="{max(right - left, 1):.1f}" height="8" rx="2"/>'
        f'<circle cx="{x(figure.value):.1f}" cy="{middle}" r="2"/></svg>'
    )


class Axis(NamedTuple):
    """An axis of a chart.

    Attributes:
        name: what it shows.
        ticks: numbers, ascending; it ends at the first and the last of them.
        logarithmic: equal ratios have equal lengths.
    """

    name: str
    ticks: Sequence[float]
    logarithmic: bool = False

    def part(self, value: float) -> float:
        """Returns where a value is, from 0 at the first tick to 1 at the last."""
        scale = math.log if self.logarithmic else float
        first, last = scale(self.ticks[0]), scale(self.ticks[-1])
        return (scale(value) - first) / (last - first)


def reliability_chart(title: str, lines: Mapping[int, Points]) -> str:
    """Returns a chart of accuracy over probability, both from 0 to 1, with the line on which they are equal."""
    marks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    return line_chart(title, lines, Axis("probability", marks), Axis("accuracy", marks), diagonal=True)


def line_chart(
    title: str,
    lines: Mapping[int, Points],
    x_axis: Axis,
    y_axis: Axis,
    diagonal: bool = False,
    bars: Mapping[int, Sequence[tuple[float, float, float]]] = MappingProxyType({}),
) -> str:
    """Returns a chart of y over x, such as of loss over steps.

    Args:
        title: accessible description (aria-label).
        lines: color number -> points (x, y).
        x_axis: the x axis.
        y_axis: the y axis.
        diagonal: draw the line y = x.
        bars: color number -> intervals (x, low, high).
    """
    bottom, right = _CHART_HEIGHT - _BOTTOM, _CHART_WIDTH - _RIGHT

    def x(value: float) -> float:
        return _LEFT + x_axis.part(value) * (right - _LEFT)

    def y(value: float) -> float:
        return bottom - y_axis.part(value) * (bottom - _TOP)

    x_ticks, y_ticks = x_axis.ticks, y_axis.ticks
    decimals = max(len(f"{t:g}".partition(".")[2]) for t in y_ticks)
    parts = [
        f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text x="{_LEFT - 6}" y="{y(t) + 4:.1f}" text-anchor="end">{t:.{decimals}f}</text>'
        for t in y_ticks
    ]
    parts += [
        f'<line class="axis" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
        f'<text x="{x(t):.1f}" y="{bottom + 17}" text-anchor="middle">{_short(t)}</text>'
        for t in x_ticks
    ]
    parts.append(f'<text x="{(_LEFT + right) / 2}" y="{_CHART_HEIGHT - 6}" text-anchor="middle">{x_axis.name}</text>')
    parts.append(
        f'<text transform="translate(11 {(_TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">{y_axis.name}</text>'
    )
    if diagonal:
        parts.append(f'<line class="even" x1="{x(0):.1f}" y1="{y(0):.1f}" x2="{x(1):.1f}" y2="{y(1):.1f}"/>')
    for number, intervals in bars.items():
        parts.append(f'<g class="line-{number % LINES}">')
        parts += [
            f'<polyline points="{x(a):.1f},{y(low):.1f} {x(a):.1f},{y(high):.1f}"/>' for a, low, high in intervals
        ]
        parts.append("</g>")
    for number, points in lines.items():
        shown = [(x(step), y(loss)) for step, loss in _thinned(points)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in shown)
        parts.append(f'<g class="line-{number % LINES}"><polyline points="{path}"/>')
        if len(shown) <= _MAX_POINTS / 10:
            parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.5"/>' for a, b in shown]
        parts.append("</g>")
    size = f'viewBox="0 0 {_CHART_WIDTH} {_CHART_HEIGHT}"'
    return f'<svg class="chart" {size} role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def _thinned(points: Points) -> Points:
    """Returns at most `_MAX_POINTS` points, each the mean of neighboring ones."""
    if len(points) <= _MAX_POINTS:
        return points
    return [tuple(part.mean(0)) for part in np.array_split(np.asarray(points), _MAX_POINTS)]


def _short(number: float) -> str:
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g}{suffix}"
    return f"{number:g}"


def heat_map(classes: Sequence[str], counts: np.ndarray, totals: np.ndarray) -> str:
    """Returns the counts as colored cells, with a row per expected and a column per predicted class.

    Args:
        classes: names of the rows and columns.
        counts: (classes, classes).
        totals: number of examples of each expected class; the color of a cell shows its fraction of them.
    """
    names = [name if len(name) <= _MAX_NAME_LEN else name[: _MAX_NAME_LEN - 1] + "…" for name in classes]
    # Chinese characters are two columns wide.
    longest = max(map(cell_len, names)) * _CHARACTER
    left, top = longest + 12, longest * 0.72 + 16
    # The rotated name of the last column extends beyond its cell.
    width, height = left + len(names) * _CELL + longest * 0.72 + 8, top + len(names) * _CELL + 4
    parts = []
    for i, name in enumerate(names):
        middle = (i + 0.5) * _CELL
        text = f"{escape(name)}<title>{escape(classes[i])}</title>"
        parts.append(f'<text x="{left - 6:.1f}" y="{top + middle + 4:.1f}" text-anchor="end">{text}</text>')
        parts.append(f'<text transform="translate({left + middle:.1f} {top - 6:.1f}) rotate(-45)">{text}</text>')
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            parts.append(_cell(left + j * _CELL, top + i * _CELL, int(count), int(totals[i]), i == j))
    return (
        f'<svg class="confusion" width="{width:.0f}" height="{height:.0f}" role="img" '
        f'aria-label="Rows: expected class; columns: predicted class">{"".join(parts)}</svg>'
    )


def _cell(x: float, y: float, count: int, total: int, right: bool) -> str:
    size = _CELL - _GAP
    part = count / total if total else 0.0
    cell = f'<rect class="empty" x="{x:.1f}" y="{y:.1f}" width="{size}" height="{size}" rx="3"/>'
    if not count:
        return cell
    # A minimum opacity keeps small counts visible.
    kind = "right" if right else "wrong"
    cell += cell.replace('"empty"', f'"{kind}" fill-opacity="{0.12 + 0.88 * part:.2f}"')
    dark = ' class="on-dark"' if part > 0.5 else ""
    text = f"{count}" if count < 1000 else _short(round(count, -2))
    return cell + f'<text{dark} x="{x + size / 2:.1f}" y="{y + size / 2 + 4:.1f}" text-anchor="middle">{text}</text>'
