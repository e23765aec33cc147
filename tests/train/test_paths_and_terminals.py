"""`~` and brackets in paths, closed pipes, text that is not UTF-8, Ctrl-C: each works, or ends in one line."""

import importlib
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from configs import reference
from configs.errors import UserError
from data.storage.new_directory import new_directory
from data.tokenizer_training import train_tokenizer
from tests.runs import error_lines, rootstock
from train import cli
from train.commands import chat
from train.console import console, progress, results_console, say, warn
from train.finetuning.report.table import comparison
from train.huggingface import exporting, importing
from train.run import merging
from train.run.record import open_run

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "runs"
# String flags that hold no path.
TEXT_FLAGS = {
    "api_key",
    "host",
    "name",
    "part",
    "prefix",
    "prompt",
    "stop",
    "system",
    "tasks",
    "text_field",
    "topology",
    "sizes",
    "lengths",
    "flops",
    *("base_model", "dataset", "license", "language"),
    *("labels", "languages", "mask", "score_class", "thresholds", "unit"),
}
LIST = "comma separated list of strings"
# Flags without which a command's line does not parse.
ACTION = {
    "checkpoint": ["--action=ls"],
    "store": ["--action=ls"],
    "plan": ["--topology=v5e-16"],
    "replay": ["--step=1"],
}


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


def needed_by(name, flag):
    """Returns the argument without which a flag has no effect."""
    needed = getattr(command_of(name), "FLAG_NEEDS", {}).get(flag)
    if needed == "config":
        return ["--config=configs/pretrain/tiny.py"]
    return [f"--{needed}" if "=" in needed else f"--{needed}=some"] if needed else []


@pytest.fixture(autouse=True)
def errors_raise(monkeypatch):
    """Without this an error of the command line ends the process of the tests."""

    def end(message, code):
        raise AssertionError(message)

    monkeypatch.setattr(cli, "end", end)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def string_flags(name):
    values = cli.define_flags(name, command_of(name))
    return {flag for flag in values if values[flag].flag_type() in ("string", LIST, "multi string")}


def test_every_string_flag_is_a_path_or_a_text():
    found = {flag for name in cli.COMMANDS for flag in string_flags(name)} - {"helpfull"}
    assert found == cli.PATH_FLAGS | TEXT_FLAGS
    assert {field.name for field in reference.fields() if "path" in field.name} <= set(cli.PATH_FIELDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_home_is_expanded_in_every_path_flag(name, home):
    for flag in string_flags(name) & cli.PATH_FLAGS:
        values = parsed(name, f"--{flag}=~/a/*.txt,~/b[1]", *needed_by(name, flag))
        found = values[flag].value
        assert (",".join(found) if isinstance(found, list) else found) == f"{home}/a/*.txt,{home}/b[1]", flag
    for flag in string_flags(name) & TEXT_FLAGS:
        assert "~" in parsed(name, f"--{flag}=~", *needed_by(name, flag))[flag].value


def test_home_is_expanded_behind_a_name(home):
    given = ["--input=a", "--output=b", "--avoid=mine=~/rows.jsonl,arc_easy=~/x.jsonl,~/y.jsonl"]
    expected = [f"mine={home}/rows.jsonl", f"arc_easy={home}/x.jsonl", f"{home}/y.jsonl"]
    assert parsed("prepare", *given).avoid == expected


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


# Markup, a closing tag, an index and the name of an emoji.
NAME = "a[bold]b[c[1]:cat:"


@pytest.mark.parametrize("shown", [NAME, f"[/]{NAME}", "[red]", "x[/bold].txt", ":smile:"])
def test_text_is_printed_as_it_is(shown, capsys):
    say(shown)
    warn(shown)
    results_console().print(shown)
    table = Table(shown, title=shown, caption=shown)
    table.add_row(shown)
    results_console().print(table)
    results_console().print(comparison(shown, [(shown, 1, {})]))
    with progress(shown, 1) as bar:
        bar(1, shown)
    found = capsys.readouterr()
    assert found.err.count(shown) == 4 and found.out.count(shown) == 7


def test_the_progress_bar_of_a_terminal_shows_brackets(monkeypatch):
    shown = io.StringIO()
    terminal = type(console)(file=shown, force_terminal=True, width=200, markup=False, emoji=False)
    monkeypatch.setattr("train.console.console", terminal)
    with progress(NAME, 1) as bar:
        bar(1, f"at {NAME}")
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.getvalue())
    assert NAME in plain and f"at {NAME}" in plain


