"""Fits a scaling law to a ladder of small runs, and says which model and how many tokens a compute budget calls for.

Trains the config at several sizes (--sizes, multiples of its width) for several lengths (--lengths, multiples of its
steps), each an ordinary run in a directory of its own below --workdir. Then fits their held-out losses with
L(N, D) = E + A / N^alpha + B / D^beta (N: all parameters, D: tokens; Hoffmann et al. 2022, arXiv:2203.15556), checks
the fit on the largest run, and prints the optimum of each budget with 95 % bootstrap intervals. Run it again and it
goes on where it stopped; runs that are finished are only read. --workdir gets scaling.json, scaling.png, and the runs
as points.jsonl, to which more can be added for --points.

  rootstock scaling --config=configs/pretrain/tiny.py --config.data.path='texts/*.txt' --workdir=runs/scaling
  rootstock scaling --points=runs.jsonl --workdir=runs/scaling --flops=1e21,1e23
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
from absl import flags

from configs.errors import UserError
from data.sources import read_rows
from data.store import open_store
from model.config import ModelConfig, model_config, training_flops_per_token
from model.heads import language_model, parameter_count
from train import run as runs
from train.distributed import is_first, on_first
from train.ladder.law import Analysis, Point, analyse, cautions
from train.ladder.plot import draw
from train.ladder.report import Results, print_tables, results
from train.ladder.sizes import Config, ladder, overrides, scaled, size_for
from train.metrics import console
from train.pretrain import pretrain, token_store
from train.settings import from_config

REQUIRED = ("workdir",)
OPTIONAL = ("config",)
MULTI_PROCESS = True
PREEMPTIBLE = True


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("workdir", None, "Directory of the sweep; made if need be.", flag_values=values)
    flags.DEFINE_list("sizes", "0.25,0.5,0.75,1", "Multiples of the config's width.", flag_values=values)
    flags.DEFINE_list("lengths", "0.25,0.5,1", "Multiples of the config's steps.", flag_values=values)
    flags.DEFINE_list(
        "flops", [], "Budgets in model FLOPs; without it, the next three powers of ten.", flag_values=values
    )
    flags.DEFINE_string(
        "points", "", "Instead of --config: JSONL or CSV of runs trained elsewhere, with parameters, tokens, loss "
        "(nats a token) and flops (without it, 6 * parameters * tokens).", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean("json", False, "Print one JSON object.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command; prints the runs, the law, the check on the largest run, and the optimum of each budget."""
    if bool(values.points) == bool(values.config):
        raise UserError("one of --config and --points is wanted; see rootstock scaling --help")
    sizes, lengths, budgets = (_numbers(name, values[name].value) for name in ("sizes", "lengths", "flops"))
    config = values.config.to_dict() if values.config else None
    workdir = Path(values.workdir)
    with runs.claim(workdir):
        warnings: list[str] = []
        if config is None:
            points = read_points(values.points)
        else:
            points, warnings = sweep(config, workdir, sizes, lengths)
        analysis = analyse(list(points.values()))
        budgets = budgets or _next_decades(analysis)
        found = results(analysis, list(points), budgets)
        if config is not None:
            trained = runs.read_record(workdir / next(iter(points))).model
            for budget in found["budgets"]:
                budget["flags"] = _flags(config, trained, budget["parameters"]["value"], budget["flops"])
        found["cautions"] = [*warnings, *cautions(analysis, budgets)]
        if is_first():
            _publish(found, analysis, budgets, workdir, values.json)


def _publish(found: Results, analysis: Analysis, budgets: Sequence[float], workdir: Path, as_json: bool) -> None:
    """Writes `scaling.json` and `scaling.png`, and prints the figures."""
    (workdir / "scaling.json").write_text(json.dumps(found, indent=1))
    if as_json:
        print(json.dumps(found))
    else:
        print_tables(found)
    try:
        draw(analysis, budgets, workdir / "scaling.png")
    except UserError as error:
        # The numbers are out: a missing extra costs the picture alone.
        console.print(f"scaling: no picture: {error}", highlight=False, markup=False)


def sweep(
    config: Config, workdir: Path, sizes: Sequence[float], lengths: Sequence[float]
) -> tuple[dict[str, Point], list[str]]:
    """Trains what is not trained yet of the ladder; returns ({directory: the run's figures}, cautions).

    Raises:
        UserError: a fault in the flags, in the config of a run or in its data, or a loss that is not finite.
    """
    settings = from_config(config)
    configs = ladder(config, sizes, lengths)
    for one in configs.values():
        from_config(one)
    store = token_store(settings, workdir, None)
    train = open_store(store, "train")
    points = {}
    for number, (name, one) in enumerate(configs.items(), 1):
        one["data"]["path"] = str(store)
        directory = workdir / name
        if not _is_finished(directory, one, train.fingerprint):
            console.print(f"scaling: run {number} of {len(configs)}: {directory}", highlight=False)
            try:
                pretrain(one, directory)
            except UserError as error:
                raise UserError(f"{directory}: {error}") from None
        points[name] = _figures(directory, one)
    if is_first():
        lines = [json.dumps({"run": name, **dataclasses.asdict(point)}) + "\n" for name, point in points.items()]
        (workdir / "points.jsonl").write_text("".join(lines))
    epochs = max(point.tokens for point in points.values()) / train.num_tokens
    repeats = f"the longest runs read the training tokens {epochs:.1f} times; the law is about fresh tokens"
    return points, [repeats] if epochs > 1 else []


