"""The before/after table on the terminal."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from train.evaluation.interval import Interval
from train.finetuning.finetune_run import Cost

COST_COLUMNS = ("seconds", "CPU-seconds")
_NO_COSTS: Mapping[str, Cost] = {}


def comparison(
    title: str, rows: Sequence[tuple[str, int, Mapping[str, Interval]]], costs: Mapping[str, Cost] = _NO_COSTS
) -> Table:
    """Returns a table with one row per (model, number of rows it was scored on, metrics), and what each took."""
    table = Table(title=title, title_justify="left", caption="95 % bootstrap intervals", caption_justify="left")
    table.add_column("model")
    table.add_column("rows", justify="right")
    names = list(rows[-1][2])
    for name in names:
        lower = rows[-1][2][name].better == "lower"
        table.add_column(name.replace("_", "-") + (" (lower is better)" if lower else ""), justify="right")
    for name in COST_COLUMNS if costs else ():
        table.add_column(name, justify="right")
    for model, count, metrics in rows:
        table.add_row(model, f"{count:,}", *(shown(metrics.get(name)) for name in names), *shown_cost(costs, model))
    return table


def shown_cost(costs: Mapping[str, Cost], model: str) -> tuple[str, ...]:
    """Returns the seconds and CPU-seconds of a model; "-" where they are unknown, nothing if all are."""
    if not costs:
        return ()
    cost = costs.get(model)
    return ("-", "-") if cost is None else (f"{cost.seconds:,.1f}", f"{cost.cpu_seconds:,.1f}")


def shown(figure: Interval | None) -> str:
    """Returns a metric as text, "0.912 [0.900, 0.923]"; "-" for None."""
    if figure is None:
        return "-"
    digits = 1 if max(abs(figure.low), abs(figure.high)) >= 10 else 3
    return f"{figure.value:.{digits}f} [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"
