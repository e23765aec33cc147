"""`results.json`: the results of a run, one JSON object that training and evaluation extend."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.errors import UserError
from data.storage.files import write_atomically
from train.files import check_output_file
from train.run import goodput
from train.run.history import read_records

NAME = "results.json"


def add_results(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Updates the JSON object in a file atomically; a missing file counts as an empty object.

    Raises:
        UserError: the file contains something else or cannot be written.
    """
    held = _read(path)
    try:
        change(held)
        write_atomically(path, json.dumps(held, indent=1))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} cannot be written: {error}") from None


def check_results(path: Path, option: str) -> None:
    """Checks that `add_results` can extend a file; called before the work whose results it will contain.

    Args:
        path: the file.
        option: name of the flag, for the error message.

    Raises:
        UserError: the file contains something else or cannot be written.
    """
    check_output_file(path, option)
    _read(path)


def _read(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file, or an empty one if the file is missing."""
    try:
        held = json.loads(path.read_text()) if path.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be extended: {error}") from None
    if not isinstance(held, dict):
        raise UserError(f"{path} cannot be extended: expected a JSON object, got {held!r:.80}")
    return held


def training_summary(workdir: Path) -> dict[str, Any]:
    """Returns "held_out" (the last evaluation), "skipped_steps" and "seconds" (wall time per part) of a run."""
    records = read_records(workdir, "eval", "skipped", goodput.PHASE)
    evaluated = [r for r in records if r["phase"] == "eval"]
    accounts = [r["parts"] for r in records if r["phase"] == goodput.PHASE]
    about = ("phase", "seconds", "better")
    return {
        "held_out": {name: value for name, value in evaluated[-1].items() if name not in about} if evaluated else {},
        "skipped_steps": sum(r["phase"] == "skipped" for r in records),
        "seconds": accounts[-1] if accounts else {},
    }
