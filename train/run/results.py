"""`results.json`: what a run came to, in one JSON object to which training and evaluation add."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.errors import UserError
from train.files import write_atomically
from train.run import goodput
from train.run.history import read_records

NAME = "results.json"


def add_results(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the object in a file, new or there, as a whole.

    Raises:
        UserError: the file holds something else, or cannot be written.
    """
    try:
        held = json.loads(path.read_text()) if path.exists() else {}
        change(held)
        write_atomically(path, json.dumps(held, indent=1))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} cannot be written: {error}") from None


def training_summary(workdir: Path) -> dict[str, Any]:
    """Returns a run's last figures on held-out data, "skipped_steps", and "seconds": where its wall time went."""
    records = read_records(workdir)
    evaluated = [r for r in records if r["phase"] == "eval"]
    accounts = [r["parts"] for r in records if r["phase"] == goodput.PHASE]
    about = ("phase", "seconds")
    return {
        "held_out": {name: value for name, value in evaluated[-1].items() if name not in about} if evaluated else {},
        "skipped_steps": sum(r["phase"] == "skipped" for r in records),
        "seconds": accounts[-1] if accounts else {},
    }
