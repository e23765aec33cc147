"""Checkpoints that know what they hold: Orbax writes the arrays, our manifest names, shapes, types and checksums them.

Orbax restores a flipped bit without a word, so every leaf is checked after reading. A step's directory is renamed into
place by Orbax when all of it, manifest included, is on disk.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh, SingleDeviceSharding

from configs.errors import UserError
from model.transformer import Params
from train.checksums import checksums, leaf_paths
from train.distributed import on_first
from train.manifest import compare_leaves, describe, leaves_of
from train.mesh import replicated
from train.metrics import console
from train.orbax_items import GROUPS, registry
from train.step import TrainState

_VERSION = 1
NEWEST, BEST = "checkpoints", "best"


@contextlib.contextmanager
def open_manager(
    directory: Path, keep: int, name: str = NEWEST, keep_period: int = 0
) -> Iterator[ocp.CheckpointManager]:
    """Yields Orbax's manager of a run's `checkpoints/` or `best/`: asynchronous, uncompressed.

    Args:
        directory: of the run.
        keep: how many of the newest steps stay.
        name: `NEWEST` or `BEST`.
        keep_period: steps that it divides stay too; 0: none.
    """
    options = {"enable_async_checkpointing": True, "cleanup_tmp_directories": True}
    manager = _manager(directory, name, True, max_to_keep=keep, keep_period=keep_period or None, **options)
    try:
        yield manager
        wait(manager)
    finally:
        # What went wrong in a save was told by then.
        with contextlib.suppress(OSError, ValueError):
            manager.close()


@contextlib.contextmanager
def open_to_read(directory: Path, name: str = NEWEST, once: bool = False) -> Iterator[ocp.CheckpointManager]:
    """Yields a manager that changes nothing: the run may be training, and its next checkpoint half written.

    Args:
        directory: of the run.
        name: `NEWEST` or `BEST`.
        once: nobody will read it again soon.

    Raises:
        UserError: there is no checkpoint.
    """
    if not on_first((directory / name).is_dir):
        raise UserError(f"{directory} holds no checkpoint")
    manager = _manager(directory, name, once, read_only=True, create=False, save_interval_steps=0)
    try:
        yield manager
    finally:
        manager.close()


def _manager(directory: Path, name: str, once: bool, **options: Any) -> ocp.CheckpointManager:  # noqa: ANN401
    return ocp.CheckpointManager(
        directory.absolute() / name,
        options=ocp.CheckpointManagerOptions(**options),
        handler_registry=registry(directory, once),
    )


def wait(manager: ocp.CheckpointManager) -> None:
    """Returns once what is being saved is on disk.

    Raises:
        UserError: it could not be written; what was saved before is untouched.
    """
    with _saving(manager):
        manager.wait_until_finished()


@contextlib.contextmanager
def _saving(manager: ocp.CheckpointManager) -> Iterator[None]:
    # A full disk, a quota or a directory that is read-only, through TensorStore or the file system itself.
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        # TensorStore says first where, last what.
        fault = " ".join(str(error).split())[-200:]
        kept = ", ".join(map(str, saved_steps(Path(manager.directory).parent, Path(manager.directory).name))) or "none"
        raise UserError(
            f"{manager.directory}: a checkpoint cannot be written ({fault}); those of steps {kept} are whole: "
            "make room, then run again to go on"
        ) from None


def save(manager: ocp.CheckpointManager, state: TrainState, mesh: Mesh) -> None:
    """Starts saving a state; returns once its arrays may be donated again.

    Raises:
        UserError: Orbax refused, e.g. because a newer step is already there; or this or the last one cannot be
            written.
    """
    step = int(state.step)
    manifest = {"version": _VERSION, "step": step, "leaves": describe(state, checksums(leaves_of(state), mesh))}
    arguments = {group: ocp.args.PyTreeSave(getattr(state, group)) for group in GROUPS if getattr(state, group)}
    with _saving(manager):
        saved = manager.save(step, args=ocp.args.Composite(**arguments, manifest=ocp.args.JsonSave(manifest)))
    if not saved:
        raise UserError(f"{manager.directory}: checkpoint {step} was not saved; newest there: {manager.latest_step()}")


def save_best(manager: ocp.CheckpointManager, state: TrainState, mesh: Mesh) -> None:
    """Saves the parameters of the best state so far, unless a run that was killed had come so far before.

    What it saved then is what this run will come to.
    """
    if int(state.step) > (manager.latest_step() or -1):
        save(manager, state._replace(opt_state=None), mesh)


def restore_newest(manager: ocp.CheckpointManager, abstract: TrainState, mesh: Mesh) -> TrainState | None:
    """Returns the newest sound state, or None where there is no checkpoint.

    A damaged step is passed over with a warning and moved to `damaged/`. Names, shapes
    and types are compared before any array is read.

    Args:
        manager: of the run.
        abstract: the state's shapes, dtypes and shardings.
        mesh: the run's mesh; need not be the one that the state was saved from.

    Raises:
        UserError: the leaves differ from `abstract`, or every checkpoint is damaged.
    """
    steps = _steps(manager)
    state, faults = _newest_sound(manager, steps, abstract, mesh)
    if state is not None:
        _set_aside(manager, [newer for newer in steps if newer > int(state.step)])
    elif steps:
        raise UserError(f"{'; '.join(faults)}; no sound checkpoint is left")
    return state


def restore_before(directory: Path, step: int, abstract: TrainState, mesh: Mesh) -> TrainState | None:
    """Returns the newest sound state of at most `step` steps, or None; changes nothing (see `restore_newest`)."""
    if not saved_steps(directory):
        return None
    with open_to_read(directory, once=True) as manager:
        return _newest_sound(manager, [s for s in _steps(manager) if s <= step], abstract, mesh)[0]


def _newest_sound(
    manager: ocp.CheckpointManager, steps: list[int], abstract: TrainState, mesh: Mesh
) -> tuple[TrainState | None, list[str]]:
    """Returns (the state of the first of `steps` that is sound, or None; what is wrong with those before it)."""
    faults: list[str] = []
    for step in steps:
        damage = ""
        manifest = _manifest(manager, step)
        if manifest is None:
            damage = "its manifest cannot be read"
        else:
            compare_leaves(f"{manager.directory}/{step}", manifest["leaves"], describe(abstract))
            items = {group: getattr(abstract, group) for group in GROUPS}
            read, damage = _read(manager, step, items)
            if not damage:
                at = jax.device_put(jnp.asarray(step, jnp.int32), replicated(mesh))
                state = TrainState(at, read["params"], read["opt_state"])
                damage = _damage(manifest["leaves"], state, mesh)
        if not damage:
            return state, faults
        faults.append(_warn(manager, step, damage))
    return None, faults


def restore_params(
    directory: Path,
    abstract_params: Any,  # noqa: ANN401
    mesh: Mesh,
    groups: tuple[str, ...],
    name: str = NEWEST,
) -> Any:  # noqa: ANN401
    """Returns `{group: parameters}` of the newest sound checkpoint of a run, for grafting and for inference.

    Args:
        directory: the run's directory.
        abstract_params: shapes, dtypes and shardings of `{"backbone": ..., "head": ...}`.
        mesh: where they go.
        groups: which of "backbone", "adapter" and "head" to read; only these are compared.
        name: `NEWEST` or `BEST`.

    Raises:
        UserError: no checkpoint, a leaf that is missing, unexpected or of another shape, or damage.
    """
    wanted = {group: abstract_params[group] for group in groups}
    faults = []
    with open_to_read(directory, name) as manager:
        for step in _steps(manager):
            manifest = _manifest(manager, step)
            damage = "its manifest cannot be read"
            if manifest is not None:
                prefixes = tuple(f"params/{group}/" for group in groups)
                theirs = {k: v for k, v in manifest["leaves"].items() if k.startswith(prefixes)}
                expected = describe(TrainState(None, wanted, None))  # type: ignore[arg-type]
                compare_leaves(f"{manager.directory}/{step}", theirs, expected)
                read, damage = _read(manager, step, {"params": wanted})
                damage = damage or _damage(theirs, TrainState(None, read["params"], None), mesh)  # type: ignore[arg-type]
            if not damage:
                return read["params"]
            faults.append(_warn(manager, step, damage))
    raise UserError("; ".join(faults) or f"{directory} holds no checkpoint")


@contextlib.contextmanager
def open_sound(directory: Path, abstract_params: Params, mesh: Mesh, name: str) -> Iterator[Callable[[str], jax.Array]]:
    """Yields a function that reads a leaf of the newest checkpoint all of whose parameters are sound.

    Args:
        directory: of the run.
        abstract_params: shapes, dtypes and shardings of all that it trained.
        mesh: where a leaf goes.
        name: `NEWEST` or `BEST`.

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


