"""Fits a scaling law to a sweep of small runs and prints the best model size and token count for a compute budget.

Trains the config at several sizes (--sizes, multiples of its width) for several lengths (--lengths, multiples of its
steps), each an ordinary run in its own directory below --workdir. Then fits their held-out losses with
L(N, D) = E + A / N^alpha + B / D^beta (N: all parameters, D: tokens; Hoffmann et al. 2022, arXiv:2203.15556), checks
the fit on the largest run, and prints the optimum of each budget with 95% bootstrap intervals. Run the same command
again to resume; finished runs are only read. Writes scaling.json, scaling.png and points.jsonl to --workdir; points can
be added to points.jsonl for --points.

  rootstock scaling --config=configs/pretrain/tiny.py --config.data.path='texts/*.txt' --workdir=runs/scaling
  rootstock scaling --points=runs.jsonl --workdir=runs/scaling --flops=1e21,1e23
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from configs.errors import UserError
from data.storage.paths import at
from train.console import say

if TYPE_CHECKING:
    from train.scaling.law import Analysis
    from train.scaling.report import Results

REQUIRED = ("workdir",)
OPTIONAL = ("config",)
CONFIG_FIELDS = (*("", "model", "mesh", "data", "optimizer", "loss", "evaluation", "checkpoint", "faults", "logging"),)
FLAG_NEEDS = {"sizes": "config", "lengths": "config"}
MULTI_PROCESS = True
PREEMPTIBLE = True


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("workdir", None, "Directory of the sweep; created if missing.", flag_values=values)
    flags.DEFINE_list("sizes", "0.25,0.5,0.75,1", "Multiples of the config's width.", flag_values=values)
    flags.DEFINE_list("lengths", "0.25,0.5,1", "Multiples of the config's steps.", flag_values=values)
    flags.DEFINE_list("flops", [], "Budgets in model FLOPs; default: the next three powers of ten.", flag_values=values)
    flags.DEFINE_string(
        "points", "", "Instead of --config: JSONL or CSV of runs trained elsewhere, with parameters, tokens, loss "
        "(nats per token) and flops (without it, 6 * parameters * tokens).", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean("json", False, "Print one JSON object.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command; prints the runs, the law, the check on the largest run, and the optimum of each budget."""
    from train.distributed.processes import is_process_zero
    from train.run.lock import claim
    from train.run.record import open_run
    from train.scaling.law import analyze, cautions
    from train.scaling.report import results
    from train.scaling.sweep import flags_for_budget, next_decades, read_points, sweep

    if bool(values.points) == bool(values.config):
        raise UserError("expected either --config or --points; see rootstock scaling --help")
    sizes, lengths, budgets = (_numbers(name, values[name].value) for name in ("sizes", "lengths", "flops"))
    config = values.config.to_dict() if values.config else None
    workdir = at(values.workdir)
    with claim(workdir):
        warnings: list[str] = []
        if config is None:
            points = read_points(values.points)
        else:
            points, warnings = sweep(config, workdir, sizes, lengths)
        analysis = analyze(list(points.values()))
        budgets = budgets or next_decades(analysis)
        found = results(analysis, list(points), budgets)
        if config is not None:
            trained = open_run(workdir / next(iter(points))).model
            for budget in found["budgets"]:
                budget["flags"] = flags_for_budget(config, trained, budget["parameters"]["value"], budget["flops"])
        found["cautions"] = [*warnings, *cautions(analysis, budgets)]
        if is_process_zero():
            _publish(found, analysis, budgets, workdir, values.json)


def _publish(found: "Results", analysis: "Analysis", budgets: Sequence[float], workdir: Path, as_json: bool) -> None:
    """Writes `scaling.json` and `scaling.png`, and prints the figures."""
    from train.scaling.plot import draw
    from train.scaling.report import print_tables

    (workdir / "scaling.json").write_text(json.dumps(found, indent=1))
    if as_json:
        print(json.dumps(found))
    else:
        print_tables(found)
    try:
        draw(analysis, budgets, workdir / "scaling.png")
    except UserError as error:
        # The figures are already written: without the extra only the plot is missing.
        say(f"scaling: no picture: {error}")


def _numbers(flag: str, texts: Any) -> list[float]:  # noqa: ANN401 - absl's flags have no types
    """Returns the numbers of a comma-separated flag."""
    from train.scaling.sweep import positive_number

    numbers = [positive_number(text) for text in texts]
    for number, text in zip(numbers, texts, strict=True):
        if math.isnan(number):
            raise UserError(f"--{flag} contains {text!r}; expected comma-separated numbers above 0")
    return numbers
