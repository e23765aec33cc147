"""`timeline.html`: where the time of a run went, and that of a profiled step; a page without network access."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from data.pages import definitions, grid, write_page
from train.profiling.program import IDLE, KINDS
from train.profiling.summary import Summary
from train.profiling.tables import described, measured, seconds_text
from train.profiling.timeline import ORDER, Stretch, slices, totals

_MEANINGS = {
    "start": "initializing or restoring",
    "compile": "compiling",
    "data": "waiting for data",
    "step": "training steps",
    "evaluation": "evaluation",
    "checkpoint": "saving",
    "upload": "uploading",
    "profile": "profiling",
}
_WIDTH, _HEIGHT, _AXIS = 1000, 160, 22
_SLICES = 250
_LISTED = 40
_LEAST_SECONDS = 1e-3
_BAR_WIDTH = 320
_STYLE = """
:root { --start: #b9b9b2; --compile: #7d838a; --data: #c9a227; --step: #2f7d5b; --evaluation: #3567b0;
  --checkpoint: #c2512f; --upload: #8a5aa8; --profile: #c0508f; --products: #2f7d5b; --copies: #c2512f;
  --collectives: #8a5aa8; --other: #3567b0; --idle: #b9b9b2; }
@media (prefers-color-scheme: dark) { :root { --start: #4a5057; --compile: #8b9299; --data: #d9b84a; --step: #4fb286;
  --evaluation: #74a3e8; --checkpoint: #e2795a; --upload: #bd92d8; --profile: #e085b7; --products: #4fb286;
  --copies: #e2795a; --collectives: #bd92d8; --other: #74a3e8; --idle: #4a5057; } }
.time { width: 100%; height: auto; }
.time text { fill: var(--muted); }
.drawn { padding: 14px; }
.legend { margin-top: 10px; }
.legend span::before { height: 10px; width: 10px; border-radius: 2px; }
td.number, th.number { text-align: right; }
"""


def write_timeline(path: Path, title: str, stretches: Sequence[Stretch], summary: Summary | None) -> None:
    """Writes the page.

    Args:
        path: the file.
        title: of the page.
        stretches: the time line; empty: of a run of an earlier version.
        summary: of a profile, if the run has one.
    """
    body = [f"<h1>{escape(title)}</h1>"]
    if stretches:
        body += [_whole(stretches), _over_time(stretches), _listed(stretches)]
    else:
        body.append('<p class="note">metrics.jsonl has no time line: the run is of an earlier version.</p>')
    if summary is not None:
        body += [_step(summary), _operations(summary)]
    write_page(path, title, body, _STYLE)


def _whole(stretches: Sequence[Stretch]) -> str:
    sums = totals(stretches)
    whole = sum(sums.values())
    about = [("active time", seconds_text(whole)), ("steps", f"{max(stretch.last for stretch in stretches):,}")]
    names = {part: f"{_MEANINGS[part]}: {seconds_text(s)}, {s / whole:.1%}" for part, s in sums.items()}
    bar = f'<svg class="time" viewBox="0 0 {_WIDTH} 34" role="img" aria-label="Parts of the time">'
    bar += f"{_row(sums, 0, 0, _WIDTH, 34)}</svg>"
    return f'{definitions(about)}<h2>Where the time went</h2><div class="box drawn">{bar}{_legend(names)}</div>'


def _over_time(stretches: Sequence[Stretch]) -> str:
    """Returns the shares of equal slices of the time, from the first start of the run on."""
    whole = sum(stretch.seconds for stretch in stretches)
    width = _WIDTH / _SLICES
    columns = []
    for number, parts in enumerate(slices(stretches, _SLICES)):
        top, sums = 0.0, sum(parts.values()) or 1.0
        for part in ORDER:
            if parts.get(part):
                height = parts[part] / sums * _HEIGHT
                columns.append(_rect(part, number * width, top, width + 0.2, height))
                top += height
    marks = []
    for quarter in range(5):
        anchor = ("start", "middle", "middle", "middle", "end")[quarter]
        x, text = quarter * _WIDTH / 4, seconds_text(whole * quarter / 4)
        marks.append(f'<text x="{x}" y="{_HEIGHT + 16}" text-anchor="{anchor}">{text}</text>')
    drawing = (
        f'<svg class="time" viewBox="0 0 {_WIDTH} {_HEIGHT + _AXIS}" role="img" aria-label="Shares over the time">'
        f"{''.join(columns + marks)}</svg>"
    )
    note = (
        "From left to right: the run's active time, without pauses between two starts, in "
        f"{_SLICES} equal slices. Each column shows what its slice went to."
    )
    return f'<h2>Time line</h2><p class="note">{note}</p><div class="box drawn">{drawing}</div>'


def _listed(stretches: Sequence[Stretch]) -> str:
    """Returns the last stretches, each with a bar on one scale."""
    shown = [stretch for stretch in stretches if stretch.seconds >= _LEAST_SECONDS][-_LISTED:] or stretches[-1:]
    longest = max(stretch.seconds for stretch in shown)
    rows = []
    for stretch in shown:
        width = max(stretch.seconds / longest * _BAR_WIDTH, 1)
        bar = f'<svg width="{_BAR_WIDTH}" height="14" aria-hidden="true">{_row(stretch.parts, 0, 1, width, 12)}</svg>'
        steps = f"{stretch.first:,} to {stretch.last:,}" if stretch.last > stretch.first else f"{stretch.last:,}"
        parts = {part: stretch.parts[part] for part in ORDER if part in stretch.parts}
        text = ", ".join(f"{_MEANINGS[part]} {seconds_text(s)}" for part, s in parts.items())
        rows.append(("", [steps, seconds_text(stretch.start), bar, escape(text)]))
    note = (
        "One row per stretch of at least a millisecond in which the run did one thing, the latest last. Waiting for "
        "data and training steps alternate with every step and share a row."
    )
    return f'<h2>The last stretches</h2><p class="note">{note}</p>{grid(["steps", "from", "", "seconds"], rows)}'


def _step(summary: Summary) -> str:
    kinds = summary.kinds()
    names = {kind: f"{kind}: {seconds_text(s)}, {s / summary.seconds:.1%}" for kind, s in kinds.items() if s}
    bar = f'<svg class="time" viewBox="0 0 {_WIDTH} 34" role="img" aria-label="Kinds of operations">'
    bar += f"{_row(kinds, 0, 0, _WIDTH, 34)}</svg>"
    longest = max(sum(times.values()) for times in summary.modules.values())
    rows = []
    for module, times in summary.modules.items():
        whole = sum(times.values())
        row = _row(times, 0, 1, max(whole / longest * _BAR_WIDTH, 1), 12)
        drawn = f'<svg width="{_BAR_WIDTH}" height="14" aria-hidden="true">{row}</svg>'
        cells = [f"{times[kind] * 1e3:,.2f}" if kind in times else "" for kind in KINDS]
        rows.append(("", [escape(module), f"{whole * 1e3:,.2f}", f"{whole / summary.seconds:.1%}", drawn, *cells]))
    table = grid(["module", "ms", "share", "", *KINDS], rows)
    about = definitions(described(summary))
    return f'<h2>A profiled step</h2>{about}<div class="box drawn">{bar}{_legend(names)}</div><p></p>{table}'


def _operations(summary: Summary) -> str:
    rows = [("", [escape(cell) for cell in measured(one, summary)]) for one in summary.operations[:10]]
    head = ["operation", "kind", "module", "per step", "ms", "share", "FLOPs", "bytes"]
    return f"<h2>The longest operations</h2>{grid(head, rows)}"


def _row(parts: Mapping[str, float], x: float, y: float, width: float, height: float) -> str:
    """Returns parts beside each other, in the order of the legend, `width` wide together."""
    whole, drawn = sum(parts.values()) or 1.0, []
    for part in (*ORDER, *KINDS, IDLE):
        if parts.get(part):
            own = parts[part] / whole * width
            drawn.append(_rect(part, x, y, own, height))
            x += own
    return "".join(drawn)


def _rect(part: str, x: float, y: float, width: float, height: float) -> str:
    size = f'x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"'
    return f'<rect {size} fill="var(--{part})"/>'


def _legend(names: Mapping[str, str]) -> str:
    spans = (f'<span style="--line: var(--{part})">{escape(text)}</span>' for part, text in names.items())
    return f'<div class="legend">{"".join(spans)}</div>'
