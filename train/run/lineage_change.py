"""What a resumed run may not change: the run that `--init_from` names, whose parameters it started from."""

import os
from collections.abc import Sequence

from data.storage.files import is_file
from data.storage.paths import at, is_remote
from train.run.length import TASK_TEXT_DIR

Lineage = Sequence[dict[str, str]]


def lineage_errors_on_resume(before: Lineage, now: Lineage) -> list[str]:
    """Returns what a resumed run changes about the run that it started from.

    A parent that was moved is the same: nothing is left where it was, and its data are the same. The stage on the
    task's texts is a part of the run, which may be a copy, and checks its own parent.

    Args:
        before: the run's lineage, oldest first; its last entry is the run that it started from.
        now: the lineage that it resumes with.
    """
    old, new = _parent(before), _parent(now)
    if not old and not new:
        return []
    if old and new:
        moved = not is_file(at(old["directory"]) / "run.json")
        same_run = (old["stage"], old["data_fingerprint"]) == (new["stage"], new["data_fingerprint"])
        if _real(old["directory"]) == _real(new["directory"]) or (moved and same_run):
            return []
    return [f"--init_from: {old.get('directory', 'none')} -> {new.get('directory', 'none')}"]


def _parent(lineage: Lineage) -> dict[str, str]:
    """Returns the entry of the run that `--init_from` named; {} for none."""
    others = [entry for entry in lineage if at(entry["directory"]).name != TASK_TEXT_DIR]
    return others[-1] if others else {}


def _real(directory: str) -> str:
    return directory if is_remote(at(directory)) else os.path.realpath(directory)
