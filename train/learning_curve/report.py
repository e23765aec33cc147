"""A learning curve as a table on the terminal, `learning_curve.json`, and a page with a picture."""

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.table import Table

from data.pages import grid, write_page
from train.console import results_console
from train.evaluation.interval import as_json
from train.finetuning.baselines import FOUNDATION
from train.finetuning.comparison import FINE_TUNED
from train.finetuning.report import svg
from train.finetuning.report.table import shown
from train.learning_curve import curve
from train.learning_curve.curve import Point
from train.learning_curve.sweep import LearningCurve

JSON_FILE, PAGE_FILE = "learning_curve.json", "learning_curve.html"
_NOTE = (
    "Means over the seeds with 95 % intervals for the test rows and the seeds together (normal approximation). Two "
    "points are compared as if they had different test rows, so a small gain may be called chance. An untrained "
    "foundation uses no labels and is scored once."
)


def publish(found: LearningCurve, workdir: Path, as_object: bool) -> None:
    """Writes the files and prints the table, or with `as_object` one JSON object."""
    results = _results(found)
    (workdir / JSON_FILE).write_text(json.dumps(results, indent=1))
    write_page(workdir / PAGE_FILE, "Learning curve", [_body(found, results["sentences"])])
    if as_object:
        print(json.dumps(results))
        return
    out = results_console()
    out.print(_table(found))
    for sentence in results["sentences"]:
        out.print(f"learning-curve: {sentence}")


def _models(found: LearningCurve) -> list[str]:
    """Returns the names of the models, the fine-tuned one last."""
    return list(found.points[0].metrics)


def _drawn(found: LearningCurve) -> list[str]:
    """Returns the models in the picture: those that use labels, because an untrained foundation is far below."""
    return [name for name in _models(found) if not name.startswith(FOUNDATION)]


def _sentences(found: LearningCurve) -> list[str]:
    """Returns whether more labels help, and how the fine-tuned model compares with what needs no model."""
    sentences = [curve.verdict(found.points, FINE_TUNED, found.metric, found.stopped)]
    others = [name for name in _models(found) if name != FINE_TUNED]
    return sentences + [curve.against(found.points, FINE_TUNED, name) for name in others]


def _results(found: LearningCurve) -> dict[str, Any]:
    def figures(point: Point) -> dict[str, Any]:
        return {
            name: {**as_json({"mean": curve.mean(seeds)})["mean"], "seeds": [figure.value for figure in seeds]}
            for name, seeds in point.metrics.items()
        }

    points = [
        {"labels_per_class": point.labels or None, "train_rows": point.rows, "models": figures(point)}
        for point in found.points
    ]
    for before, after, result in zip(found.points, found.points[1:], points[1:], strict=False):
        result["gain"] = as_json({"gain": curve.gain(before.metrics[FINE_TUNED], after.metrics[FINE_TUNED])})["gain"]
    return {
        "metric": found.metric,
        "test_rows": found.test_rows,
        "points": points,
        "stopped_early": found.stopped,
        "sentences": _sentences(found),
    }


def _lines(found: LearningCurve) -> list[list[str]]:
    """Returns the cells of the table."""
    return [
        [
            *(point.name, f"{point.rows:,.0f}", str(len(point.metrics[FINE_TUNED]))),
            *(shown(curve.mean(point.metrics[name])) for name in _models(found)),
        ]
        for point in found.points
    ]


def _table(found: LearningCurve) -> Table:
    title = f"learning curve: {found.metric} on {found.test_rows:,} test rows"
    table = Table(title=title, title_justify="left", caption=_NOTE, caption_justify="left")
    for name in ("labels per class", "training rows", "seeds", *_models(found)):
        table.add_column(name, justify="left" if name == "labels per class" else "right")
    for line in _lines(found):
        table.add_row(*line)
    return table


def _body(found: LearningCurve, sentences: Sequence[str]) -> str:
    legend = "".join(
        f'<span class="line-{n % svg.LINES}">{escape(name)}</span>' for n, name in enumerate(_drawn(found))
    )
    head = ("labels per class", "training rows", "seeds", *map(escape, _models(found)))
    lines = [("", [escape(cell) for cell in line]) for line in _lines(found)]
    said = "".join(f"<p>{escape(sentence[0].upper() + sentence[1:])}.</p>" for sentence in sentences)
    title = f"Learning curve: {escape(found.metric.replace('_', '-'))} on {found.test_rows:,} test rows"
    return (
        f'<h1>{title}</h1>{said}<p class="legend">{legend}</p><div class="box single">{picture(found)}</div>'
        f'<h2>Points</h2>{grid(head, lines)}<p class="note">{escape(_NOTE)}</p>'
    )


def picture(found: LearningCurve) -> str:
    """Returns the chart: the metric of the models that use labels over the training rows, with intervals."""
    lines, bars = {}, {}
    for number, name in enumerate(_drawn(found)):
        means = [(point.rows, curve.mean(point.metrics[name])) for point in found.points]
        lines[number] = [(rows, figure.value) for rows, figure in means]
        bars[number] = [(rows, figure.low, figure.high) for rows, figure in means]
    values = [value for some in bars.values() for _, low, high in some for value in (low, high) if math.isfinite(value)]
    rows = [point.rows for point in found.points]
    x_axis = svg.Axis("training rows", _powers(min(rows), max(rows)), logarithmic=True)
    y_axis = svg.Axis(found.metric.replace("_", "-"), svg.ticks(min(values), max(values)))
    return svg.line_chart(f"{found.metric} over training rows", lines, x_axis, y_axis, bars=bars)


def _powers(low: float, high: float) -> list[float]:
    """Returns 1, 2 or 5 times powers of ten: those from `low` to `high`, one below and one above."""
    marks = [m * 10.0**power for power in range(int(math.log10(high)) + 2) for m in (1, 2, 5)]
    first = max(i for i, mark in enumerate(marks) if mark <= low)
    last = min(i for i, mark in enumerate(marks) if mark >= high)
    return marks[first : last + 1]
