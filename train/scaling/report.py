"""The results of `rootstock scaling`: an `Analysis` -> `scaling.json` and printed tables."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table

from train.console import results_console
from train.evaluation.interval import as_json
from train.scaling.law import Analysis, rms_residual

Results = dict[str, Any]


def results(analysis: Analysis, names: Sequence[str], budgets: Sequence[float]) -> Results:
    """Returns all results as plain numbers; an interval is {"value", "low", "high"} (95 %).

    Args:
        analysis: the fitted law and its runs.
        names: names of the runs, in the order of the points.
        budgets: model FLOPs.
    """
    largest = max(point.flops for point in analysis.points)
    runs = [
        {"run": name, **dataclasses.asdict(point), "fitted_loss": analysis.law.loss(point.parameters, point.tokens)}
        for name, point in zip(names, analysis.points, strict=True)
    ]
    held_out = analysis.held_out and {
        **dataclasses.asdict(analysis.held_out.point),
        "predicted_loss": analysis.held_out.predicted,
        "relative_error": analysis.held_out.relative_error,
    }
    return {
        "runs": runs,
        "law": as_json(analysis.law_figures()),
        "rms_residual": rms_residual(analysis.points, analysis.law),
        "flops_per_parameter_and_token": analysis.flops_per_parameter,
        "held_out": held_out,
        "budgets": [
            {"flops": flops, "times_the_largest_run": flops / largest, **as_json(analysis.budget_figures(flops))}
            for flops in budgets
        ],
    }


def print_tables(found: Results) -> None:
    """Prints runs, law, check on the largest run, budgets and cautions to stdout."""
    out = results_console()
    out.print(_run_table(found["runs"]))
    out.print(
        "L(N, D) = E + A / N^alpha + B / D^beta, in nats per token; N: all parameters, D: tokens; "
        f"FLOPs = {found['flops_per_parameter_and_token']:.2f} N D; intervals: 95 %"
    )
    law = _table([*found["law"]])
    law.add_row(*(_interval(figure, _digits) for figure in found["law"].values()))
    out.print(law)
    out.print(f"Root mean square error of the fit: {found['rms_residual']:.2%}.")
    if found["held_out"]:
        h = found["held_out"]
        out.print(
            f"Largest run, held out ({human(h['parameters'])} parameters, {human(h['tokens'])} tokens): predicted "
            f"{h['predicted_loss']:.4f} from the other runs, measured {h['loss']:.4f} ({h['relative_error']:+.2%})."
        )
    out.print(_budget_table(found["budgets"]))
    for budget in found["budgets"]:
        if "flags" in budget:
            out.print(f"{budget['flops']:.3g} FLOPs, nearest model: {' '.join(budget['flags'])}")
    for line in found["cautions"]:
        out.print(f"caution: {line}")


def _run_table(runs: Sequence[Results]) -> Table:
    table = _table(["run", "parameters", "tokens", "FLOPs", "held-out loss", "fitted"])
    for r in runs:
        losses = (f"{r['loss']:.4f}", f"{r['fitted_loss']:.4f}")
        table.add_row(r["run"], human(r["parameters"]), human(r["tokens"]), f"{r['flops']:.2e}", *losses)
    return table


def _budget_table(budgets: Sequence[Results]) -> Table:
    figures = {"parameters": human, "tokens": human, "tokens_per_parameter": _digits, "loss": _digits}
    table = _table(["FLOPs", "x largest run", "parameters", "tokens", "tokens per parameter", "predicted loss"])
    for b in budgets:
        shown = [_interval(b[name], show) for name, show in figures.items()]
        table.add_row(f"{b['flops']:.3g}", f"{b['times_the_largest_run']:.3g}", *shown)
    return table


def _table(columns: Sequence[str]) -> Table:
    table = Table()
    for column in columns:
        table.add_column(column, justify="left" if column == "run" else "right", no_wrap=True)
    return table


def _interval(figure: dict[str, float], show: Callable[[float], str]) -> str:
    """Returns two lines, so that five columns of intervals fit on a screen."""
    return f"{show(figure['value'])}\n{show(figure['low'])} to {show(figure['high'])}"


def _digits(number: float) -> str:
    return f"{number:.3f}" if 0.01 <= number < 100 else f"{number:.3g}"


def human(number: float) -> str:
    """Returns a number with three digits and a unit: 126k, 2.16M, 73.2B, 1.31T."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size * 0.9995:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"