def saved_steps(directory: Path, name: str = NEWEST) -> list[int]:
    """Returns the steps of a run's committed checkpoints, newest first."""
    folder = directory / name
    found = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
    return sorted(found, reverse=True)


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


def _steps(manager: ocp.CheckpointManager) -> list[int]:
    """Returns the steps that there are, newest first; process 0's list, since a network file system may lag."""
    return on_first(lambda: sorted(manager.all_steps(), reverse=True))


def _warn(manager: ocp.CheckpointManager, step: int, damage: str) -> str:
    """Says, and returns, that a checkpoint is damaged, or that the run, which trains on, deleted it meanwhile."""
    folder = Path(manager.directory)
    found = f"is damaged ({damage})" if (folder / str(step)).is_dir() else "was deleted while it was read"
    fault = f"{folder}: checkpoint {step} {found}"
    console.print(f"warning: {fault}; trying the one before", style="yellow", highlight=False, markup=False)
    return fault


def _set_aside(manager: ocp.CheckpointManager, steps: list[int]) -> None:
    """Moves damaged steps to the run's `damaged/`, so that the steps done again can be saved under their numbers."""
    aside = Path(manager.directory).parent / "damaged"

    def move() -> None:
        for step in steps:
            aside.mkdir(exist_ok=True)
            (Path(manager.directory) / str(step)).rename(aside / f"{step}-{time.time_ns()}")

    on_first(move)
    manager.reload()


