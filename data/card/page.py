"""`card.html`: the data card as one page."""

import difflib
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from data.pages import definitions, grid, write_page

_SHOWN_SAMPLES, _SHOWN_CHARACTERS = 6, 600
_MOST_SOURCES, _MOST_LANGUAGES = 50, 12
_PIECE = re.compile(r"\w+|\s+|[^\w\s]")
_STYLE = """
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 16px 0 8px; }
.figures .box { padding: 12px 16px; }
.figures strong { display: block; font-size: 24px; line-height: 1.3; font-variant-numeric: tabular-nums; }
.figures span { color: var(--muted); font-size: 13px; }
.bar { display: flex; width: 100%; min-width: 160px; height: 10px; margin-top: 6px; border-radius: 5px;
  overflow: hidden; background: var(--page); }
.bar i { background: var(--line-2); }
.bar .gone { background: var(--wrong); }
.bar .kept { background: var(--right); }
tr.kept { background: color-mix(in srgb, var(--right) 9%, transparent); }
td.wide { width: 40%; }
details { border-top: 1px solid var(--edge); }
details:first-child { border-top: 0; }
summary { padding: 10px 14px; cursor: pointer; }
summary b { font-weight: 600; }
summary span { color: var(--muted); float: right; font-variant-numeric: tabular-nums; }
.samples { display: grid; gap: 10px; padding: 0 14px 14px; }
.samples .text { padding: 8px 12px; border-left: 3px solid var(--edge); background: var(--page); }
.pair { display: grid; grid-template-columns: 1fr 1fr; margin: 10px 0; }
.pair > div { padding: 10px 14px; min-width: 0; border-left: 1px solid var(--edge); }
.pair > div:first-child { border-left: 0; }
.pair h3 { color: var(--muted); }
.pair h3 b { color: var(--text); float: right; }
mark { background: color-mix(in srgb, var(--wrong) 26%, transparent); color: inherit; border-radius: 3px; }
.pair > div:last-child mark { background: color-mix(in srgb, var(--right) 26%, transparent); }
@media (max-width: 700px) {
  .pair { grid-template-columns: 1fr; }
  .pair > div { border-left: 0; border-top: 1px solid var(--edge); }
}
"""


def write_card_page(path: Path, name: str, card: Mapping[str, Any]) -> None:
    """Writes the page of a card (`contents.card_contents`).

    Args:
        path: the file.
        name: of the store.
        card: its card.
    """
    body = [
        f"<h1>Data card: {escape(name)}</h1>",
        _figures(card),
        _funnel(card["funnel"]),
        _reasons("Removed", card["removed"], card["samples"]),
        _pairs(card["near_duplicates"], card["removed"]),
        _reasons("Changed", card["changed"], card["samples"]),
        _contamination(card["contamination"]),
        _bars("Languages", "Documents by identified language, before any filter.", _languages(card["languages"])),
        _bars(
            "Lengths", "Documents in the store by number of tokens, bos and eos included.", _lengths(card["lengths"])
        ),
        _sources(card["sources"]),
        _made(card),
    ]
    write_page(path, f"Data card: {name}", body, _STYLE)


