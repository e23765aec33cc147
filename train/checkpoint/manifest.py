"""The manifest of a checkpoint: path, shape, dtype and checksum of every leaf, stored as JSON beside the arrays."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from configs.errors import UserError
from train.step import TrainState
from train.trees import leaf_paths

VERSION = 1
_MAX_LISTED = 8  # leaves named in one error


class LeafInfo(NamedTuple):
    """One leaf of a checkpoint; `checksum` is hexadecimal and empty where it was not computed."""

    shape: tuple[int, ...]
    dtype: str
    checksum: str = ""


Leaves = dict[str, LeafInfo]  # by path: "params/backbone/..."


def items_of(state: TrainState) -> dict[str, Any]:
    """Returns the trees that a checkpoint stores of a state, by the name of the Orbax item."""
    average = {"average": state.average} if state.average else {}
    return {"params": state.params, "opt_state": state.opt_state} | average


def describe_leaves(items: Mapping[str, Any], sums: Mapping[str, str] | None = None) -> Leaves:
    """Returns the `LeafInfo` of each (abstract) array of the items, with its checksum where `sums` are given."""
    return {
        path: LeafInfo(tuple(leaf.shape), str(leaf.dtype), sums[path] if sums else "")
        for path, leaf in leaf_paths(items).items()
    }


def to_json(step: int, leaves: Leaves) -> dict[str, Any]:
    """Returns the manifest as it is stored."""
    return {"version": VERSION, "step": step, "leaves": {path: leaf._asdict() for path, leaf in leaves.items()}}


def from_json(manifest: Any) -> Leaves | None:  # noqa: ANN401 - whatever a damaged file contains
    """Returns the leaves of a stored manifest, or None if it is malformed or has another version."""
    try:
        leaves = {
            path: LeafInfo(tuple(leaf["shape"]), leaf["dtype"], leaf["checksum"])
            for path, leaf in manifest["leaves"].items()
        }
        well_formed = all(isinstance(leaf.dtype, str) and isinstance(leaf.checksum, str) for leaf in leaves.values())
        return leaves if well_formed and manifest["version"] == VERSION and leaves else None
    except (KeyError, TypeError, AttributeError):
        return None


def compare_leaves(where: str, stored: Leaves, expected: Leaves) -> None:
    """Raises UserError listing the leaves that are missing, unexpected, or differ in shape or dtype."""
    errors = [f"missing: {path}" for path in expected if path not in stored]
    errors += [f"unexpected: {path}" for path in stored if path not in expected]
    for path in expected.keys() & stored.keys():
        a, b = stored[path], expected[path]
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            errors.append(f"{path} is {a.dtype}{list(a.shape)}, the model has {b.dtype}{list(b.shape)}")
    if errors:
        shown = "; ".join(sorted(errors)[:_MAX_LISTED])
        more = f"; and {len(errors) - _MAX_LISTED} more" if len(errors) > _MAX_LISTED else ""
        raise UserError(f"{where} does not match the model: {shown}{more}")
