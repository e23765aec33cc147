"""Reads a run's parameters leaf by leaf, for exports that hold one leaf in memory at a time."""

import contextlib
from collections.abc import Callable, Iterator

import jax
from jax.sharding import Mesh

from model.transformer import Params
from train.checkpoint.read import open_leaf_reader
from train.run.record import Run
from train.trees import abstract_params, leaf_paths

Read = Callable[[str], jax.Array]  # "backbone/layers/..." -> leaf


@contextlib.contextmanager
def open_params(run: Run, mesh: Mesh) -> Iterator[tuple[Params, Read]]:
    """Yields (abstract parameters of a run's backbone and head, a function that reads one leaf).

    Each leaf is read twice: all checksums are verified first. An adapter run is merged with its base model in memory.

    Raises:
        UserError: see `Run.load`.
    """
    objective = run.objective()
    if set(objective.trained) != {"backbone", "head"}:
        params = run.load_merged(mesh, ("backbone", "head"))
        yield params, leaf_paths(params).__getitem__
        return
    abstract = abstract_params(objective, mesh)
    stored = (run.checkpoint_dir, run.checkpoint_item)
    with open_leaf_reader(run.directory, abstract, mesh, *stored) as read:
        yield abstract, read
