"""A run's directory describes itself: `run.json` holds the config, the architecture, the task and the lineage."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from configs import default
from configs.errors import UserError
from configs.schema import build
from data.sources import Inventory, differences
from data.tokenizer import Tokenizer, load_tokenizer
from model.config import EXECUTION_FIELDS, ModelConfig, architecture_difference
from train.checkpoint.manager import saved_steps
from train.console import warn
from train.distributed.processes import is_process_zero, run_on_process_zero
from train.files import write_atomically

_VERSION = 2
# Version 1 had these names in its config.
_RENAMED_FIELDS = {
    ("faults", "in_a_row"): "max_consecutive_skips",
    ("faults", "then"): "on_divergence",
    ("data", "workers"): "num_workers",
    ("data", "read_ahead"): "prefetch",
}
# Config fields that a run may change when it goes on; any other change is refused.
MAY_CHANGE = (
    *("mesh", "xla_flags", "evaluation", "checkpoint", "faults", "logging", "microbatches"),
    *("data.num_workers", "data.prefetch"),
    *(f"model.{name}" for name in EXECUTION_FIELDS),
)


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What a run's directory says of itself.

    Attributes:
        stage: "pretrain" or "finetune".
        model: the architecture, complete.
        config: the config the run was started with.
        task: of a fine-tuned run: its name and the `Facts` of `train/tasks/task.py`; empty after pre-training.
        data_fingerprint: names the rows it was trained on.
        lineage: the runs this one was grafted from, oldest first: {"stage", "directory", "data_fingerprint"} each.
        data_files: what the rows were read from (`data.sources.inventory`); empty where a prepared store was.
        data_changes: {"step", "before", "after"} of each time that other data were accepted, fingerprints of them.
    """

    stage: Literal["pretrain", "finetune"]
    model: ModelConfig
    config: dict[str, Any]
    task: dict[str, Any]
    data_fingerprint: str
    lineage: list[dict[str, str]]
    data_files: Inventory = dataclasses.field(default_factory=list)
    data_changes: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def start(workdir: Path, record: RunRecord, tokenizer: Tokenizer, accept_changed_data: bool = False) -> None:
    """Writes `run.json` and the tokenizer, or checks that they are those of the run that is going on.

    Process 0 writes; the others check that theirs is the same run.

    Args:
        workdir: of the run.
        record: what it is now.
        tokenizer: of its data.
        accept_changed_data: go on with other data than before, and note it in `run.json`.

    Raises:
        UserError: the config, the data or the tokenizer changed in a way that would make it another run.
    """
    if run_on_process_zero(lambda: _write_if_new(workdir, record, tokenizer)) and is_process_zero():
        return
    before = read_record(workdir)
    changed = [f"model {difference}" for difference in architecture_difference(before.model, record.model)]
    changed += config_changes(before.config, record.config)
    if before.data_fingerprint != record.data_fingerprint and not accept_changed_data:
        files = differences(before.data_files, record.data_files) if before.data_files else []
        prints = f"data: {before.data_fingerprint[:16]} != {record.data_fingerprint[:16]}"
        changed.append("; ".join([prints, *files[:3], *([f"and {len(files) - 3} more files"] if files[3:] else [])]))
    if load_tokenizer(workdir / "tokenizer").sha256 != tokenizer.sha256:
        changed.append("the tokenizer")
    if changed:
        raise UserError(
            f"{workdir} holds a run with another config ({'; '.join(changed)}): "
            "go on with the old values, or give a new --workdir; a run may change "
            + ", ".join(f"config.{name}" for name in (*MAY_CHANGE, "data.path"))
            + ", and its data with --accept_changed_data"
        )
    if before.data_fingerprint != record.data_fingerprint:
        run_on_process_zero(lambda: _accept(workdir, before, record))


def _accept(workdir: Path, before: RunRecord, record: RunRecord) -> None:
    """Writes other data into `run.json`, and says so."""
    step = next(iter(saved_steps(workdir)), 0)
    change = {"step": step, "before": before.data_fingerprint, "after": record.data_fingerprint}
    now = dataclasses.replace(
        before,
        data_fingerprint=record.data_fingerprint,
        data_files=record.data_files,
        data_changes=[*before.data_changes, change],
    )
    _write(workdir, now)
    text = f"{workdir} goes on at step {step} with other data than before; run.json notes it"
    warn(text)


def _write_if_new(workdir: Path, record: RunRecord, tokenizer: Tokenizer) -> bool:
    """Writes `run.json` and the tokenizer where there is no `run.json`, and returns whether that was so."""
    if (workdir / "run.json").exists():
        return False
    tokenizer.save(workdir / "tokenizer")
    _write(workdir, record)
    return True


def _write(workdir: Path, record: RunRecord) -> None:
    text = json.dumps({"version": _VERSION, **dataclasses.asdict(record)}, indent=1)
    write_atomically(workdir / "run.json", text)


def config_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Returns "field: before -> now" for each field that a run may not change when it goes on (see `MAY_CHANGE`).

    A field that came after the run was started had its default then.
    """
    old, new = _flatten(default.get_config().to_dict()) | _flatten(before), _flatten(now)
    return [
        f"config.{name}: {old.get(name)!r} -> {new[name]!r}"
        for name in sorted(new)
        if old.get(name) != new[name] and not name.startswith(MAY_CHANGE) and name != "data.path"
    ]


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def read_record(directory: Path) -> RunRecord:
    """Returns the `RunRecord` of a run's directory.

    Raises:
        UserError: it is none, or its `run.json` is damaged.
    """
    path = directory / "run.json"
    if not path.is_file():
        raise UserError(f"{directory} is not a run of rootstock: it holds no run.json")
    try:
        values = json.loads(path.read_text())
        version = values.pop("version")
        if version not in (1, _VERSION):
            raise UserError(
                f"{path} has version {version!r}; expected 1 to {_VERSION}: update rootstock to read this run"
            )
        # What attends fastest there may not run here, and a field that came later had its default then.
        stored = default.model().to_dict() | values.pop("model") | {"attention": "auto"}
        model = build(ModelConfig, stored, f"{path}: model")
        values["config"] = _filled(default.get_config().to_dict(), _upgraded(values["config"]))
        return RunRecord(model=model, **values)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())}") from None


def _upgraded(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the config of a version 1 `run.json` with the field names of version 2; other configs as they are."""
    sections = {name: dict(value) if isinstance(value, dict) else value for name, value in config.items()}
    for (section, before), after in _RENAMED_FIELDS.items():
        if before in sections.get(section, {}):
            sections[section][after] = sections[section].pop(before)
    return sections


def _filled(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Returns `values` with the defaults of fields that came after them."""
    filled = {n: _filled(defaults[n], v) if isinstance(defaults.get(n), dict) else v for n, v in values.items()}
    return defaults | filled


def with_execution(model: ModelConfig, section: Mapping[str, Any]) -> ModelConfig:
    """Returns a stored architecture that runs (dtype, scan, remat) as the `config.model` at hand says."""
    stored = dataclasses.asdict(model)
    return build(ModelConfig, stored | {name: section[name] for name in EXECUTION_FIELDS}, "config.model")


def lineage_entry(directory: Path, record: RunRecord) -> list[dict[str, str]]:
    """Returns the lineage of a run that is grafted from this one."""
    own = {
        "stage": record.stage,
        "directory": str(directory.absolute()),
        "data_fingerprint": record.data_fingerprint,
    }
    return [*record.lineage, own]
