"""The report of a fine-tuning run: one HTML file that loads nothing from the network and runs no script."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from train.evaluation.interval import Interval, gain
from train.finetuning.confidence import Confidence
from train.finetuning.finetune_run import Cost
from train.finetuning.label_audit import LabelAudit
from train.finetuning.report import confidence, label_audit, svg
from train.finetuning.report.grid import grid
from train.finetuning.report.table import COST_COLUMNS, shown, shown_cost

# (model, number of rows it was scored on, metrics)
Row = tuple[str, int, Mapping[str, Interval]]
# (input, expected, answer before, answer after); "" before: the model before was not scored on this example
Sample = tuple[str, str, str, str]

_MAX_CLASSES = 20
_MAX_CHARACTERS = 4000
_PHASES = {"train": "Training loss", "eval": "Held-out loss"}
_STYLE = """
:root { color-scheme: light dark; --page: #fbfbf9; --box: #ffffff; --text: #1d2125; --muted: #63696f; --edge: #dcdcd6;
  --right: #2f7d5b; --wrong: #c2512f; --line-0: #2f7d5b; --line-1: #c2512f; --line-2: #3567b0; --line-3: #8a5aa8; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --box: #1c2024; --text: #e4e6e8; --muted: #9aa1a8;
  --edge: #343a40; --right: #4fb286; --wrong: #e2795a; --line-0: #4fb286; --line-1: #e2795a; --line-2: #74a3e8;
  --line-3: #bd92d8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1040px; padding: 24px 16px 64px; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 12px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 40px 0 8px; }
h3 { font-size: 14px; margin: 0 0 4px; }
p { margin: 8px 0; }
.note, dt, .sample h3, .range { color: var(--muted); }
.note { font-size: 13px; }
.box { overflow-x: auto; background: var(--box); border: 1px solid var(--edge); border-radius: 8px; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 4px 20px; margin: 0; font-size: 14px; }
dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: 10px 14px; text-align: left; vertical-align: top; white-space: nowrap; }
th { font-weight: 600; }
thead th { font-size: 13px; }
tbody th { white-space: normal; min-width: 9em; }
tbody tr { border-top: 1px solid var(--edge); }
tbody tr.tuned { background: color-mix(in srgb, var(--right) 9%, transparent); }
td { font-variant-numeric: tabular-nums; }
.range { font-size: 13px; font-weight: 400; }
.better { color: var(--right); }
.worse { color: var(--wrong); }
svg { display: block; }
svg text { font: 12px system-ui, sans-serif; fill: var(--text); }
.axis { stroke: var(--edge); }
.interval { margin-top: 4px; }
.interval rect { fill: var(--line-2); opacity: 0.35; }
.interval circle { fill: var(--line-2); }
.tuned .interval rect, .tuned .interval circle { fill: var(--right); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 12px; }
.charts .box { padding: 12px; }
.chart { width: 100%; }
.single { max-width: 640px; padding: 12px; }
td .text { min-width: 20em; }
.place { white-space: nowrap; }
.chart text { fill: var(--muted); }
.chart polyline { fill: none; stroke: var(--line); stroke-width: 1.6; stroke-linejoin: round; }
.chart circle { fill: var(--line); }
.chart .even { stroke: var(--edge); stroke-dasharray: 4 4; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 14px; }
.legend span::before { content: ""; display: inline-block; width: 18px; height: 3px; margin-right: 8px;
  vertical-align: middle; background: var(--line); }
