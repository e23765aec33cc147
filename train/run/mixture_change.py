"""Changing the weights of a mixture when a run resumes: only those of steps that are not done yet."""

from collections.abc import Mapping
from typing import Any

from configs.schema import build
from data.mixture import weights_by_step
from data.row_plan import integer_weights
from train.settings import DataSettings

_FIELDS = ("mixture", "mixture_schedule")


def mixture_errors_on_resume(before: Mapping[str, Any], now: Mapping[str, Any], done: int) -> list[str]:
    """Returns what a resumed run changes about the rows of its past: other sources, or other weights of steps done.

    Args:
        before: the run's config.
        now: the config that it resumes with.
        done: batches that are done or passed over; the schedule counts batches.
    """
    old, new = _weights(before), _weights(now)
    names = [", ".join(weights[0][1]) or "none" for weights in (old, new)]
    if names[0] != names[1]:
        return [f"config.data.mixture: sources {names[0]} -> {names[1]}"]
    past = [[(step, weights) for step, weights in each if step < done] for each in (old, new)]
    for (step, weights), (other_step, others) in zip(*past, strict=False):
        if step != other_step or integer_weights([*weights.values()]) != integer_weights([*others.values()]):
            return [_difference(min(step, other_step), old, new, done)]
    if len(past[0]) != len(past[1]):
        first = max(past, key=len)[min(map(len, past))][0]
        return [_difference(first, old, new, done)]
    return []


def mixture_of(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of `config.data` about weights of a resumed run, or {} if the weights are the run's."""
    old, new = ([(step, integer_weights([*each.values()])) for step, each in _weights(c)] for c in (before, now))
    if old == new:
        return {}
    return {name: now["data"][name] for name in _FIELDS}


def _weights(config: Mapping[str, Any]) -> list[tuple[int, dict[str, float]]]:
    """Returns `weights_by_step` of a config; without a mixture, of one source without a name."""
    data = build(DataSettings, config["data"], "config.data")
    return weights_by_step(data.mixture, data.mixture_schedule) if data.mixture else [(0, {"": 1.0})]


def _difference(step: int, old: list[Any], new: list[Any], done: int) -> str:
    shown = [next(weights for start, weights in reversed(each) if start <= step) for each in (old, new)]
    return (
        f"config.data.mixture: weights at batch {step}: {shown[0]} -> {shown[1]}, but {done} batches are done; change "
        f"those of later ones with config.data.mixture_schedule=(({done}, {{...}}),)"
    )