def _size(count: float) -> str:
    """Returns a number of bytes in the unit in which it is easy to read."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _bar(*parts: tuple[str, float]) -> str:
    """Returns a bar of parts: (CSS class, fraction of the width)."""
    pieces = "".join(f'<i class="{kind}" style="width:{100 * width:.2f}%"></i>' for kind, width in parts if width > 0)
    return f'<div class="bar" aria-hidden="true">{pieces}</div>'


def _figures(card: Mapping[str, Any]) -> str:
    splits, read = card["splits"].values(), card["funnel"][0]
    documents = card["funnel"][-1]["documents"]  # one that is split by its tail is in both splits
    size, tokens = (sum(split[kind] for split in splits) for kind in ("bytes", "tokens"))
    shown = [
        (f"{documents:,}", f"documents in {len(card['splits'])} split{'s' * (len(card['splits']) > 1)}"),
        (_size(size), f"text, {_share(size, read['bytes'])} of {_size(read['bytes'])} read"),
        (f"{tokens:,}", "tokens"),
        (f"{size / tokens:.2f}" if tokens else "-", "bytes per token"),
        (f"{len(card['sources']):,}", "sources"),
    ]
    boxes = "".join(f'<div class="box"><strong>{value}</strong><span>{text}</span></div>' for value, text in shown)
    return f'<div class="figures">{boxes}</div>'


def _funnel(funnel: Sequence[Mapping[str, Any]]) -> str:
    read = max(funnel[0]["bytes"], 1)
    body = []
    for step in funnel:
        last = step is funnel[-1]
        bar = _bar(("kept" if last else "", step["bytes"] / read), ("gone", step["removed_bytes"] / read))
        gone = [f"{step['removed']:,}" if step["removed"] else ""]
        gone.append(_size(step["removed_bytes"]) if step["removed_bytes"] else "")
        cells = [escape(step["step"]), *gone]
        body.append(("kept" if last else "", [*cells, f"{step['documents']:,}", _size(step["bytes"]), bar]))
    head = ("step", "documents removed", "text removed", "documents left", "text left", "of the text that was read")
    note = "Steps in the order in which they run; red is what a step removed."
    return f'<h2>From the input to the store</h2>{grid(head, body)}<p class="note">{note}</p>'


def _reasons(title: str, counts: Mapping[str, int], samples: Mapping[str, Sequence[Sequence[str]]]) -> str:
    shown = {reason: count for reason, count in counts.items() if reason in samples}
    if not shown:
        return ""
    parts = []
    for reason, count in sorted(shown.items(), key=lambda item: -item[1]):
        texts = "".join(
            f'<div class="text" dir="auto">{_cut(text)}</div>' for _, text in samples[reason][:_SHOWN_SAMPLES]
        )
        parts.append(
            f"<details><summary><b>{escape(reason)}</b><span>{count:,}</span></summary>"
            f'<div class="samples">{texts}</div></details>'
        )
    note = (
        "By rule, most frequent first; open one for the beginnings of documents, drawn by their content, so that they "
        "are the same each time. card.json has more of them."
    )
    return f'<h2>{title}</h2><p class="note">{note}</p><div class="box">{"".join(parts)}</div>'


def _cut(text: str) -> str:
    dots = '<span class="cut"> …</span>' if len(text) > _SHOWN_CHARACTERS else ""
    return escape(text[:_SHOWN_CHARACTERS]) + dots


def _pairs(pairs: Sequence[Mapping[str, Any]], removed: Mapping[str, int]) -> str:
    if not pairs:
        return ""
    cards = []
    for pair in pairs[: 2 * _SHOWN_SAMPLES]:
        gone, kept = _differences(pair["removed_text"], pair["kept_text"])
        head = f"Jaccard {pair['jaccard']:.3f}"
        cards.append(
            f'<div class="box pair"><div><h3>removed</h3><div class="text" dir="auto">{gone}</div></div>'
            f'<div><h3>stays<b>{head}</b></h3><div class="text" dir="auto">{kept}</div></div></div>'
        )
    note = (
        f"{removed.get('near-duplicate', len(pairs)):,} documents were removed, each for one that stays and is this "
        "similar: the Jaccard similarity of their sets of 5 adjacent words. near_duplicates.jsonl lists all of them."
    )
    return f'<h2>Near-duplicates</h2><p class="note">{note}</p>{"".join(cards)}'


def _differences(one: str, other: str) -> tuple[str, str]:
    """Returns the beginnings of two texts as HTML, with the pieces marked that only one of them has."""
    first, second = (_PIECE.findall(text[:_SHOWN_CHARACTERS]) for text in (one, other))
    matcher = difflib.SequenceMatcher(None, first, second, autojunk=False)
    shown: tuple[list[str], list[str]] = ([], [])
    for kind, *bounds in matcher.get_opcodes():
        for side, pieces, (start, stop) in zip(shown, (first, second), (bounds[:2], bounds[2:]), strict=True):
            text = escape("".join(pieces[start:stop]))
            side.append(f"<mark>{text}</mark>" if kind != "equal" and text else text)
    return "".join(shown[0]), "".join(shown[1])


def _contamination(found: Mapping[str, Mapping[str, int]]) -> str:
    if not found:
        return ""
    body = [
        ("", [escape(name), f"{one['rows']:,}", f"{one['rows_checked']:,}", f"{one['rows_found']:,}",
              _share(one["rows_found"], one["rows"]), f"{one['documents']:,}"])
        for name, one in found.items()
    ]  # fmt: skip
    head = ("evaluation set", "rows", "long enough to check", "found", "share", "documents that contain some")
    note = "A row is found if a document shares 13 adjacent words with it."
    return f'<h2>Evaluation rows</h2>{grid(head, body)}<p class="note">{note}</p>'


def _languages(languages: Mapping[str, int]) -> list[tuple[str, int]]:
    named = list(languages.items())
    rest = sum(count for _, count in named[_MOST_LANGUAGES:])
    return named[:_MOST_LANGUAGES] + ([(f"{len(named) - _MOST_LANGUAGES} others", rest)] if rest else [])


def _lengths(lengths: Mapping[str, int]) -> list[tuple[str, int]]:
    numbers = [int(n) for n in lengths]
    span = range(min(numbers, default=0), max(numbers, default=-1) + 1)
    return [(f"{1 << (n - 1):,} to {(1 << n) - 1:,}" if n > 1 else "1", lengths.get(str(n), 0)) for n in span]


def _bars(title: str, note: str, counts: Sequence[tuple[str, int]]) -> str:
    if not counts:
        return ""
    most, total = max(count for _, count in counts), sum(count for _, count in counts)
    body = [
        ("", [escape(name), f"{count:,}", _share(count, total), _bar(("", count / most if most else 0))])
        for name, count in counts
    ]
    return f'<h2>{title}</h2>{grid(("", "documents", "share", ""), body)}<p class="note">{note}</p>'


def _sources(sources: Sequence[Mapping[str, Any]]) -> str:
    shown = sorted(sources, key=lambda source: -source["tokens"])[:_MOST_SOURCES]
    total = sum(source["tokens"] for source in sources)
    body = [
        ("", [escape(source["name"]), f"{source['documents']:,}", _size(source["bytes"]), f"{source['tokens']:,}",
              _share(source["tokens"], total), escape(source["license"])])
        for source in shown
    ]  # fmt: skip
    more = len(sources) - len(shown)
    note = f'<p class="note">{more:,} smaller sources are in card.json.</p>' if more else ""
    return f"<h2>Sources</h2>{grid(('source', 'documents', 'text', 'tokens', 'share', 'license'), body)}{note}"


def _made(card: Mapping[str, Any]) -> str:
    options = [(f"option {name}", str(value)) for name, value in card["options"].items()]
    splits = [
        (f"split {name}", f"{split['documents']:,} documents, {split['tokens']:,} tokens")
        for name, split in card["splits"].items()
    ]
    prints = [(f"{name} SHA-256", digest) for name, digest in card["fingerprints"].items()]
    versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    values = [("command", card["command"] or "-"), *splits, *options, ("versions", versions), *prints]
    return f"<h2>How it was made</h2>{definitions(values)}"
