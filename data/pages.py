"""Pages that load nothing from the network and run no script: the style and the frame that all reports share."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

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
.note, dt, .range { color: var(--muted); }
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
td { font-variant-numeric: tabular-nums; }
.range { font-size: 13px; font-weight: 400; }
svg { display: block; }
svg text { font: 12px system-ui, sans-serif; fill: var(--text); }
.axis { stroke: var(--edge); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 12px; }
.charts .box { padding: 12px; }
.charts th, .charts td { padding: 10px 6px; }
.chart { width: 100%; }
.chart text { fill: var(--muted); }
.chart polyline { fill: none; stroke: var(--line); stroke-width: 1.6; stroke-linejoin: round; }
.chart circle { fill: var(--line); }
.chart .even { stroke: var(--edge); stroke-dasharray: 4 4; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 14px; }
.legend span::before { content: ""; display: inline-block; width: 18px; height: 3px; margin-right: 8px;
  vertical-align: middle; background: var(--line); }
.line-0 { --line: var(--line-0); } .line-1 { --line: var(--line-1); }
.line-2 { --line: var(--line-2); } .line-3 { --line: var(--line-3); }
.text { max-height: 14em; overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 14px; }
.single { max-width: 640px; padding: 12px; }
td .text { min-width: 20em; }
.place { white-space: nowrap; }
.cut { color: var(--muted); font-style: italic; }
@media (max-width: 700px) {
  .text { max-height: 10em; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 8px; }
}
"""


def write_page(path: Path, title: str, body: Sequence[str], style: str = "") -> None:
    """Writes a page.

    Args:
        path: the file.
        title: of the page.
        body: HTML of its parts; empty ones are left out.
        style: CSS of its own.
    """
    # The content security policy makes the browser enforce this: inline styles only.
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )
    # JSON may contain half of a surrogate pair, which UTF-8 cannot encode.
    path.write_bytes(page.encode("utf-8", "xmlcharrefreplace"))


def grid(head: Sequence[str], body: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Returns a table in a scrolling box; a row is (CSS class, cells), cells and heads are HTML."""
    heads = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = [
        f'<tr class="{kind}"><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for kind, (first, *rest) in body
    ]
    return f'<div class="box"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def definitions(values: Sequence[tuple[str, str]]) -> str:
    """Returns a list of names with their values, both text."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>' for name, value in values)}</dl>"
