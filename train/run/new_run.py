"""What must hold of a config when a run starts with it, besides the types and ranges of its fields.

A run that exists was started with its config, perhaps by an earlier version that checked less. It resumes with the same
values, so what would be an error is a warning there.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs import default
from configs.errors import UserError
from configs.inactive import inactive_fields
from model.config import EXECUTION_FIELDS
from train.console import warn
from train.run.record import Run
from train.run.trackers import check_trackers
from train.schedule import schedule_errors
from train.settings import Settings

FINETUNE_UNUSED = {
    **dict.fromkeys(
        ("data.mixture", "data.mixture_schedule", "data.max_epochs"),
        "in fine-tuning, which reads the labeled rows at config.data.path",
    ),
    "data.validation_fraction": "in fine-tuning, which reads config.task.validation_fraction",
    "data.validation_split": "in fine-tuning, which splits rows",
    "data.cache": "in fine-tuning, which reads rows into memory",
}
PRETRAIN_UNUSED = {"task": "in pre-training", "adapt": "in pre-training, which trains all parameters"}


def check_new_run(
    workdir: Path, config: Mapping[str, Any], settings: Settings, unused: Mapping[str, str], foundation: Run | None
) -> None:
    """Checks the config of a run that starts in `workdir`; if a run exists there, only warns.

    Args:
        workdir: the run directory.
        config: the config, complete.
        settings: the same, checked.
        unused: see `inactive_fields`.
        foundation: the run that is fine-tuned, which determines architecture and tokenizer; None in pre-training.

    Raises:
        UserError: fields that would change nothing, a learning rate of 0, or a schedule whose parts overlap; all in one
            message. Or the package of a tracker is not installed, or steps to profile lie outside the run.
    """
    check_trackers(settings.logging)
    _check_profile(settings)
    errors = inactive_fields(_with_experts_of(foundation, config), unused)
    errors += schedule_errors(settings.optimizer, settings.num_steps)
    if foundation is None and not settings.optimizer.learning_rate:
        errors.append("config.optimizer.learning_rate=0.0 acts in fine-tuning only; expected above 0 in pre-training")
    errors += [
        f"config.data.mixture_schedule: step {change.step} is not reached by config.num_steps={settings.num_steps}"
        for change in settings.data.mixture_schedule
        if change.step >= settings.num_steps and foundation is None
    ]
    if foundation is not None:
        errors += overridden_fields(config, foundation)
    if errors and not (workdir / "run.json").exists():
        raise UserError("; ".join(errors))
    for error in errors:
        warn(f"{workdir} was started with this config: {error}")


def _check_profile(settings: Settings) -> None:
    """Raises UserError if `config.logging.profile_steps` has steps that the run does not have."""
    if not settings.logging.profile_steps:
        return
    first, count = settings.logging.profile_steps
    last = first + count - 1
    if last > settings.num_steps:
        raise UserError(
            f"config.logging.profile_steps=({first}, {count}) are steps {first} to {last}; expected steps from 1 to "
            f"config.num_steps={settings.num_steps}"
        )


def _with_experts_of(foundation: Run | None, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the config with the experts of the run that is fine-tuned, on which fields of routers depend."""
    if foundation is None:
        return config
    names = ("num_experts", "router_bias")
    return {**config, "model": {**config["model"], **{name: getattr(foundation.model, name) for name in names}}}


def overridden_fields(config: Mapping[str, Any], parent: Run) -> list[str]:
    """Returns one message per field of architecture and tokenizer that `--init_from` overrides.

    A field may have the value of the parent run, or the default.
    """
    defaults = default.get_config().to_dict()
    pairs = [
        (f"model.{name}", value, defaults["model"][name], getattr(parent.model, name))
        for name, value in config["model"].items()
        if name not in EXECUTION_FIELDS
    ]
    pairs.append(("tokenizer", config["tokenizer"], defaults["tokenizer"], parent.record.config["tokenizer"]))
    return [
        f"config.{name}={value!r} has no effect with --init_from={parent.directory}, which has {theirs!r}; "
        f"expected that, or {usual!r}, the default"
        for name, value, usual, theirs in pairs
        if value not in (usual, theirs)
    ]
