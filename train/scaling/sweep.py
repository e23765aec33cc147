"""Runs a sweep of small pre-training runs and reads its points."""

import dataclasses
import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from configs.errors import UserError
from data.readers import read_rows
from data.store import open_store
from model.config import ModelConfig, model_config
from model.flops import training_flops_per_token
from model.heads import language_model, parameter_count
from train.console import say
from train.distributed.processes import is_process_zero, run_on_process_zero
from train.pretraining import pretrain, token_store
from train.run.record import config_changes, open_run
from train.scaling.law import Analysis, Point
from train.scaling.sizes import Config, ladder, overrides, scaled, size_for
from train.settings import from_config
from train.trees import boxed_params


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
            say(f"scaling: run {number} of {len(configs)}: {directory}")
            try:
                pretrain(one, directory)
            except UserError as error:
                raise UserError(f"{directory}: {error}") from None
        points[name] = _figures(directory, one)
    if is_process_zero():
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
        record = open_run(directory).record
        return record.data_fingerprint == fingerprint and not config_changes(record.config, config)

    return run_on_process_zero(look)


def _figures(directory: Path, config: Config) -> Point:
    """Returns what a finished run adds to the fit."""
    model, steps = open_run(directory).model, config["num_steps"]
    tokens = steps * config["batch_size"] * config["sequence_length"]
    flops = tokens * training_flops_per_token(model, config["sequence_length"])
    return Point(_parameters(model), tokens, flops, run_on_process_zero(lambda: _final_loss(directory, steps)))


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
    return parameter_count(boxed_params(language_model(model)))


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
