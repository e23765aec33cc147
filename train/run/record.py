"""Run directories: `run.json` (config, architecture, task, lineage), the tokenizer and the parameters beside it.

`open_run` reads a run that exists; `start` creates one or checks that a restart continues the same run.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jax.sharding import Mesh

from configs import default
from configs.errors import UserError
from configs.schema import build
from data.loader import Skipped, batch_number
from data.sources import Inventory, differences
from data.storage.files import is_file, write_atomically
from data.storage.paths import at
from data.tokenizer import Tokenizer, load_tokenizer
from model.adapt import adapt, merge, quantized
from model.adaptation import Adaptation
from model.config import EXECUTION_FIELDS, ModelConfig, architecture_difference
from model.heads import Objective, language_model
from model.transformer import Params
from train.checkpoint.local_tier import forget_local_checkpoints
from train.checkpoint.manager import BEST_DIR, CHECKPOINTS_DIR, saved_steps
from train.checkpoint.restore import restore_params
from train.console import warn
from train.distributed.processes import is_process_zero, run_on_process_zero
from train.run.length import LengthChange, length_change
from train.run.lineage_change import lineage_errors_on_resume
from train.run.mixture_change import mixture_errors_on_resume, mixture_of
from train.run.rollback import skipped_batches
from train.run.selection_change import selection_errors_on_resume
from train.settings import RESUMABLE_FIELDS, LossSettings
from train.tasks.loading import load_task, task_from_record
from train.trees import abstract_params

_VERSION = 2
# Version 1 had these names in its config.
_RENAMED_FIELDS = {
    ("faults", "in_a_row"): "max_consecutive_skips",
    ("faults", "then"): "on_divergence",
    ("data", "workers"): "num_workers",
    ("data", "read_ahead"): "prefetch",
}
# Fields that were added to the config later, and what runs without them did, where that is not the default.
_BEFORE_ADDED = {("task", "row_rules"): 1, ("task", "attention"): "causal"}
# Config fields that may change when a run resumes; any other change is refused.
MAY_CHANGE = RESUMABLE_FIELDS
# Sections of the config that a stage does not read, so that older runs resume when a default in them changes.
UNREAD = {"pretrain": ("task.", "adapt.")}


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """The contents of `run.json`.

    Attributes:
        stage: "pretrain" or "finetune".
        model: the complete architecture.
        config: the config that the run was started with.
        task: name and metadata of a fine-tuned run's task (`train/tasks/task.py`); empty after pre-training.
        data_fingerprint: identifies the rows that the run trains on.
        lineage: the runs that this one starts from, oldest first: {"stage", "directory", "data_fingerprint"} each.
        data_files: the files that the rows were read from (`data.sources.inventory`); empty for a prepared store.
        data_changes: {"step", "before", "after"} for each accepted change of data; both values are fingerprints.
        length_changes: each change of `config.num_steps`, oldest first (`train.run.length`).
        generation: sampling options and `max_new_tokens` that came with an imported model.
        data_sources: {source of a mixture: fingerprint of its training rows}; empty without a mixture.
        mixture_changes: {"step", "before", "after"} for each change of a mixture's weights; both values are fields of
            `config.data`, and the steps up to "step" were done before.
        architecture: the Hugging Face architecture that the model was imported as; exports prefer it.
    """

    stage: Literal["pretrain", "finetune"]
    model: ModelConfig
    config: dict[str, Any]
    task: dict[str, Any]
    data_fingerprint: str
    lineage: list[dict[str, str]]
    data_files: Inventory = dataclasses.field(default_factory=list)
    data_changes: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    length_changes: list[LengthChange] = dataclasses.field(default_factory=list)
    generation: dict[str, Any] = dataclasses.field(default_factory=dict)
    data_sources: dict[str, str] = dataclasses.field(default_factory=dict)
    mixture_changes: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    architecture: str = ""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory, opened once: methods load what they return, but none reads this run's `run.json` again."""

    directory: Path
    record: RunRecord

    @property
    def model(self) -> ModelConfig:
        """The architecture."""
        return self.record.model

    @property
    def checkpoint_dir(self) -> str:
        """The subdirectory whose checkpoints hold the parameters to use: the best ones if the run kept them."""
        best = self.record.config["checkpoint"]["best"] and saved_steps(self.directory, BEST_DIR)
        return BEST_DIR if best else CHECKPOINTS_DIR

    @property
    def checkpoint_item(self) -> Literal["params", "average"]:
        """What holds the parameters to use in these checkpoints; the best ones are saved averaged."""
        averages = self.record.config["optimizer"]["ema"] > 0 and self.checkpoint_dir == CHECKPOINTS_DIR
        return "average" if averages else "params"

    @property
    def is_language_model(self) -> bool:
        """Whether the run has a language-model head, so that it can generate and score text."""
        return self.record.stage == "pretrain" or load_task(self.record.task["name"]).trains_lm_head

    def with_model(self, model: ModelConfig) -> "Run":
        """Returns this run with another `ModelConfig` of the same architecture."""
        return dataclasses.replace(self, record=dataclasses.replace(self.record, model=model))

    def with_execution(self, section: Mapping[str, Any]) -> "Run":
        """Returns this run with the execution options (dtype, scan, remat, ...) of a `config.model` section."""
        stored = dataclasses.asdict(self.model)
        options = {name: section[name] for name in EXECUTION_FIELDS}
        return self.with_model(build(ModelConfig, stored | options, "config.model"))

    def tokenizer(self) -> Tokenizer:
        """Returns the run's tokenizer."""
        return load_tokenizer(self.directory / "tokenizer")

    @property
    def cleans_text(self) -> bool:
        """Whether the text that the run was trained on was cleaned (`data.cleaning`), so that its inputs are as well.

        Text for pre-training always was; labeled rows are since version 2 of `config.task.row_rules`.
        """
        return self.record.stage == "pretrain" or self.record.config["task"]["row_rules"] > 1

    def adaptation(self) -> Adaptation:
        """Returns which parameters the run trains."""
        return build(Adaptation, self.record.config["adapt"], "config.adapt")

    def objective(self, adapted: bool = True) -> Objective:
        """Returns the `Objective` to load and evaluate the run with; `adapted=False`: with all parameters trainable."""
        if self.record.stage == "pretrain":
            return language_model(self.model, chunk=self.record.config["loss"]["chunk"])
        loss = build(LossSettings, self.record.config["loss"], "config.loss")
        objective = task_from_record(self.record.task).objective(self.model, loss)
        return adapt(objective, self.adaptation()) if adapted else objective

    def load(self, mesh: Mesh, groups: tuple[str, ...] | None = None) -> Params:
        """Returns groups of parameters (None: all) on `mesh`, from the best checkpoint if kept, else from the newest.

        Groups that the run does not train are read from its base model, and quantized if the run trained on them so.

        Raises:
            UserError: see `restore_params`; or the base model is missing or was replaced.
        """
        # `mesh` need not divide the blocks of a quantized base, which a checkpoint does not contain.
        objective = self._not_quantized().objective()
        abstract = abstract_params(objective, mesh)
        groups = tuple(abstract) if groups is None else groups
        own = tuple(group for group in groups if group in objective.trained)
        other = tuple(group for group in groups if group not in own)
        stored = (self.checkpoint_dir, self.checkpoint_item)
        params = restore_params(self.directory, abstract, mesh, own, *stored) if own else {}
        return params | quantized(self.base().load_merged(mesh, other), self.adaptation()) if other else params

    def _not_quantized(self) -> "Run":
        """Returns this run with LoRA on a base that is not quantized; the trained groups are the same."""
        if self.record.stage == "pretrain":
            return self
        config = self.record.config | {"adapt": self.record.config["adapt"] | {"base_quantization": "none"}}
        return dataclasses.replace(self, record=dataclasses.replace(self.record, config=config))

    def load_merged(self, mesh: Mesh, groups: tuple[str, ...]) -> Params:
        """Returns groups of parameters on `mesh`; a LoRA adapter is added to the backbone.

        Raises:
            UserError: see `load`.
        """
        if "adapter" not in self.objective().trained:
            return self.load(mesh, groups)
        merged = merge(self.load(mesh), self.adaptation())
        return {group: merged[group] for group in groups}

    def lineage_entry(self) -> list[dict[str, str]]:
        """Returns the lineage of a run that starts from this one."""
        own = {
            "stage": self.record.stage,
            "directory": str(self.directory.absolute()),
            "data_fingerprint": self.record.data_fingerprint,
        }
        return [*self.record.lineage, own]

    def base(self) -> "Run":
        """Returns the run that this one was fine-tuned from.

        Raises:
            UserError: it is missing or was replaced.
        """
        parent = self.record.lineage[-1]
        path = at(parent["directory"])
        run = open_run(path) if (path / "run.json").is_file() else None
        if run is None or run.record.data_fingerprint != parent["data_fingerprint"]:
            raise UserError(
                f"{self.directory} is an adapter and its base model {path} is missing or was replaced; "
                f"restore {path}, or use `rootstock merge` output"
            )
        return run.with_model(self.model)


