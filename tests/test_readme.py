"""The commands of README.md and docs/quickstart.md: parsed in the fast tests, run as written in the slow ones."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from configs.inactive import inactive_fields
from train import cli
from train.schedule import schedule_errors
from train.settings import from_config
from train.tasks.loading import load_task
from train.tasks.task import fields_without_effect

ROOT = Path(__file__).resolve().parents[1]
PAGES = [page for page in ("README.md", "docs/quickstart.md") if (ROOT / page).exists()]
# Installation and the project's own targets; this environment stands for what they install.
SETUP = ("make ", "git ", "cd ", "pip ", "python3 -m venv", ".venv/bin/pip ")
COMMAND = re.compile(r"^(?:.* )?(?:\.venv/bin/)?(?:rootstock|python -m train) ([a-z-]+.*)$", re.MULTILINE)


def blocks(page):
    """Returns the bash blocks of a page that run something after installation."""
    found = re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    return [block for block in found if not all(line.startswith(SETUP) for line in block.splitlines())]


def commands(page):
    """Returns the `rootstock` commands of a page, each on one line, without `rootstock`."""
    return [command for block in blocks(page) for command in COMMAND.findall(block.replace("\\\n", " "))]


@pytest.mark.parametrize(("page", "command"), [(page, command) for page in PAGES for command in commands(page)])
def test_a_documented_command_has_valid_flags_and_config(page, command, monkeypatch):
    monkeypatch.setattr(cli, "end", lambda message, code: pytest.fail(f"{page}: {command}: {message}"))
    name, *arguments = shlex.split(command)
    module = importlib.import_module(f"train.commands.{name.replace('-', '_')}")
    values = cli.parse(name, module, arguments)
    if "config" in values and values.config is not None:
        config = values.config.to_dict()
        settings = from_config(config)
        if name in ("pretrain", "finetune"):
            assert schedule_errors(settings.optimizer, settings.num_steps) == []
            assert inactive_fields(config, unused(settings)) == []


def unused(settings):
    """Returns what `train.run.new_run` takes as unused for a documented fine-tuning run; see `inactive_fields`."""
    # The task file of the tutorial is not in the repository, and such a task reads every field.
    task = None if settings.task.name.endswith(".py") else load_task(settings.task.name)
    return dict.fromkeys(fields_without_effect(task), "") if task else {}


def test_the_commands_of_each_page_are_found():
    for page in PAGES:
        starts = sum(block.count("rootstock ") for block in blocks(page))
        assert len(commands(page)) == starts > 0, page


def test_every_make_target_that_the_documents_name_exists():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        named = re.findall(r"(?:`|^)make (\w+)", page.read_text(), re.MULTILINE)
        assert set(named) <= set(targets), f"{page.name} names {set(named) - set(targets)}"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_as_written_and_in_order(page, tmp_path):
    for name in ("configs", "model", "data", "train"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    environment.pop("XLA_FLAGS", None)
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name, arguments in (("python", ""), ("rootstock", "-m train ")):
        (binaries / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
        (binaries / name).chmod(0o755)
    for block in blocks(page):
        command = ["bash", "-euo", "pipefail", "-c", block]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
