"""Loss curves as inline SVG: a picture that needs no library, no script and no network."""

import html
import math
from collections.abc import Callable, Mapping, Sequence

_WIDTH, _HEIGHT = 720, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 14, 40
_COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea")
_TICKS = 5

Curve = Sequence[tuple[float, float]]


def line_chart(curves: Mapping[str, tuple[Curve, Curve]], x_label: str, y_label: str) -> str:
    """Returns an <svg> of curves.

    Args:
        curves: name -> (points of a thin line, points of a line with dots), each (x, y).
        x_label: under the x axis.
        y_label: beside the y axis.
    """
    points = [point for pair in curves.values() for curve in pair for point in curve]
    if not points:
        return ""
    x_low, x_high = 0.0, max(x for x, _ in points)
    y_ticks = ticks(min(y for _, y in points), max(y for _, y in points))
    x_ticks = [x for x in ticks(x_low, x_high) if x_low <= x <= x_high]
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / ((x_high - x_low) or 1.0)
        up = (y - y_low) / ((y_high - y_low) or 1.0)
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(y_label)}">']
    for y in y_ticks:
        _, height = place(x_low, y)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in x_ticks:
        across, _ = place(x, y_low)
        parts.append(f'<text x="{across:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{x:g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">{html.escape(x_label)}</text>')
    parts.append(
        f'<text transform="translate(14 {_HEIGHT // 2}) rotate(-90)" text-anchor="middle">{html.escape(y_label)}</text>'
    )
    for (thin, dotted), colour in zip(curves.values(), _COLOURS, strict=False):
        parts.append(_polyline(thin, place, colour, 'stroke-width="1" opacity="0.55"'))
        parts.append(_polyline(dotted, place, colour, 'stroke-width="2"'))
        for point in dotted:
            x, y = place(*point)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>')
    return "".join([*parts, "</svg>"]) + legend(list(curves))


def legend(names: Sequence[str]) -> str:
    """Returns the names of the curves, each with its colour."""
    marks = (
        f'<span><i style="background:{colour}"></i>{html.escape(name)}</span>'
        for name, colour in zip(names, _COLOURS, strict=False)
    )
    return f'<p class="legend">{"".join(marks)}<span>thin: training, dots: validation</span></p>'


def _polyline(points: Curve, place: Callable[[float, float], tuple[float, float]], colour: str, style: str) -> str:
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
    return f'<polyline points="{joined}" fill="none" stroke="{colour}" {style}/>' if joined else ""


def ticks(low: float, high: float) -> list[float]:
    """Returns about five round numbers, the first at most `low` and the last at least `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / _TICKS))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= _TICKS + 1e-9)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]