.line-0 { --line: var(--line-0); } .line-1 { --line: var(--line-1); }
.line-2 { --line: var(--line-2); } .line-3 { --line: var(--line-3); }
.confusion { margin: 8px; }
.confusion .empty { fill: var(--page); }
.confusion .right { fill: var(--right); }
.confusion .wrong { fill: var(--wrong); }
.confusion .on-dark { fill: var(--box); }
.sample { display: grid; grid-auto-flow: column; grid-template-columns: 2fr; grid-auto-columns: 1fr; margin: 10px 0; }
.sample > div { padding: 10px 14px; min-width: 0; border-left: 1px solid var(--edge); }
.sample > div:first-child { border-left: 0; }
.text { max-height: 14em; overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 14px; }
.cut { color: var(--muted); font-style: italic; }
@media (max-width: 700px) {
  .sample { grid-auto-flow: row; grid-template-columns: 1fr; }
  .sample > div { border-left: 0; border-top: 1px solid var(--edge); }
  .sample > div:first-child { border-top: 0; }
  .text { max-height: 10em; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 8px; }
}
"""


@dataclasses.dataclass(frozen=True)
class Report:
    """The contents of a report.

    Attributes:
        title: of the page.
        rows: (model, number of rows it was scored on, metrics); the last is the fine-tuned model.
        curves: model -> its `metrics.jsonl`, which need not exist.
        confusion: (classes, counts with a row per expected class) of the fine-tuned model, or None.
        samples: held-out examples with their answers.
        about: properties of the run, name -> value.
        costs: model -> what it took, where that is known.
        confidence: how sure the fine-tuned model is, if its predictions have probabilities.
        audit: near-duplicates and suspicious labels, if they were looked for.
    """

    title: str
    rows: Sequence[Row]
    curves: Mapping[str, Path]
    confusion: tuple[list[str], np.ndarray] | None
    samples: Sequence[Sample]
    about: Mapping[str, str]
    costs: Mapping[str, Cost] = dataclasses.field(default_factory=dict)
    confidence: Confidence | None = None
    audit: LabelAudit | None = None


def write(path: Path, report: Report) -> None:
    """Writes a report to `path`."""
    about = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in report.about.items())
    confusion = report.confusion
    body = [
        f"<h1>{escape(report.title)}</h1><dl>{about}</dl>",
        _table(report.rows, report.costs),
        _gains(report.rows),
        confidence.sections(report.confidence) if report.confidence else "",
        label_audit.sections(report.audit) if report.audit else "",
        _curves({name: _losses(file) for name, file in report.curves.items()}),
        _confusion(*confusion) if confusion is not None and len(confusion[0]) else "",
        _samples(report.samples),
    ]
    write_page(path, report.title, "\n".join(part for part in body if part))


def write_page(path: Path, title: str, body: str) -> None:
    """Writes a page with the style of the reports; `body` is HTML."""
    # The content security policy makes the browser enforce this: inline styles only.
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )
    # JSON may contain half of a surrogate pair, which UTF-8 cannot encode.
    path.write_bytes(page.encode("utf-8", "xmlcharrefreplace"))


def _metric_name(metric: str) -> str:
    return escape(metric.replace("_", "-"))


def _table(rows: Sequence[Row], costs: Mapping[str, Cost]) -> str:
    """Returns the metrics of every model, with the intervals of a metric drawn on one scale."""
    figures = rows[-1][2]
    scales = {name: _scale([metrics[name] for *_, metrics in rows if name in metrics]) for name in figures}
    head = ["model", "rows"]
    for name, figure in figures.items():
        low, high = scales[name]
        lower = ", lower is better" if figure.better == "lower" else ""
        head.append(f'{_metric_name(name)}<br><span class="range">{low:g} to {high:g}{lower}</span>')
    head += COST_COLUMNS if costs else ()
    body = [
        (
            "tuned" if row is rows[-1] else "",
            [
                *(escape(row[0]), f"{row[1]:,}"),
                *(_figure(row[2].get(name), *scales[name]) for name in figures),
                *shown_cost(costs, row[0]),
            ],
        )
        for row in rows
    ]
    note = (
        "Value and 95 % bootstrap interval over held-out rows. The dot is the value, the bar its interval, "
        "drawn on the scale below the metric's name."
    )
    return f'<h2>Before and after</h2>{grid(head, body)}<p class="note">{note}</p>'


def _scale(figures: Sequence[Interval]) -> tuple[float, float]:
    ends = [end for i in figures for end in (i.low, i.value, i.high) if math.isfinite(end)]
    marks = svg.ticks(min([0.0, *ends]), max([0.0, *ends]))
    return marks[0], marks[-1]


def _figure(figure: Interval | None, low: float, high: float) -> str:
    if figure is None or not all(map(math.isfinite, figure[:3])):
        return "-"
    value, _, around = shown(figure).partition(" ")
    return f'{value} <span class="range">{around}</span>{svg.interval_bar(figure, low, high)}'


def _gains(rows: Sequence[Row]) -> str:
    """Returns the relative gain of the last model over each of the others."""
    *others, (tuned, _, figures) = rows
    if not others:
        return ""
    head = ["compared with", *(_metric_name(name) for name in figures)]
    body = [
        ("", [escape(name), *(_gain(metrics.get(key), figure) for key, figure in figures.items())])
        for name, _, metrics in others
    ]
    note = (
        "Relative improvement of each metric; if lower is better, the relative decrease. "
        "“Overlap”: the two intervals overlap, so the difference may be due to chance."
    )
    return f'<h2>Gain of “{escape(tuned)}”</h2>{grid(head, body)}<p class="note">{note}</p>'


def _gain(before: Interval | None, after: Interval) -> str:
    # A gain relative to zero or to a negative value has no meaning.
    if before is None or not before.value > 0 or not math.isfinite(after.value):
        return "-"
    found = gain(before, after)
    part = found["relative_gain"]
    kind = "" if found["intervals_overlap"] else "better" if part > 0 else "worse"
    overlap = "" if kind else ' <span class="range">overlap</span>'
    shown_part = f"{1 + part:.1f} times" if part >= 9 and after.better == "higher" else f"{part:+.1%}"
    return f'<span class="{kind}">{shown_part}</span>{overlap}'


def _losses(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Returns phase -> (step, loss) of each record of a `metrics.jsonl`."""
    found: dict[str, list[tuple[float, float]]] = {phase: [] for phase in _PHASES}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
            # A loss that is not finite is stored as null.
            if record["loss"] is not None:
                found[record["phase"]].append((record["step"], record["loss"]))
        except (ValueError, KeyError, TypeError):
            # The last line is incomplete if the run was killed.
            continue
    return found


