"""The report of a fine-tuning run: one HTML file with curves, the table, confusions and samples, and no network."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from train.proof.interval import Interval, gain
from train.proof.svg import Curve, line_chart

_MOST_CLASSES = 20
_BAR_WIDTH = 120  # pixels
_RIGHT, _WRONG = "5 150 105", "220 38 38"

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --bar: #2563eb; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .3rem 0; } .soft { opacity: .7; }
.box { overflow-x: auto; } table { border-collapse: collapse; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; } td.n { font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.best td { background: var(--soft); font-weight: 600; }
.bar { position: relative; height: 10px; width: 120px; background: var(--soft); margin-top: 4px; }
.bar i { position: absolute; top: 2px; height: 6px; background: var(--bar); opacity: .45; }
.bar b { position: absolute; top: 0; height: 10px; width: 2px; background: var(--bar); }
svg { width: 100%; height: auto; } svg text { font-size: 12px; fill: currentColor; }
svg .grid { stroke: currentColor; stroke-opacity: .15; }
.legend span { margin-right: 1.2rem; white-space: nowrap; }
.legend i { display: inline-block; width: 14px; height: 4px; margin-right: .4rem; vertical-align: middle; }
.confusion td, .confusion th { padding: .15rem .3rem; font-size: 12px; border: 0; }
.confusion td { text-align: center; min-width: 1.6rem; } .confusion th.v { writing-mode: vertical-rl; height: 9rem; }
.text { white-space: pre-wrap; max-height: 10rem; min-width: 9rem; overflow: auto; overflow-wrap: anywhere; }
"""

Row = tuple[str, int, Mapping[str, Interval]]


def write(
    path: Path,
    title: str,
    about: Mapping[str, str],
    rows: Sequence[Row],
    curves: Mapping[str, Path],
    confusion: tuple[list[str], np.ndarray] | None,
    samples: Sequence[tuple[str, str, str, str]],
) -> None:
    """Writes the report.

    Args:
        path: of the file.
        title: heading.
        about: facts under it.
        rows: of the table: model, rows it was scored on, figures; the last one is the fine-tuned model.
        curves: model -> its metrics.jsonl.
        confusion: classes, and how often the class of a row was taken for the class of a column.
        samples: (input, expected, before, after).
    """
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        *(f'<p class="soft">{html.escape(name)}: {html.escape(value)}</p>' for name, value in about.items()),
        "<h2>Before and after</h2>",
        _table(rows),
        "<h2>Loss</h2>",
        line_chart({name: _read(file) for name, file in curves.items()}, "step", "loss (nats)"),
        "" if confusion is None else _confusion(*confusion),
        "<h2>Samples of the held-out rows</h2>",
        _samples(samples),
    ]
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    )
    body = "\n".join(parts)
    path.write_text(
        f"<!doctype html><html lang=en><head>{head}<style>{_STYLE}</style></head><body>{body}</body></html>",
        encoding="utf-8",
    )


def _table(rows: Sequence[Row]) -> str:
    """Returns the table, each figure with its interval as a bar on one scale, and what was gained over each model."""
    last = rows[-1][2]
    scales = {name: max((m[name].high for _, _, m in rows if name in m), default=1.0) or 1.0 for name in last}
    heads = "".join(
        f"<th>{html.escape(name.replace('_', '-'))}{' (lower is better)' if last[name].better == 'lower' else ''}</th>"
        for name in last
    )
    lines = [f"<tr><th>model</th><th>rows</th>{heads}</tr>"]
    for number, (model, count, metrics) in enumerate(rows):
        is_last = number == len(rows) - 1
        cells = "".join(
            _cell(metrics[name], scales[name], None if is_last else last[name]) if name in metrics else "<td>-</td>"
            for name in last
        )
        best = ' class="best"' if is_last else ""
        lines.append(f"<tr{best}><td>{html.escape(model)}</td><td class=n>{count:,}</td>{cells}</tr>")
    note = "95 % bootstrap intervals. Gain: of the fine-tuned model over this one; * the intervals do not overlap."
    return f'<div class="box"><table>{"".join(lines)}</table></div><p class="soft">{note}</p>'


def _cell(figure: Interval, scale: float, after: Interval | None) -> str:
    value, low, high = (max(min(x / scale, 1.0), 0.0) * _BAR_WIDTH for x in figure[:3])
    bar = (
        f'<div class="bar"><i style="left:{low:.0f}px;width:{max(high - low, 1):.0f}px"></i>'
        f'<b style="left:{min(value, _BAR_WIDTH - 2):.0f}px"></b></div>'
    )
    text = f"{figure.value:.3g} [{figure.low:.3g}, {figure.high:.3g}]"
    if after is not None:
        gained = gain(figure, after)
        relative = gained["relative_gain"]
        shown = (
            "" if relative is None else f"gain {relative:+.0%}" if abs(relative) < 10 else f"{1 + relative:,.0f} times"
        )
        text += f'<br><span class="soft">{shown}{" *" if gained["apart"] else ""}</span>'
    return f"<td class=n>{text}{bar}</td>"


def _read(path: Path) -> tuple[Curve, Curve]:
    """Returns (step, loss) of training and of validation; nothing where there is no such file."""
    found: dict[str, list[tuple[float, float]]] = {"train": [], "eval": []}
    for line in path.read_text().splitlines() if path.exists() else []:
        record = json.loads(line)
        if record["loss"] is not None:
            found[record["phase"]].append((record["step"], record["loss"]))
    return found["train"], found["eval"]


def _confusion(classes: list[str], counts: np.ndarray) -> str:
    """Returns the heat map, of the classes that are most confused where there are many."""
    note = "Rows are the right classes, columns what the fine-tuned model took them for."
    if len(classes) > _MOST_CLASSES:
        wrong = counts - np.diag(np.diag(counts))
        chosen = np.sort(np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:_MOST_CLASSES])
        classes, counts = [classes[i] for i in chosen], counts[np.ix_(chosen, chosen)]
        note += f" The {_MOST_CLASSES} classes that are most confused."
    highest = max(int(counts.max()), 1)
    names = [html.escape(name) for name in classes]
    lines = ["<tr><th></th>" + "".join(f'<th class="v">{name}</th>' for name in names) + "</tr>"]
    for number, (name, row) in enumerate(zip(names, counts, strict=True)):
        cells = "".join(
            f'<td style="background:rgb({_RIGHT if column == number else _WRONG} / {0.85 * count / highest:.2f})">'
            f"{count or ''}</td>"
            for column, count in enumerate(row.tolist())
        )
        lines.append(f"<tr><th>{name}</th>{cells}</tr>")
    table = f'<div class="box"><table class="confusion">{"".join(lines)}</table></div>'
    return f'<h2>Confusions</h2><p class="soft">{note}</p>{table}'


def _samples(samples: Sequence[tuple[str, str, str, str]]) -> str:
    heads = "".join(f"<th>{name}</th>" for name in ("input", "expected", "before", "after"))
    lines = [f"<tr>{heads}</tr>"]
    for sample in samples:
        cells = "".join(f'<td><div class="text">{html.escape(text)}</div></td>' for text in sample)
        lines.append(f"<tr>{cells}</tr>")
    return f'<div class="box"><table>{"".join(lines)}</table></div>'
