"""What a command will write is checked before its work, and `generate` writes what it printed."""

import gzip
import json

import pytest

from configs.errors import UserError
from tests.runs import error_lines, rootstock
from train.commands import generate
from train.generation import decode
from train.run.results import check_results

GPT2 = "tests/golden/huggingface/gpt2"
COMMANDS = {
    "generate": (["--run=RUN", "--prompt=a"], "output"),
    "evaluate": (["--run=RUN", "--text=TEXT"], "output"),
    "export-hf": (["--run=RUN"], "output"),
    "predict": (["--run=RUN", "--data=TEXT"], "output"),
    "prepare": (["--input=TEXT"], "output"),
    "merge": (["--run=RUN"], "workdir"),
    "import-hf": ([f"--source={GPT2}"], "workdir"),
    "demo": ([], "workdir"),
    "pretrain": (["--config=configs/pretrain/tiny.py"], "workdir"),
    "finetune": (["--config=configs/finetune/intent.py", "--init_from=RUN"], "workdir"),
    "scaling": (["--config=configs/pretrain/tiny.py"], "workdir"),
}


@pytest.fixture
def no_work(monkeypatch):
    """Opening a model is an error."""

    def work(*_, **__):
        raise AssertionError("the command began its work")

    monkeypatch.setattr("train.run.language_model.open_language_model", work)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_cannot_be_written_is_an_error_before_the_work(command, foundation, text, tmp_path, no_work):
    flags, output = COMMANDS[command]
    flags = [flag.replace("RUN", str(foundation)).replace("TEXT", str(text)) for flag in flags]
    (tmp_path / "file").write_text("x")
    paths = [tmp_path / "file" / "below"]
    if command in ("generate", "evaluate", "predict"):
        paths += [tmp_path / "missing" / "file", tmp_path]
    elif command != "prepare":
        paths.append(tmp_path / "file")
    for path in paths:
        done = rootstock(command, *flags, f"--{output}={path}", check=False)
        (line,) = error_lines(done)
        assert str(path) in line and done.returncode == 1
    assert [file.name for file in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "x"


def test_generate_does_not_replace_its_prompts(foundation, tmp_path, no_work):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the cat\n")
    done = rootstock("generate", f"--run={foundation}", f"--prompts={prompts}", f"--output={prompts}", check=False)
    assert "is one of the files of --prompts" in error_lines(done)[0] and done.returncode == 1
    assert prompts.read_text() == "the cat\n"


@pytest.mark.parametrize("content", ["", "[1]", "not JSON", "[" * 100_000], ids=["empty", "list", "text", "nested"])
def test_results_that_cannot_be_extended_are_an_error_before_the_work(content, foundation, text, tmp_path, no_work):
    path = tmp_path / "results.json"
    path.write_text(content)
    done = rootstock("evaluate", f"--run={foundation}", f"--text={text}", f"--output={path}", check=False)
    assert "results.json cannot be extended: " in error_lines(done)[0] and path.read_text() == content
    path.write_text("{}")
    check_results(path, "output")


@pytest.mark.integration
def test_generate_continues_raw_prompts_and_writes_them(foundation, tmp_path):
    common = ["generate", f"--run={foundation}", "--temperature=0", "--max_new_tokens=6"]
    printed = rootstock(*common, "--prompt=the cat").stdout
    assert printed.startswith("the cat")
    assert rootstock(*common, "--prompt=the cat", "--raw").stdout == printed
    assert rootstock(*common, "--prompt=<|bos|>the cat", "--raw").stdout == f"<|bos|>{printed}"
    refused = rootstock(*common, "--prompt=the cat", "--raw", "--template=chatml", check=False)
    assert refused.returncode == 1 and "--template=chatml has no effect with --raw" in refused.stderr
    path = tmp_path / "texts.jsonl"
    rootstock(*common, "--prompt=the cat", f"--output={path}")
    row = json.loads(path.read_text())
    assert row["prompt"] + row["completion"] + "\n" == printed


@pytest.mark.integration
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_interrupted_generate_goes_on_and_writes_the_same(form, foundation, tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "_BATCH_SIZE", 2)
    monkeypatch.setattr(decode, "_PART_BATCHES", 1)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the cat\na dog ran\nthe\nit\nand so on\n")
    flags = ["generate", f"--run={foundation}", f"--prompts={prompts}", "--max_new_tokens=6", "--seed=3"]
    whole, broken = tmp_path / f"whole.{form}", tmp_path / f"broken.{form}"
    printed = rootstock(*flags).stdout
    rootstock(*flags, f"--output={whole}")
    assert len(printed.splitlines()) == 5 and (form == "csv" or whole.read_text() == printed)

    generate_text, calls = decode.generate_text, []

    def interrupted(*arguments):
        calls.append(arguments[3])
        if calls == [0, 1]:
            raise UserError("the machine went away")
        return generate_text(*arguments)

    monkeypatch.setattr(decode, "generate_text", interrupted)
    rootstock(*flags, f"--output={broken}", check=False)
    assert broken.read_bytes() == whole.read_bytes()[: broken.stat().st_size] and broken.stat().st_size
    other = rootstock(*flags[:-1], "--seed=4", f"--output={broken}", check=False)
    assert "was begun with another run, other rows or other options" in error_lines(other)[0]
    rootstock(*flags, f"--output={broken}")
    assert calls == [0, 1, 1, 2] and broken.read_bytes() == whole.read_bytes()
    assert "exists; expected a new name" in error_lines(rootstock(*flags, f"--output={broken}", check=False))[0]
    rootstock(*flags, f"--output={broken}", "--overwrite")
    assert broken.read_bytes() == whole.read_bytes()


def test_prompts_of_a_compressed_text_file_are_its_lines(tmp_path):
    path = tmp_path / "prompts.txt.gz"
    path.write_bytes(gzip.compress(b"the cat\n\na dog\n"))
    assert generate._read(str(path)) == ["the cat", "a dog"]


def test_an_output_of_generate_has_a_known_format(foundation, tmp_path, no_work):
    done = rootstock("generate", f"--run={foundation}", "--prompt=a", f"--output={tmp_path}/texts.txt", check=False)
    assert "expected a name that ends with .csv, .jsonl or .parquet" in error_lines(done)[0]
