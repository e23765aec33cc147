"""A training run of a few seconds in this process, any batch of which can be corrupted."""

import dataclasses
from collections.abc import Callable, Container, Iterable
from pathlib import Path

import jax
import numpy as np
import optax

from configs import default
from data.loader import Batch, BatchFunction, Rows
from data.packing import PackedRows
from data.store import store_from_documents
from model.heads import language_model
from model.transformer import Params
from tests.conftest import mesh_of, random_documents, tiny_model
from train.distributed.placement import put_batch
from train.job import Job
from train.loop import fit
from train.settings import Settings, from_config
from train.step import TrainState, make_program

STEPS, EVERY = 12, 4  # length of the run; steps between checkpoints and between evaluations


def settings_of(**changes: object) -> Settings:
    """Returns the settings of `STEPS` steps of the tiny model."""
    config = default.get_config()
    config.batch_size, config.sequence_length, config.num_steps = 8, 32, STEPS
    config.optimizer.warmup_steps = 2
    config.optimizer.learning_rate = 1e-2
    config.evaluation.every = config.checkpoint.every = EVERY
    config.logging.every = 1
    config.update_from_flattened_dict(changes)
    return from_config(config.to_dict())


def rows_of() -> PackedRows:
    """Returns rows for more than twice `STEPS` batches."""
    rows = PackedRows(store_from_documents(random_documents(400)), 32)
    assert len(rows) > 2 * STEPS * 8
    return rows


def function_of(settings: Settings, rows: Rows) -> BatchFunction:
    """Returns the batches of an undisturbed run."""
    return BatchFunction(rows, settings.batch_size, settings.seed)


@dataclasses.dataclass(frozen=True)
class Corrupted:
    """Rows, some of which are corrupted by `corrupt`, which changes their weights in place."""

    inner: Rows
    bad: frozenset[int]
    corrupt: Callable[[np.ndarray], None]

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.inner)

    def rows(self, indices: np.ndarray) -> Batch:
        """Returns the rows of these numbers."""
        batch = self.inner.rows(indices)
        weights = batch["weights"].copy()
        for place in np.flatnonzero(np.isin(indices, list(self.bad))):
            self.corrupt(weights[place])
        return batch | {"weights": weights}


def corrupted(settings: Settings, batches: Iterable[int], corrupt: Callable[[np.ndarray], None]) -> Corrupted:
    """Returns rows such that every row of the batches with these numbers is corrupted."""
    rows = rows_of()
    numbers = [function_of(settings, rows).row_numbers(t) for t in batches]
    return Corrupted(rows, frozenset(np.concatenate(numbers).tolist()), corrupt)


def nan(weights_T: np.ndarray) -> None:
    """Makes the loss NaN."""
    weights_T[3] = np.nan


def spike(weights_T: np.ndarray) -> None:
    """Makes the total weight nearly zero: the gradient norm is finite and hundreds of times the usual one."""
    weights_T[::2], weights_T[1::2] = 1.0, -0.999


def train(
    workdir: Path,
    settings: Settings,
    rows: Rows | None = None,
    evaluate: Callable[[Params], dict[str, float]] = lambda params: {"loss": 1.0},
) -> list[np.ndarray]:
    """Trains in `workdir` and returns the parameters."""
    mesh = mesh_of()
    job = Job("fault", language_model(tiny_model()), rows or rows_of(), evaluate, None, (), 1.0)
    with jax.set_mesh(mesh):
        return [np.asarray(leaf) for leaf in jax.tree.leaves(fit(job, settings, mesh, workdir))]


def steps_over(settings: Settings, batches: Iterable[int], skipped: Container[int] = ()) -> list[np.ndarray]:
    """Returns the parameters after one step on each of these batches, computed without the loop.

    A step on a batch of `skipped` changes only the step number and the schedule's count.
    """
    mesh, function = mesh_of(), function_of(settings, rows_of())
    program = make_program(language_model(tiny_model()), settings, mesh)
    with jax.set_mesh(mesh):
        state = program.initialize(jax.random.key_data(jax.random.key(settings.seed)))
        for t in batches:
            state = _skip(state) if t in skipped else program.step(state, put_batch(function(t), mesh))[0]
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state.all_params)]


def _skip(state: TrainState) -> TrainState:
    def is_schedule(part: object) -> bool:
        return isinstance(part, optax.ScaleByScheduleState)

    counted = jax.tree.map(
        lambda part: part._replace(count=part.count + 1) if is_schedule(part) else part,
        state.opt_state,
        is_leaf=is_schedule,
    )
    return state._replace(step=state.step + 1, opt_state=counted)


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    """Returns whether two runs ended with bitwise equal parameters."""
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
