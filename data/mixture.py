"""`config.data.mixture`: the sources that a pre-training run mixes, and how their weights change.

mixture = (("books", "stores/books", 0.7), ("code", "stores/code", 0.3))
mixture_schedule = ((20_000, {"books": 0.2, "code": 0.8}),)
"""

import contextlib
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from configs.errors import UserError
from data.row_plan import RowPlan, integer_weights, row_plan

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class MixtureSource(NamedTuple):
    """One entry of `config.data.mixture`: its name, its token store or text, and its share of the rows, relative."""

    name: str
    path: str
    weight: float


class MixtureChange(NamedTuple):
    """One entry of `config.data.mixture_schedule`: from batch `step` on, each source has the weight given here."""

    step: int
    weights: dict[str, float]


@contextlib.contextmanager
def of_source(name: str) -> Iterator[None]:
    """A context in which a `UserError` names the source of the mixture; "": there is no mixture."""
    try:
        yield
    except UserError as error:
        if not name:
            raise
        raise UserError(f"config.data.mixture: source {name!r}: {error}") from None


def mixture_errors(sources: Sequence[MixtureSource], schedule: Sequence[MixtureChange]) -> list[str]:
    """Returns what is wrong with the names, paths, weights and steps of a mixture."""
    errors = []
    names = [source.name for source in sources]
    for source in sources:
        place = f"config.data.mixture: source {source.name!r}"
        if not _NAME.fullmatch(source.name):
            errors.append(f"{place}: expected a name of letters, digits, '_', '-' and '.'")
        if names.count(source.name) > 1:
            errors.append(f"{place} is listed {names.count(source.name)} times; expected different names")
        if not source.path:
            errors.append(f"{place} has no path; expected a token store, a file, a glob or hf:NAME")
    errors += _weight_errors("config.data.mixture", {source.name: source.weight for source in sources})
    steps = [change.step for change in schedule]
    if any(step < 1 for step in steps) or any(a >= b for a, b in itertools.pairwise(steps)):
        errors.append(f"config.data.mixture_schedule has the steps {steps}; expected rising steps of at least 1")
    for change in schedule:
        place = f"config.data.mixture_schedule at step {change.step}"
        if unknown := [name for name in change.weights if name not in names]:
            errors.append(f"{place}: {', '.join(unknown)} is no source of config.data.mixture ({', '.join(names)})")
        if missing := [name for name in names if name not in change.weights]:
            errors.append(f"{place}: the weight of {', '.join(missing)} is missing; expected one for every source")
        errors += _weight_errors(place, change.weights)
    return list(dict.fromkeys(errors))


def _weight_errors(place: str, weights: dict[str, float]) -> list[str]:
    errors = [
        f"{place}: source {name!r} has weight {weight!r}; expected a finite number of at least 0"
        for name, weight in weights.items()
        if not 0 <= weight < math.inf
    ]
    if weights and not errors and not any(weights.values()):
        errors.append(f"{place}: all weights are 0; expected at least one above 0")
    return errors


def weights_by_step(
    sources: Sequence[MixtureSource], schedule: Sequence[MixtureChange]
) -> list[tuple[int, dict[str, float]]]:
    """Returns (step from which they hold, {name: weight}, sorted by name) of a mixture, without changes to the same."""
    changes = [(0, {source.name: source.weight for source in sources}), *schedule]
    found: list[tuple[int, dict[str, float]]] = []
    for step, weights in changes:
        ordered = {name: float(weights[name]) for name in sorted(weights)}
        before = list(found[-1][1].values()) if found else []
        if not found or integer_weights(before) != integer_weights(list(ordered.values())):
            found.append((step, ordered))
    return found


def mixture_plan(sources: Sequence[MixtureSource], schedule: Sequence[MixtureChange], batch_size: int) -> RowPlan:
    """Returns which source gives each row of the batches; sources are numbered in the order of their names."""
    changes = weights_by_step(sources, schedule)
    return row_plan([(step * batch_size, list(weights.values())) for step, weights in changes])
