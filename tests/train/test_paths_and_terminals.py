"""`~` and brackets in paths, closed pipes, text that is not UTF-8, Ctrl-C: each works, or ends in one line."""

import importlib
import io
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from configs import default, reference
from train import cli
from train.commands import chat
from train.console import results_console, say
from train.tasks.task import load_task

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "runs"
# String flags that hold no path.
TEXT_FLAGS = {"prompt", "stop", "system", "tasks", "text_field", "topology", "sizes", "lengths", "flops"}
# Flags without which a command's line does not parse.
ACTION = {"checkpoint": ["--action=ls"], "plan": ["--topology=v5e-16"]}


def command_of(name):
    return importlib.import_module(f"train.commands.{name.replace('-', '_')}")


def parsed(name, *arguments):
    """Returns the parsed flags of a command; those that it requires get some value."""
    command = command_of(name)
    given = {argument.partition("=")[0].removeprefix("--") for argument in arguments}
    filled = ACTION.get(name, [])
    for flag in getattr(command, "REQUIRED", ()):
        if flag not in given and not any(argument.startswith(f"--{flag}=") for argument in filled):
            filled = [*filled, f"--{flag}={'configs/pretrain/tiny.py' if flag == 'config' else 'some'}"]
    return cli.parse(name, command, [*filled, *arguments])


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def string_flags(name):
    values = cli.flags.FlagValues()
    command_of(name).define_flags(values)
    return {flag for flag in values if values[flag].flag_type() in ("string", "list", "multi string")}


def test_every_string_flag_is_a_path_or_a_text():
    found = {flag for name in cli.COMMANDS for flag in string_flags(name)} - {"helpfull"}
    assert found == cli.PATH_FLAGS | TEXT_FLAGS
    assert {field.name for field in reference.fields() if "path" in field.name} <= set(cli.PATH_FIELDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_home_is_expanded_in_every_path_flag(name, home):
    for flag in string_flags(name) & cli.PATH_FLAGS:
        values = parsed(name, f"--{flag}=~/a/*.txt,~/b[1]")
        assert values[flag].value == f"{home}/a/*.txt,{home}/b[1]", flag
    for flag in string_flags(name) & TEXT_FLAGS:
        if values := parsed(name, f"--{flag}=~"):
            assert "~" in values[flag].value


@pytest.mark.parametrize("field", cli.PATH_FIELDS)
def test_home_is_expanded_in_every_path_field(field, home):
    for name in ("pretrain", "finetune", "config"):
        config = parsed(name, "--config=configs/pretrain/tiny.py", f"--config.{field}=~/x.py").config
        assert config.get_ref(field.split(".")[0]) is not None
        section, _, leaf = field.rpartition(".")
        assert (config[section] if section else config)[leaf] == f"{home}/x.py"


def test_home_is_expanded_in_the_config_file_itself(home):
    (home / "mine.py").write_text((ROOT / "configs" / "pretrain" / "tiny.py").read_text())
    assert parsed("config", "--config=~/mine.py").config.num_steps == 300
    assert cli.expand("hf:a/b,bpe:300,~nobody-of-this-name/x") == "hf:a/b,bpe:300,~nobody-of-this-name/x"


def test_a_command_reads_and_writes_below_home(home, capsys):
    (home / "in.txt").write_text("the cat sat on the mat\n" * 50)
    cli.main(["prepare", "--input=~/in.txt", "--output=~/store", "--tokenizer=bytes", "--validation_split=tail"])
    assert (home / "store" / "manifest.json").is_file()


NAME = "a[bold]b[/]c[1]:cat:"


@pytest.mark.parametrize("arguments", [["ls"], ["verify"], ["diff"], ["prune", "--dry_run"]])
def test_brackets_in_a_path_are_printed(arguments, tmp_path, capsys):
    for name in (NAME, f"{NAME}2"):
        (tmp_path / name).symlink_to(GOLDEN / "foundation")
    action, *rest = arguments
    other = [tmp_path / f"{NAME}2"] if action == "diff" else []
    if action == "prune":
        # It locks the directory, which the golden run must not notice.
        return
    cli.main(["checkpoint", action, *map(str, [tmp_path / NAME, *other]), *rest])
    out = capsys.readouterr().out
    assert "bold" not in out.replace(NAME, "") and (action != "diff" or NAME in out.replace("\n", ""))