def open_run(directory: Path) -> Run:
    """Returns the run in a directory.

    Raises:
        UserError: not a run directory, or `run.json` is corrupt or of an unknown version.
    """
    return Run(directory, read_record(directory))


def start(workdir: Path, record: RunRecord, tokenizer: Tokenizer, accept_changed_data: bool = False) -> RunRecord:
    """Writes `run.json` and the tokenizer of a new run, or checks that an existing run is the same run.

    Process 0 writes; the other processes check that they have the same run. Returns the contents of `run.json`, where a
    new `config.num_steps` is recorded.

    Args:
        workdir: the run directory.
        record: the run as its config and data describe it now.
        tokenizer: the tokenizer of its data.
        accept_changed_data: continue on different data and record the change in `run.json`.

    Raises:
        UserError: the config, the data or the tokenizer differs from the run's, in a field that must not change; or see
            `length_change`.
    """
    is_new = run_on_process_zero(lambda: _write_if_new(workdir, record, tokenizer))
    # Every process asks, since process 0 answers all of them.
    skipped = skipped_batches(workdir)
    if not (is_new and is_process_zero()):
        _check_same_run(workdir, record, tokenizer, skipped, accept_changed_data)
    run_on_process_zero(lambda: _accept(workdir, record))
    return read_record(workdir)


