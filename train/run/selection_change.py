"""What a run that keeps its best parameters may not change when it resumes, so that all its evaluations compare."""

from collections.abc import Mapping
from typing import Any


def selection_errors_on_resume(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns what a resumed run changes about the values by which its best parameters were chosen.

    Args:
        before: the run's config.
        now: the config that it resumes with.
    """
    if not before["checkpoint"]["best"]:
        return []
    old, new = before["evaluation"], now["evaluation"]
    return [
        f"config.evaluation.{name}: {old[name]!r} -> {new[name]!r}, with config.checkpoint.best"
        for name in ("metric", "batches")
        if old[name] != new[name]
    ]
