"""The before/after table on the terminal."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from train.evaluation.interval import Interval


def comparison(title: str, rows: Sequence[tuple[str, int, Mapping[str, Interval]]]) -> Table:
    """Returns a table with one row per (model, number of rows it was scored on, metrics)."""
    table = Table(title=title, title_justify="left", caption="95 % bootstrap intervals", caption_justify="left")
    table.add_column("model")
    table.add_column("rows", justify="right")
    names = list(rows[-1][2])
    for name in names:
        lower = rows[-1][2][name].better == "lower"
        table.add_column(name.replace("_", "-") + (" (lower is better)" if lower else ""), justify="right")
    for model, count, metrics in rows:
        table.add_row(model, f"{count:,}", *(shown(metrics.get(name)) for name in names))
    return table


def shown(figure: Interval | None) -> str:
    """Returns a metric as text, "0.912 [0.900, 0.923]"; "-" for None."""
    if figure is None:
        return "-"
    digits = 1 if max(abs(figure.low), abs(figure.high)) >= 10 else 3
    return f"{figure.value:.{digits}f} [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"