def _curves(losses: Mapping[str, Mapping[str, svg.Points]]) -> str:
    """Returns one chart per phase, with the same axes, and one line per model."""
    points = [point for phases in losses.values() for some in phases.values() for point in some]
    if not points:
        return ""
    steps, values = zip(*points, strict=True)
    whole_steps = [t for t in svg.ticks(0, max(steps)) if t == int(t)]
    axes = svg.Axis("step", whole_steps), svg.Axis("loss", svg.ticks(min(values), max(values)))
    named = {number: name for number, name in enumerate(losses) if any(losses[name].values())}
    legend = "".join(f'<span class="line-{n % svg.LINES}">{escape(name)}</span>' for n, name in named.items())
    charts = []
    for phase, title in _PHASES.items():
        lines = {number: losses[name][phase] for number, name in named.items() if losses[name][phase]}
        charts.append(f'<div class="box"><h3>{title}</h3>{svg.line_chart(title, lines, *axes)}</div>')
    return f'<h2>Curves</h2><p class="legend">{legend}</p><div class="charts">{"".join(charts)}</div>'


def _confusion(classes: Sequence[str], counts: np.ndarray) -> str:
    """Returns the heat map; of many classes, only those that are confused most often."""
    totals = counts.sum(1)
    note = "Rows: expected class; columns: predicted class. The color shows the fraction of the row."
    if len(classes) > _MAX_CLASSES:
        wrong = counts - np.diag(np.diag(counts))
        mistakes = wrong.sum(0) + wrong.sum(1)
        chosen = np.sort(np.argsort(-mistakes, kind="stable")[:_MAX_CLASSES])
        note += f" Shown: the {_MAX_CLASSES} of {len(classes):,} classes that are confused most often."
        classes, counts, totals = [classes[i] for i in chosen], counts[np.ix_(chosen, chosen)], totals[chosen]
    drawing = svg.heat_map(classes, counts, totals)
    return f'<h2>Confusions</h2><p class="note">{note}</p><div class="box">{drawing}</div>'


def _samples(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    heads = ("input", "expected", "before", "after")
    columns = [i for i, head in enumerate(heads) if head != "before" or any(before for _, _, before, _ in samples)]
    cards = []
    for sample in samples:
        cells = []
        for i in columns:
            right = heads[i] in ("before", "after") and sample[i].strip() == sample[1].strip()
            text = f'<div class="text" dir="auto">{_cut(sample[i])}</div>'
            cells.append(f"<div><h3>{heads[i]}{' ✓' if right else ''}</h3>{text}</div>")
        cards.append(f'<div class="box sample">{"".join(cells)}</div>')
    note = f"{len(samples)} held-out rows, drawn at random. ✓: equal to the expected answer."
    return f'<h2>Samples</h2><p class="note">{note}</p>{"".join(cards)}'


def _cut(text: str) -> str:
    surplus = len(text) - _MAX_CHARACTERS
    if surplus <= 0:
        return escape(text)
    return f'{escape(text[:_MAX_CHARACTERS])}<span class="cut"> … {surplus:,} more characters</span>'
