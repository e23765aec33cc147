"""A table of the HTML report."""

from collections.abc import Sequence


def grid(head: Sequence[str], body: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Returns a table in a scrolling box; a row is (CSS class, cells), cells and heads are HTML."""
    heads = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = [
        f'<tr class="{kind}"><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for kind, (first, *rest) in body
    ]
    return f'<div class="box"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
