"""Lists, verifies, compares and prunes the checkpoints of a run: `rootstock checkpoint ls|verify|diff|prune RUN`.

rootstock checkpoint ls runs/tiny
rootstock checkpoint verify runs/tiny
rootstock checkpoint diff runs/tiny runs/other
rootstock checkpoint prune runs/tiny --keep=1

verify exits with 1 if a checkpoint is damaged, and names the damaged leaves. diff compares the newest checkpoints of
two runs. prune deletes the oldest checkpoints; it keeps the newest sound one, those of config.checkpoint.keep_period
and best/.
"""

import re
import time
from pathlib import Path

from absl import flags
from rich.table import Table

from configs.errors import UserError
from data.storage.paths import at, is_remote
from train.console import results_console

POSITIONAL = ("action", "run", "other")
REQUIRED = ("action", "run")
RENAMED_FLAGS = {"directory": "run"}
FLAG_NEEDS = {"other": "action=diff", "keep": "action=prune", "dry_run": "action=prune"}


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    actions = ["ls", "verify", "diff", "prune"]
    flags.DEFINE_enum("action", None, actions, "ls, verify, diff or prune.", flag_values=values)
    flags.DEFINE_string("run", None, "Directory of a run.", flag_values=values)
    flags.DEFINE_string("other", "", "diff: directory of another run.", flag_values=values)
    flags.DEFINE_integer("keep", 1, "prune: newest checkpoints to keep.", lower_bound=1, flag_values=values)
    flags.DEFINE_boolean("dry_run", False, "prune: print what would be deleted, without deleting.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command; prints a table.

    Raises:
        UserError: the run or its checkpoints are missing, or one is damaged.
    """
    from train.run.record import open_run

    directory = at(values.run)
    open_run(directory)
    if values.action == "ls":
        _list(directory)
    elif values.action == "verify":
        _verify(directory)
    elif values.action == "prune":
        _prune(directory, values.keep, values.dry_run)
    elif not values.other:
        raise UserError("checkpoint diff: the other run is missing; expected rootstock checkpoint diff RUN OTHER")
    else:
        _diff(directory, at(values.other))


def _table(*columns: str) -> Table:
    table = Table()
    for column in columns:
        table.add_column(column)
    return table


def _list(directory: Path) -> None:
    from train.checkpoint.manager import BEST_DIR, CHECKPOINTS_DIR, saved_steps
    from train.run.history import read_records

    evaluated = [r for r in read_records(directory, "eval") if r["phase"] == "eval"]
    # A loss that is not finite is null in metrics.jsonl.
    losses = {r["step"]: "nan" if r["loss"] is None else f"{r['loss']:.4f}" for r in evaluated}
    table = _table("where", "step", "MB", "saved", "held-out loss")
    # Not what is being saved, or was when the run was killed: "20.orbax-checkpoint-tmp".
    steps = [(where, step) for where in (CHECKPOINTS_DIR, BEST_DIR) for step in saved_steps(directory, where)[::-1]]
    damaged = [path for path in (directory / "damaged").glob("[0-9]*") if re.fullmatch(r"\d+(-\d+)?", path.name)]
    for path in [*(directory / where / str(step) for where, step in steps), *sorted(damaged, key=_step)]:
        files = [file.stat() for file in path.rglob("*") if file.is_file()]
        size = sum(file.st_size for file in files)
        # A directory of a bucket has no time of its own.
        written = max((file.st_mtime for file in files), default=0.0) if is_remote(path) else path.stat().st_mtime
        saved = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(written))
        table.add_row(path.parent.name, path.name, f"{size / 1e6:,.1f}", saved, losses.get(_step(path), ""))
    results_console().print(table)


def _step(path: Path) -> int:
    return int(path.name.partition("-")[0])


def _verify(directory: Path) -> None:
    from train.checkpoint.compare import verified_checkpoints

    table, damaged = _table("where", "step", "leaves", "found"), []
    if not (found := list(verified_checkpoints(directory))):
        raise UserError(f"{directory} contains no checkpoint")
    for where, step, leaves, damage in found:
        table.add_row(where, str(step), str(leaves), damage or "sound")
        if damage:
            damaged.append(f"{where}/{step}: {damage}")
    results_console().print(table)
    if damaged:
        raise UserError(f"{directory}: {'; '.join(damaged)}")


def _diff(directory: Path, other: Path) -> None:
    from train.checkpoint.compare import differences, newest_sound
    from train.run.record import config_changes, open_run

    (step, ours), (other_step, theirs) = newest_sound(directory), newest_sound(other)
    table = _table("leaf", f"{directory} {step}", f"{other} {other_step}", "largest difference", "relative")
    for path, kinds, *figures in differences(ours, theirs):
        table.add_row(path, *kinds, *("" if figure is None else f"{figure:.3g}" for figure in figures))
    same = sum(ours.checksums[path] == theirs.checksums.get(path) for path in ours.leaves)
    table.caption = f"{same} leaves are identical"
    results_console().print(table)
    for change in config_changes(open_run(directory).record.config, open_run(other).record.config):
        results_console().print(change)


def _prune(directory: Path, keep: int, dry_run: bool) -> None:
    from train.checkpoint.compare import newest_sound
    from train.checkpoint.manager import CHECKPOINTS_DIR, delete_step, saved_steps
    from train.run.lock import claim
    from train.run.record import open_run

    with claim(directory):
        steps = saved_steps(directory, CHECKPOINTS_DIR)
        sound, _ = newest_sound(directory)
        period = open_run(directory).record.config["checkpoint"]["keep_period"]
        gone = [step for step in steps[keep:] if step != sound and (not period or step % period)]
        for step in gone:
            if not dry_run:
                delete_step(directory / CHECKPOINTS_DIR / str(step))
    verb = "would delete" if dry_run else "deleted"
    kept = ", ".join(str(step) for step in steps if step not in gone)
    results_console().print(f"{verb} {', '.join(map(str, gone)) or 'nothing'}; kept {kept}")
