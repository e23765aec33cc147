"""A run's parameters leaf by leaf, for what needs no more than one of them in memory."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from jax.sharding import Mesh

from model.config import ModelConfig
from model.transformer import Params
from train.checkpoint.read import open_sound
from train.run.parameters import checkpoint_dir_of, load_merged_params, objective_of
from train.run.record import read_record
from train.trees import abstract_params, leaf_paths

Read = Callable[[str], jax.Array]  # "backbone/layers/..." -> leaf


@contextlib.contextmanager
def open_params(directory: Path, model: ModelConfig, mesh: Mesh) -> Iterator[tuple[Params, Read]]:
    """Yields (shapes of the backbone and the head of a run, a function that reads a leaf of them).

    Each leaf is read twice, to see first that all are sound. What an adapter changes, or another run holds, is in
    memory as a whole.

    Raises:
        UserError: see `runs.load_params`.
    """
    record = read_record(directory)
    objective = objective_of(record, model)
    if set(objective.trained) != {"backbone", "head"}:
        params = load_merged_params(directory, model, mesh, ("backbone", "head"))
        yield params, leaf_paths(params).__getitem__
        return
    abstract = abstract_params(objective, mesh)
    with open_sound(directory, abstract, mesh, checkpoint_dir_of(directory, record)) as read:
        yield abstract, read
