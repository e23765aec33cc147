"""Fine-tuning with several seeds: the mean and the range of each metric on the same held-out rows."""

import math
import statistics
from pathlib import Path
from typing import Any

from rich.table import Table

from train.console import results_console
from train.distributed.processes import is_process_zero
from train.finetuning.comparison import FINE_TUNED
from train.finetuning.ensembling import ENSEMBLE
from train.finetuning.run import finetune
from train.run.results import NAME, add_results
from train.tasks.loading import load_task
from train.tasks.task import fields_without_effect

DIRECTORY = "seeds"
# The other seeds train the fine-tuned model only. Without a linear model none can join, whatever the config says.
_WITHOUT_BASELINES = {"baseline": False, "alternatives": False, "ensemble": True, "zero_shot_rows": 0}


def finetune_seeds(
    config: dict[str, Any],
    foundation: Path,
    workdir: Path,
    seeds: int,
    accept_changed_data: bool = False,
    suspicious: bool = False,
) -> dict[str, Any]:
    """Fine-tunes with `config.seed` and the seeds after it; returns `results.json` with the seeds' metrics as "seeds".

    The run in `workdir` is that of `config.seed`, whatever the others reach: no seed is chosen by held-out rows. Each
    other seed is a run in `workdir/seeds/SEED`.

    Args:
        config: the config, complete.
        foundation: see `finetune`.
        workdir: of the first seed's run.
        seeds: how many seeds to train.
        accept_changed_data: see `finetune`.
        suspicious: see `finetune`; the first seed looks.

    Raises:
        UserError: see `finetune`.
    """
    first = config["seed"]
    results = {first: finetune(config, foundation, workdir, accept_changed_data, suspicious)}
    unused = fields_without_effect(load_task(config["task"]["name"]))
    skipped = {name: value for name, value in _WITHOUT_BASELINES.items() if f"task.{name}" not in unused}
    if ENSEMBLE in results[first]["models"]:
        # It takes the linear model, which is one of the alternatives.
        del skipped["alternatives"]
    for seed in range(first + 1, first + seeds):
        other = config | {"seed": seed, "task": config["task"] | skipped}
        directory = workdir / DIRECTORY / str(seed)
        results[seed] = finetune(other, foundation, directory, accept_changed_data, quiet=True)
    if seeds == 1:
        return results[first]
    each = list(results.values())
    summary = {"seeds": {"seeds": list(results), "metrics": summarized(each)}}
    if all(ENSEMBLE in one["models"] for one in each):
        summary["seeds"]["ensemble_metrics"] = summarized(each, ENSEMBLE)
    if is_process_zero():
        add_results(workdir / NAME, lambda stored: stored.update(summary))
        results_console().print(_table(summary["seeds"]))
    return results[first] | summary


def summarized(results: list[dict[str, Any]], model: str = FINE_TUNED) -> dict[str, dict[str, Any]]:
    """Returns {metric: its values, their mean and the lowest and highest of them} of a row of the table.

    A metric that is missing or undefined for a seed is left out: those relative to the foundation, which only the first
    seed scores.
    """
    found = [
        {name: figure["value"] for name, figure in one["models"][model].items() if isinstance(figure, dict)}
        for one in results
    ]
    values = {
        name: [metrics[name] for metrics in found]
        for name in found[0]
        if all(math.isfinite(metrics.get(name, math.nan)) for metrics in found)
    }
    return {
        name: {"mean": statistics.fmean(each), "lowest": min(each), "highest": max(each), "values": each}
        for name, each in values.items()
    }


def _table(summary: dict[str, Any]) -> Table:
    seeds = summary["seeds"]
    table = Table("model", title=f"seeds {seeds[0]} to {seeds[-1]}: mean [lowest, highest]", title_justify="left")
    for name in summary["metrics"]:
        table.add_column(name.replace("_", " "))
    for model, key in ((FINE_TUNED, "metrics"), (ENSEMBLE, "ensemble_metrics")):
        if metrics := summary.get(key):
            table.add_row(
                model, *(f"{m['mean']:.3f} [{m['lowest']:.3f}, {m['highest']:.3f}]" for m in metrics.values())
            )
    return table
