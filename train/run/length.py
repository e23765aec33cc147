"""Changing the length of a run that exists: `config.num_steps` of a finished or interrupted run.

The steps that are done keep their learning rates. From the join on, the newest checkpoint, each step has the learning
rate that a run of the new length has at that step; nothing else changes, and the state goes on whole. Under "constant",
and under "wsd" if the decay had not begun, the result is bit for bit that of a run started with the new length.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.schema import build
from train.checkpoint.manager import CHECKPOINTS_DIR, saved_steps
from train.schedule import schedule_errors
from train.settings import OptimizerSettings

# The directory in a fine-tuned run of the stage that pre-trains on the task's texts; its length is its own.
TASK_TEXT_DIR = "task_text"

# One entry of `run.json`: {"before": steps, "after": steps, "steps": {training directory: its newest step}}. A
# fine-tuning run trains two models: "." is the run itself, "from_random" its baseline.
LengthChange = dict[str, Any]


def length_change(workdir: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> LengthChange | None:
    """Returns the change of the length of the run in `workdir`, or None if there is none.

    Args:
        workdir: the run directory.
        before: the run's config.
        now: the config that it resumes with.

    Raises:
        UserError: the schedule is a cosine, or the new length is less than what is done or than the schedule needs.
    """
    old, new = before["num_steps"], now["num_steps"]
    if old == new:
        return None
    optimizer = build(OptimizerSettings, before["optimizer"], "config.optimizer")
    if optimizer.schedule == "cosine":
        raise UserError(
            f"config.num_steps={new}: {workdir} was started with {old} and config.optimizer.schedule='cosine', whose "
            f"every step depends on the length; use {old}, or --init_from={workdir} and a new --workdir"
        )
    others = [path.parent for path in sorted(workdir.glob(f"*/{CHECKPOINTS_DIR}"))]
    trained = {".": workdir} | {other.name: other for other in others if other.name != TASK_TEXT_DIR}
    steps = {name: next(iter(saved_steps(directory)), 0) for name, directory in trained.items()}
    done = max(steps.values())
    if new < done:
        raise UserError(f"config.num_steps={new} must be at least {done}, the number of steps that {workdir} has done")
    if errors := schedule_errors(optimizer, new):
        raise UserError("; ".join(errors))
    return {"before": old, "after": new, "steps": steps}


def earlier_lengths(changes: Sequence[LengthChange], directory: str = ".") -> tuple[tuple[int, int], ...]:
    """Returns ((step, length of the run up to this step), ...) of a training directory, oldest first."""
    return tuple((change["steps"].get(directory, 0), change["before"]) for change in changes)
