"""Prints the resolved config, section by section, and marks every field that differs from its default.

Invalid values end with the same error as in training.

  rootstock config --config=configs/pretrain/tiny.py --config.batch_size=64
"""

import json
from typing import Any

from absl import flags

from configs import reference
from configs.errors import UserError
from train.console import results_console
from train.schedule import schedule_errors
from train.settings import SECTIONS, from_config

REQUIRED = ("config",)
CONFIG_FIELDS = ("", *SECTIONS)


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    text = 'Print one JSON object: {"config": ..., "changed": {FIELD: {"value", "default"}}}.'
    flags.DEFINE_boolean("json", False, text, flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    config = values.config.to_dict()
    settings = from_config(config)
    if errors := schedule_errors(settings.optimizer, settings.num_steps):
        raise UserError("; ".join(errors))
    if values.json:
        changed = {
            field.name: {"value": value, "default": field.default}
            for field in reference.fields()
            if (value := _value(config, field.name)) != field.default
        }
        print(json.dumps({"config": config, "changed": changed}, indent=1))
    else:
        results_console().print("\n".join(_lines(config)))


def _lines(config: dict[str, Any]) -> list[str]:
    lines = []
    for section in ("", *SECTIONS):
        lines += ["", f"config.{section}: {reference.titles()[section]}"] if section else ["config"]
        for field in reference.fields():
            if field.section == section:
                value = _value(config, field.name)
                mark, note = ("*", f"  (default: {field.default!r})") if value != field.default else (" ", "")
                lines.append(f"{mark} {field.name} = {value!r}{note}")
    return [*lines, "", "* differs from the default"]


def _value(config: dict[str, Any], name: str) -> object:
    section, _, field = name.rpartition(".")
    return config[section][field] if section else config[field]