def _check_same_run(
    workdir: Path, record: RunRecord, tokenizer: Tokenizer, skipped: Skipped, accept_changed_data: bool
) -> None:
    """Raises UserError if the run in `workdir` is another one; see `start`."""
    before = read_record(workdir)
    changed = [f"model {difference}" for difference in architecture_difference(before.model, record.model)]
    now = record.config | {"num_steps": before.config["num_steps"]}
    changed += config_changes(before.config, now, UNREAD.get(record.stage, ()))
    done = batch_number(next(iter(saved_steps(workdir)), 0), skipped)
    changed += mixture_errors_on_resume(before.config, record.config, done)
    changed += selection_errors_on_resume(before.config, record.config)
    changed += lineage_errors_on_resume(before.lineage, record.lineage)
    if before.data_fingerprint != record.data_fingerprint and not accept_changed_data:
        files = differences(before.data_files, record.data_files) if before.data_files else []
        files += [
            f"source {name}" for name, found in record.data_sources.items() if before.data_sources.get(name) != found
        ]
        prints = f"data: {before.data_fingerprint[:16]} != {record.data_fingerprint[:16]}"
        changed.append("; ".join([prints, *files[:3], *([f"and {len(files) - 3} more files"] if files[3:] else [])]))
    if load_tokenizer(workdir / "tokenizer").sha256 != tokenizer.sha256:
        changed.append("the tokenizer")
    if changed:
        raise UserError(
            f"{workdir} contains a run with a different config ({'; '.join(changed)}): "
            "use the old values, or a new --workdir; --help marks the fields that may change, and "
            "--accept_changed_data allows different data"
        )


