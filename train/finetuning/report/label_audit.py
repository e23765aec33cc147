"""The rows that deserve a look, for the terminal and for the HTML report."""

from collections.abc import Sequence
from html import escape

from data.pages import grid
from train.console import visible
from train.finetuning.label_audit import HELD_OUT, AuditedRow, LabelAudit, Pair, SuspiciousLabel

_TERMINAL_ROWS, _REPORT_ROWS = 5, 100
_TERMINAL_CHARACTERS, _REPORT_CHARACTERS = 90, 400


def leak_line(found: LabelAudit) -> str:
    """Returns a sentence about held-out rows that are in the training rows; "": there are none."""
    parts = [f"{found.leaked(part):,} of {found.counts[part]:,} {part} rows" for part in HELD_OUT if found.leaked(part)]
    at_least = "" if found.complete else "at least "
    return f"{at_least}{' and '.join(parts)} are near-duplicates of training rows" if parts else ""


def audit_lines(found: LabelAudit) -> list[str]:
    """Returns what the terminal shows: counts, and the first rows of each list."""
    lines = [_headline(found)]
    lines += [f"  {_short(p.first.label)} / {_short(p.second.label)}: {_places(p)}" for p in _first(found.conflicts)]
    for s in _first(found.suspicious or []):
        shown = visible(s.row.text)[:_TERMINAL_CHARACTERS]
        lines.append(f"  {_short(s.row.label)}, perhaps {_short(s.suggested)}: {s.row.place}: {shown}")
    return lines


def _headline(found: LabelAudit) -> str:
    at_least = "" if found.complete else "at least "
    conflicts = f"{at_least}{len(found.conflicts):,} pairs of near-duplicates with different labels"
    parts = [leak_line(found) or "no held-out row is a near-duplicate of a training row", conflicts]
    if found.suspicious is None:
        parts.append("--suspicious looks for wrong labels")
    else:
        parts.append(f"{len(found.suspicious):,} suspicious labels")
    return f"labels: {'; '.join(parts)}; report.html lists rows"


def _first(listed: Sequence) -> Sequence:
    return listed[:_TERMINAL_ROWS]


def _short(label: str) -> str:
    return visible(label)[:_TERMINAL_CHARACTERS]


def _places(pair: Pair) -> str:
    return f"{pair.first.place} ({pair.first.part}), {pair.second.place} ({pair.second.part})"


def sections(found: LabelAudit) -> str:
    """Returns the same as HTML, with more rows."""
    more = "" if found.complete else " More texts are similar than were compared, so these are lower bounds."
    leaks = leak_line(found) or "no held-out row is a near-duplicate of a training row"
    parts = [
        "<h2>Look at the labels</h2>",
        f'<p class="note">{leaks[0].upper()}{leaks[1:]}. Two rows are near-duplicates if they have the same words, or '
        f"eight in ten of their pairs of neighboring words in common (Jaccard index).{more}</p>",
    ]
    parts += _pairs("Near-duplicates with different labels", found.conflicts, labels=True)
    parts += _pairs("Held-out rows and the training rows that are most like them", found.leaks, labels=False)
    if found.suspicious is None:
        parts.append('<p class="note"><code>rootstock finetune --suspicious</code> looks for wrong labels.</p>')
    else:
        parts += _suspicious(found.suspicious)
    return "".join(parts)


def _title(title: str, count: int) -> str:
    shown = f", the first {_REPORT_ROWS} of {count:,}" if count > _REPORT_ROWS else f": {count:,}"
    return f"<h3>{title}{shown}</h3>"


def _pairs(title: str, pairs: Sequence[Pair], labels: bool) -> list[str]:
    if not pairs:
        return []
    head = ("rows", *(("labels",) if labels else ()), "texts", "similarity")
    body = []
    for pair in pairs[:_REPORT_ROWS]:
        rows = (pair.first, pair.second)
        classes = ["<br>".join(escape(row.label) for row in rows)] if labels else []
        texts = "".join(_text(row.text) for row in rows)
        body.append(("", ["<br>".join(map(_place, rows)), *classes, texts, f"{pair.similarity:.2f}"]))
    return [_title(title, len(pairs)), grid(head, body)]


def _place(row: AuditedRow) -> str:
    """Returns where a row is, without the directory of its file."""
    name = escape(row.place.rsplit("/", 1)[-1])
    return f'<span class="place" title="{escape(row.place)}">{name} ({row.part})</span>'


def _suspicious(found: Sequence[SuspiciousLabel]) -> list[str]:
    note = (
        '<p class="note">A linear model of the other rows gives the label a probability of at most 5 %, and is surer '
        "of another class than it is on average of rows with that class. The most suspicious rows are first.</p>"
    )
    body = [
        (
            "",
            [
                _place(s.row),
                *(escape(s.row.label), f"{s.label_probability:.1%}"),
                *(escape(s.suggested), f"{s.suggested_probability:.1%}"),
                _text(s.row.text),
            ],
        )
        for s in found[:_REPORT_ROWS]
    ]
    head = ("row", "label", "its probability", "perhaps", "its probability", "text")
    return [_title("Suspicious labels", len(found)), note, *([grid(head, body)] if body else [])]


def _text(text: str) -> str:
    more = " …" if len(text) > _REPORT_CHARACTERS else ""
    return f'<div class="text" dir="auto">{escape(text[:_REPORT_CHARACTERS])}{more}</div>'