def _manifest(manager: ocp.CheckpointManager, step: int) -> dict[str, Any] | None:
    read, _ = _restore(manager, step, {"manifest": ocp.args.JsonRestore()})
    try:
        manifest = read["manifest"]
        whole = all(
            isinstance(leaf["shape"], list) and isinstance(leaf["dtype"], str) and isinstance(leaf["checksum"], str)
            for leaf in manifest["leaves"].values()
        )
        return manifest if whole and manifest["version"] == _VERSION and manifest["leaves"] else None
    except (KeyError, TypeError, AttributeError):
        return None


def _read(manager: ocp.CheckpointManager, step: int, items: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Returns (the groups' arrays, "") or ({}, what went wrong)."""
    arguments = {
        name: ocp.args.PyTreeRestore(
            item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
        )
        for name, item in items.items()
    }
    return _restore(manager, step, arguments)


def _restore(manager: ocp.CheckpointManager, step: int, arguments: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Returns (what Orbax reads, "") on every process, or ({}, what went wrong) on every process."""
    try:
        read = manager.restore(step, args=ocp.args.Composite(**arguments))
        return {name: read[name] for name in arguments}, ""
    # Orbax and TensorStore raise a dozen types for a truncated, missing or unreadable file.
    except Exception as error:
        fault = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    if "sync_global_devices name mismatch" in fault:
        return {}, "another process cannot read it"
    # Orbax's reading ends with a barrier. A process that failed before it meets the others there under another name,
    # so that it fails on all of them.
    with contextlib.suppress(AssertionError):
        multihost_utils.sync_global_devices("rootstock: a checkpoint cannot be read")
    return {}, fault


def _damage(leaves: dict[str, Any], state: TrainState, mesh: Mesh) -> str:
    """Returns the leaves whose checksum is not the manifest's, or an empty string."""
    found = checksums(leaves_of(state), mesh)
    wrong = sorted(path for path, leaf in leaves.items() if leaf["checksum"] != found[path])
    return f"checksum differs: {', '.join(wrong[:3])}" if wrong else ""
