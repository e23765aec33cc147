"""Trains the runs of a scaling sweep and reads their results; also reads the results of runs trained elsewhere."""

import dataclasses
import glob
import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from configs.errors import UserError
from data.readers import read_rows
from data.storage.files import write_atomically
from model.config import ModelConfig, model_config
from model.flops import active_parameters, training_flops_per_token
from model.heads import language_model, parameter_count
from train.checkpoint.manager import saved_steps
from train.console import say
from train.corpus.opened import open_corpus, source_usage, with_stores
from train.corpus.stores import token_stores
from train.distributed.processes import is_process_zero, run_on_process_zero
from train.pretraining import pretrain
from train.run.record import UNREAD, config_changes, open_run
from train.scaling.law import Analysis, Point
from train.scaling.sizes import Config, overrides, scaled, size_for, sweep_configs
from train.settings import from_config
from train.trees import boxed_params


def sweep(
    config: Config, workdir: Path, sizes: Sequence[float], lengths: Sequence[float]
) -> tuple[dict[str, Point], list[str]]:
    """Trains the runs of a scaling sweep that are not finished; returns ({run directory: point}, cautions).

    Raises:
        UserError: invalid flags, config or data, or a run that diverged.
    """
    settings = from_config(config)
    configs = sweep_configs(config, sizes, lengths)
    for one in configs.values():
        from_config(one)
    corpus = open_corpus(token_stores(settings, workdir, None), settings)
    points = {}
    for number, (name, one) in enumerate(configs.items(), 1):
        one = with_stores(one, corpus)
        directory = workdir / name
        if not _is_finished(directory, one, corpus.fingerprint):
            say(f"scaling: run {number} of {len(configs)}: {directory}")
            try:
                pretrain(one, directory)
            except UserError as error:
                raise UserError(f"{directory}: {error}") from None
        points[name] = _figures(directory, one)
    if is_process_zero():
        _write_points(workdir / "points.jsonl", points)
    longest = max(map(from_config, configs.values()), key=lambda one: one.num_steps)
    rows = dataclasses.replace(corpus, settings=longest).rows
    epochs = max(used.epochs for used in source_usage(rows, longest).values())
    repeats = f"the longest runs repeat the training tokens {epochs:.1f} times; the law assumes unique tokens"
    return points, [repeats] if epochs > 1 else []


def _write_points(path: Path, points: dict[str, Point]) -> None:
    """Writes a sweep's points; rows of other runs that the file has, such as those that a user added, stay."""
    rows = [{"run": name, **dataclasses.asdict(point)} for name, point in points.items()]
    if path.is_file() and path.stat().st_size:
        rows += [row for row in read_rows(glob.escape(str(path))) if row.get("run") not in points]
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


def _is_finished(directory: Path, config: Config, fingerprint: str) -> bool:
    """Returns whether the directory contains this run, finished; for a different run, `pretrain` raises the error."""

    def look() -> bool:
        if config["num_steps"] not in saved_steps(directory):
            return False
        record = open_run(directory).record
        changes = config_changes(record.config, config, UNREAD["pretrain"])
        return record.data_fingerprint == fingerprint and not changes

    return run_on_process_zero(look)


def _figures(directory: Path, config: Config) -> Point:
    """Returns the point of a finished run."""
    model, steps = open_run(directory).model, config["num_steps"]
    tokens = steps * config["batch_size"] * config["sequence_length"]
    flops = tokens * training_flops_per_token(model, config["sequence_length"])
    return Point(_parameters(model), tokens, flops, run_on_process_zero(lambda: _final_loss(directory, steps)))


def _final_loss(directory: Path, step: int) -> float:
    """Returns the held-out loss after `step` steps, in nats per token."""
    records = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    losses = [record["loss"] for record in records if record["phase"] == "eval" and record["step"] == step]
    if not losses or losses[-1] is None:
        raise UserError(
            f"{directory}/metrics.jsonl has no held-out loss at step {step}; delete {directory} and run again"
        )
    return losses[-1]


@cache
def _parameters(model: ModelConfig) -> int:
    """Returns N: all parameters that a token uses, including embeddings, as in Hoffmann et al.

    Small models are mostly embeddings, so excluding them biases the exponents: it explains most of the difference
    between Chinchilla's N ~ C^0.50 and Kaplan et al.'s N ~ C^0.73 (Pearce and Song 2024, arXiv:2406.12907).
    """
    return active_parameters(model, parameter_count(boxed_params(language_model(model))))


def read_points(pattern: str) -> dict[str, Point]:
    """Returns {row name: point} of runs trained elsewhere, from JSONL or CSV.

    Raises:
        UserError: a row lacks a column or has a value that is not a finite number above 0.
    """
    points = {}
    for number, row in enumerate(read_rows(pattern), 1):
        found: dict[str, float] = {}
        for name in ("parameters", "tokens", "loss", "flops"):
            if name == "flops" and name not in row:
                found[name] = 6 * found["parameters"] * found["tokens"]
                continue
            found[name] = positive_number(row.get(name))
            if math.isnan(found[name]):
                raise UserError(
                    f"{pattern}: row {number}: {name} is {row.get(name)!r}; expected a finite number above 0"
                )
        points[f"row {number}"] = Point(**found)
    return points


def positive_number(value: object) -> float:
    """Returns the value as a float, or NaN if it is not a finite number above 0."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan
    return number if 0 < number < math.inf else math.nan


def flags_for_budget(config: Config, trained: ModelConfig, parameters: float, flops: float) -> list[str]:
    """Returns the flags that train the size of `config` nearest to `parameters` for `flops`."""

    def model_of(one: Config) -> ModelConfig:
        known = {"vocab_size": trained.vocab_size, "context_length": trained.context_length}
        return model_config(one["model"] | known)

    size = size_for(config, parameters, lambda one: _parameters(model_of(one)))
    flops_per_token = training_flops_per_token(model_of(scaled(config, size, 1)), config["sequence_length"])
    tokens = config["num_steps"] * config["batch_size"] * config["sequence_length"]
    return overrides(config, scaled(config, size, flops / flops_per_token / tokens))


def next_decades(analysis: Analysis) -> list[float]:
    """Returns the three powers of ten above the largest run's FLOPs."""
    largest = math.floor(math.log10(max(point.flops for point in analysis.points)))
    return [10.0 ** (largest + decade) for decade in (1, 2, 3)]
