"""`skipped_batches.json`: the batches that a run skips after a roll-back; resume and replay read it."""

import json
from pathlib import Path
from typing import Any

from configs.errors import UserError
from data.loader import Skipped, batch_number
from data.storage.files import write_atomically
from train.distributed.processes import run_on_process_zero

_NAME = "skipped_batches.json"
_MAX_ROLL_BACKS = 3  # to the same checkpoint; if other data diverge too, the data are not the cause


def skipped_batches(workdir: Path) -> Skipped:
    """Returns (first, last) of each range of batches that the run in `workdir` skips; see `batch_number`.

    Raises:
        UserError: the file is damaged.
    """
    return _ranges(_read(workdir))


def roll_back(workdir: Path, step: int, failed_step: int) -> dict[str, Any]:
    """Records that the run skips the batches of steps `step` + 1 to `failed_step`, and returns the record.

    This includes batches before the first failed step: one of them may be the cause (PaLM, arXiv:2204.02311, 5.1).

    Args:
        workdir: the run directory.
        step: the step of the checkpoint that the run returns to.
        failed_step: the last step that was skipped.

    Raises:
        UserError: too many roll-backs to this step.
    """
    entries = _read(workdir)
    if sum(entry["step"] == step for entry in entries) >= _MAX_ROLL_BACKS:
        raise UserError(
            f"the run rolled back to step {step} {_MAX_ROLL_BACKS} times and diverged on other data too; lower "
            "config.optimizer.learning_rate or raise config.faults.max_grad_norm, then start a new run"
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
    """Returns the entries, oldest first, as process 0 sees them: network file systems can be stale."""
    return run_on_process_zero(lambda: _entries(workdir / _NAME))


def _entries(path: Path) -> list[dict[str, int]]:
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text())["roll_backs"]
        return [{name: int(entry[name]) for name in ("step", "failed_step", "first", "last")} for entry in entries]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error!r}); without it the run would train on other batches") from None


def _write(path: Path, entries: list[dict[str, int]]) -> None:
    write_atomically(path, json.dumps({"version": 1, "roll_backs": entries}, indent=1))