def test_commands_print_the_brackets_of_a_path(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a short path is not wrapped
    for name in (NAME, f"{NAME}2"):
        (tmp_path / name).symlink_to(GOLDEN / "foundation")
    cli.main(["checkpoint", "diff", NAME, f"{NAME}2"])
    assert f"{NAME}2" in capsys.readouterr().out
    with pytest.raises(UserError, match=re.escape(f"{NAME}3 is not a run directory")):
        open_run(tmp_path / f"{NAME}3")


def run_with_closed_stdout(*arguments):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "train", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    return done


@pytest.mark.integration
@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("config", "--help"), ("config", "--config=configs/pretrain/tiny.py"),
     ("config", "--config=configs/pretrain/tiny.py", "--json")],
    ids=["overview", "help", "rich", "print"],
)  # fmt: skip
def test_a_closed_pipe_ends_in_one_line(arguments):
    done = run_with_closed_stdout(*arguments)
    assert done.returncode == 141
    assert done.stderr == "rootstock: error: stdout was closed before everything was printed\n"


@pytest.mark.parametrize(
    "arguments",
    [("generate", "--run=some", "--prompt=a\udcff"), ("generate", "--run=some", "--prompt=a", "--stop=\udcff"),
     ("checkpoint", "ls", "runs/\udcff"), ("config", "--config=configs/pretrain/tiny.py", "--config.seed=\udcff")],
    ids=["prompt", "stop", "path", "field"],
)  # fmt: skip
def test_an_argument_that_is_not_utf8_is_a_one_line_error(arguments):
    done = rootstock(*arguments, check=False)
    assert done.returncode == 2 and "is not valid UTF-8; expected UTF-8 text" in error_lines(done)[0]
    assert "\\udcff" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_message_that_is_not_utf8_is_a_one_line_error(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello\n\xff\n"), encoding="utf-8"))
    with pytest.raises(UserError, match="stdin is not valid UTF-8"):
        list(chat._lines())


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_without_unicode_gets_escapes(encoding, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    print("⏎")
    sys.stdout.flush()
    assert b"\\u23ce" in raw.getvalue()


# Interrupts the process when it imports the module.
INTERRUPTED = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv[1:] = ["config", "--config=configs/pretrain/tiny.py"]
from train.__main__ import main
main()
"""


@pytest.mark.parametrize("module", ["train.cli", "absl", "numpy", "tokenizers", "rich", "train.commands.config"])
def test_an_early_ctrl_c_ends_in_one_line(module):
    # A shell that starts pytest in the background ignores Ctrl-C in it, and so would this process.
    command = [sys.executable, "-c", "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"]
    command[-1] += INTERRUPTED.format(name=module)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "rootstock: error: interrupted\n")


def test_an_ignored_ctrl_c_stays_ignored():
    command = (
        f"trap '' INT; exec {sys.executable} -c '{INTERRUPTED.format(name='tokenizers').replace(chr(39), chr(34))}'"
    )
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError("no space"), OSError("no space")])
def test_a_new_directory_appears_when_complete_and_can_be_made_again(error, tmp_path):
    with pytest.raises(type(error) if isinstance(error, Exception) else error), new_directory(tmp_path / "x") as made:
        (made / "part").touch()
        raise error
    assert list(tmp_path.iterdir()) == []
    with new_directory(tmp_path / "x") as made:
        (made / "all").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["x", "all"]


@pytest.fixture
def runs(tmp_path):
    """The golden adapter and its foundation."""
    shutil.copytree(GOLDEN, tmp_path / "runs")
    record = tmp_path / "runs" / "adapter" / "run.json"
    record.write_text(record.read_text().replace("GOLDEN_RUNS", str(tmp_path / "runs")))
    return tmp_path / "runs"


def hugging_face_model(runs):
    folder = runs / "llama3"
    shutil.copytree(ROOT / "tests" / "golden" / "huggingface" / "llama3", folder)
    train_tokenizer("bytes", []).save(folder)
    return folder


# The command, and the function during which it is interrupted.
WRITERS = {
    "import-hf": (lambda runs: importing.import_hf(str(runs / "llama3"), runs / "out"), (importing, "save")),
    "merge": (lambda runs: merging.merge(runs / "adapter", runs / "out"), (merging, "save")),
    "export-hf": (lambda runs: exporting.export_hf(runs / "foundation", runs / "out"), (exporting, "write_weights")),
}


@pytest.mark.integration
@pytest.mark.parametrize("name", WRITERS)
def test_an_interrupted_command_runs_again(name, runs, monkeypatch):
    write, (module, function) = WRITERS[name]
    hugging_face_model(runs)
    before = sorted(runs.iterdir())

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module, function, interrupt)
        write(runs)
    assert sorted(runs.iterdir()) == before
    write(runs)
    assert (runs / "out").is_dir()
    with pytest.raises(UserError, match="out exists and is not empty"):
        write(runs)


def test_a_failed_merge_runs_again(runs):
    (runs / "foundation").rename(runs / "elsewhere")
    with pytest.raises(UserError, match=r"its base model .* is missing"):
        merging.merge(runs / "adapter", runs / "out")
    (runs / "elsewhere").rename(runs / "foundation")
    merging.merge(runs / "adapter", runs / "out")
    assert open_run(runs / "out").record.config["adapt"]["method"] == "full"
