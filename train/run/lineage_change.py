"""What a resumed run may not change: the run that `--init_from` names, whose parameters it started from."""

import os
from collections.abc import Sequence

from data.storage.files import is_file
from data.storage.paths import at, is_remote

Lineage = Sequence[dict[str, str]]


def lineage_errors_on_resume(before: Lineage, now: Lineage) -> list[str]:
    """Returns what a resumed run changes about the run that it started from.

    A parent that was moved is the same: nothing is left where it was, and its data are the same.

    Args:
        before: the run's lineage, oldest first; its last entry is the run that it started from.
        now: the lineage that it resumes with.
    """
    if not before and not now:
        return []
    old, new = (lineage[-1] if lineage else {} for lineage in (before, now))
    if old and new:
        moved = not is_file(at(old["directory"]) / "run.json")
        same_run = (old["stage"], old["data_fingerprint"]) == (new["stage"], new["data_fingerprint"])
        if _real(old["directory"]) == _real(new["directory"]) or (moved and same_run):
            return []
    return [f"--init_from: {old.get('directory', 'none')} -> {new.get('directory', 'none')}"]


def _real(directory: str) -> str:
    return directory if is_remote(at(directory)) else os.path.realpath(directory)