def _accept(workdir: Path, record: RunRecord) -> None:
    """Records a change of length or of `keep_period`, and with a warning one of data, in `run.json`."""
    before = read_record(workdir)
    period = {"keep_period": record.config["checkpoint"]["keep_period"]}
    if before.config["checkpoint"] != (checkpoint := before.config["checkpoint"] | period):
        # `rootstock checkpoint prune` reads it.
        before = dataclasses.replace(before, config=before.config | {"checkpoint": checkpoint})
        _write(workdir, before)
    length = length_change(workdir, before.config, record.config)
    if length is not None:
        config = before.config | {"num_steps": record.config["num_steps"]}
        before = dataclasses.replace(before, config=config, length_changes=[*before.length_changes, length])
        # They may be newer than the checkpoint at which the change is recorded.
        forget_local_checkpoints(workdir)
        _write(workdir, before)
    step = next(iter(saved_steps(workdir)), 0)
    if mixture := mixture_of(before.config, record.config):
        config = before.config | {"data": before.config["data"] | mixture}
        change = {"step": step, "before": {n: before.config["data"][n] for n in mixture}, "after": mixture}
        before = dataclasses.replace(before, config=config, mixture_changes=[*before.mixture_changes, change])
        # They may be newer than the checkpoint at which the change is recorded.
        forget_local_checkpoints(workdir)
        _write(workdir, before)
    if before.data_fingerprint == record.data_fingerprint:
        return
    change = {"step": step, "before": before.data_fingerprint, "after": record.data_fingerprint}
    now = dataclasses.replace(
        before,
        data_fingerprint=record.data_fingerprint,
        data_files=record.data_files,
        data_sources=record.data_sources,
        data_changes=[*before.data_changes, change],
    )
    forget_local_checkpoints(workdir)
    _write(workdir, now)
    warn(f"{workdir} resumes at step {step} with different data; the change is recorded in run.json")


def _write_if_new(workdir: Path, record: RunRecord, tokenizer: Tokenizer) -> bool:
    """Writes `run.json` and the tokenizer and returns True; returns False if `run.json` exists."""
    if (workdir / "run.json").exists():
        return False
    tokenizer.save(workdir / "tokenizer")
    _write(workdir, record)
    return True


def _write(workdir: Path, record: RunRecord) -> None:
    text = json.dumps({"version": _VERSION, **dataclasses.asdict(record)}, indent=1)
    write_atomically(workdir / "run.json", text)


def config_changes(before: dict[str, Any], now: dict[str, Any], unread: tuple[str, ...] = ()) -> list[str]:
    """Returns "field: before -> now" for each changed field that must not change on resume (see `MAY_CHANGE`).

    A field that is missing from `before`, because it was added to the config later, counts as its default. Fields that
    begin with one of `unread` are left out.
    """
    old, new = _flatten(default.get_config().to_dict()) | _flatten(before), _flatten(now)
    return [
        f"config.{name}: {old.get(name)!r} -> {new[name]!r}"
        for name in sorted(new)
        if old.get(name) != new[name] and name not in MAY_CHANGE and not name.startswith(unread)
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
    """Returns the contents of a directory's `run.json`.

    Raises:
        UserError: not a run directory, or `run.json` is corrupt or of an unknown version.
    """
    path = directory / "run.json"
    if not is_file(path):
        raise UserError(f"{directory} is not a run directory: run.json is missing")
    try:
        values = json.loads(path.read_text())
        version = values.pop("version")
        if version not in (1, _VERSION):
            raise UserError(
                f"{path} has version {version!r}; expected 1 to {_VERSION}: update rootstock to read this run"
            )
        # The attention backend that was used to train may not exist on this machine. Fields that were added to the
        # config after the run was started get their defaults.
        stored = default.model().to_dict() | values.pop("model") | {"attention": "auto"}
        model = build(ModelConfig, stored, f"{path}: model")
        values["config"] = _filled(default.get_config().to_dict(), _upgraded(values["config"]))
        return RunRecord(model=model, **values)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is corrupt: {' '.join(str(error).split())}") from None


def _upgraded(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a config with the field names of version 2, and with added fields as the run did without them."""
    sections = {name: dict(value) if isinstance(value, dict) else value for name, value in config.items()}
    for (section, before), after in _RENAMED_FIELDS.items():
        if before in sections.get(section, {}):
            sections[section][after] = sections[section].pop(before)
    for (section, name), value in _BEFORE_ADDED.items():
        if section in sections:
            sections[section].setdefault(name, value)
    return sections


def _filled(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Returns `values` with the defaults of the fields that are missing."""
    filled = {n: _filled(defaults[n], v) if isinstance(defaults.get(n), dict) else v for n, v in values.items()}
    return defaults | filled
