"""Verifies all checkpoints of a run, and compares those of two runs leaf by leaf."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from configs.errors import UserError
from train.checkpoint.manager import BEST_DIR, CHECKPOINTS_DIR, open_to_read, saved_steps
from train.checkpoint.read import CheckpointContents, read_contents


class Verified(NamedTuple):
    """A checkpoint that was read: its directory ("checkpoints" or "best"), step, number of leaves, and damage or ""."""

    where: str
    step: int
    leaves: int
    damage: str


def verified_checkpoints(directory: Path) -> Iterator[Verified]:
    """Yields every checkpoint of a run, newest first, then `best/`."""
    for where in (CHECKPOINTS_DIR, BEST_DIR):
        for step in saved_steps(directory, where):
            contents = _read(directory, where, step)
            yield Verified(where, step, len(contents.leaves), contents.damage)


def newest_sound(directory: Path) -> tuple[int, CheckpointContents]:
    """Returns (step, contents) of the newest checkpoint that is not damaged.

    Raises:
        UserError: there is none.
    """
    for step in saved_steps(directory, CHECKPOINTS_DIR):
        contents = _read(directory, CHECKPOINTS_DIR, step)
        if not contents.damage:
            return step, contents
    raise UserError(f"{directory} contains no sound checkpoint")


def _read(directory: Path, where: str, step: int) -> CheckpointContents:
    with open_to_read(directory, where) as manager:
        return read_contents(manager, step)


class LeafDifference(NamedTuple):
    """How a leaf differs between two checkpoints.

    Attributes:
        path: of the leaf.
        kinds: its dtype and shape in each; "": missing.
        largest: the largest absolute difference; None if the kinds differ.
        relative: norm of the difference over the norm of the second leaf; None if the kinds differ.
    """

    path: str
    kinds: tuple[str, str]
    largest: float | None
    relative: float | None


def differences(ours: CheckpointContents, theirs: CheckpointContents) -> list[LeafDifference]:
    """Returns the leaves that are not identical in two checkpoints, sorted by path."""
    found = []
    for path in sorted(ours.leaves.keys() | theirs.leaves.keys()):
        a, b = ours.leaves.get(path), theirs.leaves.get(path)
        kinds = (_kind(a), _kind(b))
        if a is None or b is None or kinds[0] != kinds[1]:
            found.append(LeafDifference(path, kinds, None, None))
        elif ours.checksums[path] != theirs.checksums[path]:
            x, y = (np.asarray(jax.device_get(leaf), np.float64) for leaf in (a, b))
            norm = float(np.linalg.norm((x - y).ravel())) / max(float(np.linalg.norm(y.ravel())), 1e-30)
            found.append(LeafDifference(path, kinds, float(np.abs(x - y).max()), norm))
    return found


def _kind(leaf: jax.Array | None) -> str:
    return "" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"
