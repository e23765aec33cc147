"""Reads checkpoints without building a train state: one parameter at a time, or everything for inspection."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, SingleDeviceSharding

from model.transformer import Params
from train.checkpoint.checksums import checksums
from train.checkpoint.manager import open_to_read
from train.checkpoint.manifest import Leaves, compare_leaves, describe_leaves
from train.checkpoint.steps import DamagedCheckpoint, read_arrays, read_manifest, sound_steps, verify
from train.trees import leaf_paths

ReadLeaf = Callable[[str], jax.Array]


@contextlib.contextmanager
def open_leaf_reader(
    directory: Path, abstract_params: Params, mesh: Mesh, name: str, item: Literal["params", "average"] = "params"
) -> Iterator[ReadLeaf]:
    """Yields a function from a leaf's path to its array, read from the newest checkpoint whose parameters are sound.

    Args:
        directory: of the run.
        abstract_params: shapes, dtypes and shardings of all parameters that the run trained.
        mesh: where a leaf goes.
        name: `CHECKPOINTS_DIR` or `BEST_DIR`.
        item: the parameters, or their exponential average.

    Raises:
        UserError: see `restore_params`.
    """
    wanted = leaf_paths(abstract_params)
    with open_to_read(directory, name) as manager:

        def verified(step: int, leaves: Leaves) -> ReadLeaf:
            stored = {path: leaf for path, leaf in leaves.items() if path.startswith(f"{item}/")}
            compare_leaves(f"{manager.directory}/{step}", stored, describe_leaves({item: abstract_params}))
            for path in wanted:
                verify({f"{item}/{path}": stored[f"{item}/{path}"]}, {item: {path: read(step, path)}}, mesh)
            return lambda path: read(step, path)

        def read(step: int, path: str) -> jax.Array:
            return _read_leaf(manager, step, f"{item}/{path}", wanted[path])

        yield next(sound_steps(manager, verified))


def _read_leaf(manager: ocp.CheckpointManager, step: int, path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    items: Any = leaf
    for key in reversed(path.split("/")):
        items = {key: items}
    return jax.tree.leaves(read_arrays(manager, step, items))[0]


class CheckpointContents(NamedTuple):
    """What a checkpoint contains: {path: array}, {path: checksum of that array}, and what is damaged, or ""."""

    leaves: dict[str, jax.Array]
    checksums: dict[str, str]
    damage: str


def read_contents(manager: ocp.CheckpointManager, step: int) -> CheckpointContents:
    """Reads a whole checkpoint onto the first device, as its own files describe it, and compares the checksums."""
    try:
        manifest = read_manifest(manager, step)
        leaves = leaf_paths(read_arrays(manager, step, _abstract_items(manager, step, manifest)))
    except DamagedCheckpoint as error:
        return CheckpointContents({}, {}, str(error))
    found = checksums(leaves, None)
    expected = {path: leaf.checksum for path, leaf in manifest.items()}
    wrong = sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))
    return CheckpointContents(leaves, found, f"checksum differs: {', '.join(wrong)}" if wrong else "")


def _abstract_items(manager: ocp.CheckpointManager, step: int, manifest: Leaves) -> dict[str, Any]:
    """Returns the abstract trees of the items that the manifest lists, from Orbax's metadata."""
    names = {path.partition("/")[0] for path in manifest}
    one_device = SingleDeviceSharding(jax.devices()[0])
    # Orbax and TensorStore raise a dozen types for a truncated, missing or unreadable file.
    try:
        trees = {name: manager.item_metadata(step)[name].tree for name in names}
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one_device), trees)
    except Exception as error:
        raise DamagedCheckpoint(" ".join(str(error).split())[:200] or type(error).__name__) from None
