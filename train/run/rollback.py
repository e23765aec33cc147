"""The batches that a run passes over since it rolled back: `skipped_batches.json`, read by resuming and replaying."""

import json
from pathlib import Path
from typing import Any

from configs.errors import UserError
from data.loader import Skipped, batch_number
from train.distributed.processes import run_on_process_zero
from train.files import write_atomically

_NAME = "skipped_batches.json"
_TRIES = 3  # roll-backs to one checkpoint: data that fails after each of them is not what is wrong


def skipped_batches(workdir: Path) -> Skipped:
    """Returns the (first, last) numbers of the batches that the run in `workdir` passes over; see `batch_number`.

    Raises:
        UserError: the file is damaged.
    """
    return _ranges(_read(workdir))


def roll_back(workdir: Path, step: int, failed_step: int) -> dict[str, Any]:
    """Has the run pass over all batches of the steps after `step` up to `failed_step`, and returns what was recorded.

    Those before the first that failed go too: one of them may have led there (PaLM, arXiv:2204.02311, 5.1).

    Args:
        workdir: of the run.
        step: the steps done of the state that it goes back to.
        failed_step: the last step that was skipped.

    Raises:
        UserError: it has been back there too often.
    """
    entries = _read(workdir)
    if sum(entry["step"] == step for entry in entries) >= _TRIES:
        raise UserError(
            f"the run rolled back to step {step} {_TRIES} times, and other data fails too: lower "
            "config.optimizer.learning_rate or raise config.faults.max_grad_norm, then start anew"
        )
    before = _ranges(entries)
    entry = {
        "step": step,
        "failed_step": failed_step,
        "first": batch_number(step, before),
        "last": batch_number(failed_step - 1, before),
    }
    run_on_process_zero(lambda: _write(workdir / _NAME, [*entries, entry]))
    return entry


def _ranges(entries: list[dict[str, int]]) -> Skipped:
    return tuple((entry["first"], entry["last"]) for entry in entries)


def _read(workdir: Path) -> list[dict[str, int]]:
    """Returns process 0's entries, oldest first: a network file system may lag."""
    return run_on_process_zero(lambda: _entries(workdir / _NAME))


def _entries(path: Path) -> list[dict[str, int]]:
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text())["roll_backs"]
        return [{name: int(entry[name]) for name in ("step", "failed_step", "first", "last")} for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): without it the run would see other batches") from None


def _write(path: Path, entries: list[dict[str, int]]) -> None:
    write_atomically(path, json.dumps({"version": 1, "roll_backs": entries}, indent=1))
