"""Reads checkpoints without a train state: one leaf at a time, or all of it for inspection."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, SingleDeviceSharding

from configs.errors import UserError
from model.transformer import Params
from train.checkpoint.checksums import checksums
from train.checkpoint.manager import _manifest, _steps, open_to_read
from train.checkpoint.manifest import compare_leaves, describe
from train.checkpoint.restore import _read, _warn
from train.step import TrainState
from train.trees import leaf_paths


@contextlib.contextmanager
def open_sound(directory: Path, abstract_params: Params, mesh: Mesh, name: str) -> Iterator[Callable[[str], jax.Array]]:
    """Yields a function that reads a leaf of the newest checkpoint all of whose parameters are sound.

    Args:
        directory: of the run.
        abstract_params: shapes, dtypes and shardings of all that it trained.
        mesh: where a leaf goes.
        name: `CHECKPOINTS_DIR` or `BEST_DIR`.

    Raises:
        UserError: see `restore_params`.
    """
    faults, wanted = [], leaf_paths(abstract_params)
    with open_to_read(directory, name) as manager:
        for step in _steps(manager):
            manifest = _manifest(manager, step)
            damage = "its manifest cannot be read"
            if manifest is not None:
                theirs = {k: v for k, v in manifest["leaves"].items() if k.startswith("params/")}
                compare_leaves(f"{manager.directory}/{step}", theirs, describe(TrainState(None, abstract_params, None)))  # type: ignore[arg-type]
                read = partial(_read_leaf, manager, step, wanted)
                damage = next(filter(None, (_leaf_damage(read, path, theirs, mesh) for path in wanted)), "")
            if not damage:
                yield lambda path: read(path)[0]  # noqa: B023 - the loop ends here
                return
            faults.append(_warn(manager, step, damage))
    raise UserError("; ".join(faults) or f"{directory} holds no checkpoint")


def _read_leaf(manager: ocp.CheckpointManager, step: int, wanted: dict[str, Any], path: str) -> tuple[Any, str]:
    """Returns (a leaf, "") or (None, what went wrong)."""
    item: Any = wanted[path]
    for key in reversed(path.split("/")):
        item = {key: item}
    read, damage = _read(manager, step, {"params": item})
    return (None if damage else jax.tree.leaves(read)[0]), damage


def _leaf_damage(read: Callable[[str], Any], path: str, theirs: dict[str, Any], mesh: Mesh) -> str:
    leaf, damage = read(path)
    if damage or checksums({path: leaf}, mesh)[path] == theirs[f"params/{path}"]["checksum"]:
        return damage
    return f"checksum differs: {path}"


class Held(NamedTuple):
    """What a checkpoint holds: {path: array}, {path: checksum} as found, and what is wrong with it, or ""."""

    leaves: dict[str, jax.Array]
    checksums: dict[str, str]
    damage: str


def inspect(manager: ocp.CheckpointManager, step: int) -> Held:
    """Reads all of a checkpoint on the first device, as its own files describe it, and compares the checksums."""
    manifest = _manifest(manager, step)
    if manifest is None:
        return Held({}, {}, "its manifest cannot be read")
    groups = {path.partition("/")[0] for path in manifest["leaves"]}
    one = SingleDeviceSharding(jax.devices()[0])
    # Orbax and TensorStore raise a dozen types for a truncated, missing or unreadable file.
    try:
        trees = {group: manager.item_metadata(step)[group].tree for group in groups}
        items = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), trees)
    except Exception as error:
        return Held({}, {}, " ".join(str(error).split())[:200] or type(error).__name__)
    read, damage = _read(manager, step, items)
    if damage:
        return Held({}, {}, damage)
    leaves = leaf_paths(read)
    found = checksums(leaves, None)
    expected = {path: leaf["checksum"] for path, leaf in manifest["leaves"].items()}
    wrong = sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))
    return Held(leaves, found, f"checksum differs: {', '.join(wrong)}" if wrong else "")