def _is_finished(directory: Path, config: Config, fingerprint: str) -> bool:
    """Whether a directory holds this very run, finished; of another run there, pretrain says how it differs."""

    def look() -> bool:
        if not (directory / "checkpoints" / str(config["num_steps"])).is_dir():
            return False
        record = runs.read_record(directory)
        return record.data_fingerprint == fingerprint and not runs.config_changes(record.config, config)

    return on_first(look)


def _figures(directory: Path, config: Config) -> Point:
    """Returns what a finished run adds to the fit."""
    model, steps = runs.read_record(directory).model, config["num_steps"]
    tokens = steps * config["batch_size"] * config["sequence_length"]
    flops = tokens * training_flops_per_token(model, config["sequence_length"])
    return Point(_parameters(model), tokens, flops, on_first(lambda: _final_loss(directory, steps)))


def _final_loss(directory: Path, step: int) -> float:
    """Returns the held-out loss after `step` steps, in nats a token."""
    records = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    losses = [record["loss"] for record in records if record["phase"] == "eval" and record["step"] == step]
    if not losses or losses[-1] is None:
        raise UserError(f"{directory}/metrics.jsonl has no held-out loss at step {step}; remove {directory}, run again")
    return losses[-1]


@cache
def _parameters(model: ModelConfig) -> int:
    """Returns N: all parameters, embeddings too, as Hoffmann et al. count.

    Small models are mostly embeddings, and to leave them out there bends the exponents: it is most of the way from
    Chinchilla's N ~ C^0.50 to Kaplan et al.'s N ~ C^0.73 (Pearce and Song 2024, arXiv:2406.12907).
    """
    return parameter_count(jax.eval_shape(language_model(model).init, jax.random.key(0)))


def read_points(pattern: str) -> dict[str, Point]:
    """Returns {row: its figures} of runs trained elsewhere.

    Raises:
        UserError: a row without one of the columns, or with anything but a finite number above 0 there.
    """
    points = {}
    for number, row in enumerate(read_rows(pattern), 1):
        found: dict[str, float] = {}
        for name in ("parameters", "tokens", "loss", "flops"):
            if name == "flops" and name not in row:
                found[name] = 6 * found["parameters"] * found["tokens"]
                continue
            found[name] = _positive(row.get(name))
            if math.isnan(found[name]):
                raise UserError(f"{pattern}: row {number}: {name} is {row.get(name)!r}; legal: a finite number above 0")
        points[f"row {number}"] = Point(**found)
    return points


def _positive(value: Any) -> float:  # noqa: ANN401 - whatever stands in a file
    """Returns the value as a float, NaN where it is no finite number above 0."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return math.nan
    return number if 0 < number < math.inf else math.nan


def _flags(config: Config, trained: ModelConfig, parameters: float, flops: float) -> list[str]:
    """Returns the flags that turn the config into the size nearest to `parameters`, trained for `flops`."""

    def model_of(one: Config) -> ModelConfig:
        known = {"vocab_size": trained.vocab_size, "context_length": trained.context_length}
        return model_config(one["model"] | known)

    size = size_for(config, parameters, lambda one: _parameters(model_of(one)))
    flops_per_token = training_flops_per_token(model_of(scaled(config, size, 1)), config["sequence_length"])
    tokens = config["num_steps"] * config["batch_size"] * config["sequence_length"]
    return overrides(config, scaled(config, size, flops / flops_per_token / tokens))


def _next_decades(analysis: Analysis) -> list[float]:
    """Returns the three powers of ten above the largest run's FLOPs."""
    largest = math.floor(math.log10(max(point.flops for point in analysis.points)))
    return [10.0 ** (largest + decade) for decade in (1, 2, 3)]


def _numbers(flag: str, texts: Any) -> list[float]:  # noqa: ANN401 - absl's flags have no types
    """Returns the numbers of a comma-separated flag."""
    numbers = [_positive(text) for text in texts]
    for number, text in zip(numbers, texts, strict=True):
        if math.isnan(number):
            raise UserError(f"--{flag} has {text!r}; legal: numbers above 0, with commas")
    return numbers


if __name__ == "__main__":
    import sys

    from train.cli import main

    main(["scaling", *sys.argv[1:]])
