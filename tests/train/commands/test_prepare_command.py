"""`rootstock prepare` and `rootstock prepare --verify`, called in this process."""

import gzip
import json
import re
import shlex

import pytest
from runs import rootstock

from configs.errors import UserError
from train import cli
from train.commands import prepare


@pytest.fixture
def store(tmp_path):
    (tmp_path / "a.txt").write_text("some text")
    run(f"--input={tmp_path}/a.txt", f"--output={tmp_path}/store", "--tokenizer=bytes", "--validation_fraction=0")
    return tmp_path / "store"


def run(*arguments):
    prepare.run(cli.parse("prepare", prepare, list(arguments)))


def test_verify_accepts_a_sound_store(store, capsys):
    run(f"--output={store}", "--verify")
    assert capsys.readouterr().out.endswith(
        "matches the manifest, and every document starts with bos and ends with eos\n"
    )


def test_verify_names_the_damaged_files(store):
    tokens = store / "train" / "tokens-00000-of-00001.bin"
    tokens.write_bytes(tokens.read_bytes()[::-1])
    with pytest.raises(UserError, match=r"is damaged: train/tokens-00000-of-00001\.bin differ"):
        run(f"--output={store}", "--verify")


def test_prepare_without_input_is_an_error(tmp_path):
    with pytest.raises(UserError, match="--input is missing; expected a file"):
        run(f"--output={tmp_path}/store")


def test_skipped_rows_are_reported_on_the_terminal_in_the_output_and_in_the_card(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n{"body": 1}\n{\n[]\n')
    arguments = (f"--input={tmp_path}/a.jsonl", f"--output={tmp_path}/store", "--tokenizer=bytes", "--nostrict")
    for _ in ("made", "already prepared"):
        ended = rootstock("prepare", *arguments)
        skipped = {"broken JSON": 2, "missing field": 1}
        assert json.loads(ended.stdout)["skipped"] == skipped
        assert "warning: prepare: 3 bad rows are skipped: 2 broken JSON, 1 missing field" in ended.stderr
    card = json.loads((tmp_path / "store" / "card.json").read_text())
    assert card["skipped"] == skipped
    steps = [(step["step"], step["removed"], step["documents"]) for step in card["funnel"]]
    assert steps[:2] == [("read", 0, 5), ("bad rows, skipped", 3, 2)] and steps[-1] == ("in the store", 0, 2)


def test_files_that_are_not_read_are_a_warning(tmp_path):
    for name in ("a.txt", *(f"{number:02}.ndjson" for number in range(11))):
        (tmp_path / name).write_text("some text")
    arguments = (f"--input={tmp_path}", f"--output={tmp_path}/store", "--tokenizer=bytes", "--validation_fraction=0")
    warning = "warning: prepare: files with an unknown suffix are not read: 00.ndjson, 01.ndjson, "
    assert re.search(rf"{warning}.*, 09.ndjson and 1 more\n", rootstock("prepare", *arguments).stderr)


def test_another_license_replaces_the_one_in_the_card_of_a_store(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"some text {name}")
    arguments = (f"--input={tmp_path}/*.txt", f"--output={tmp_path}/store", "--tokenizer=bytes")
    manifest = None
    for licenses, expected in (
        (["--license=CC0"], ["CC0", "CC0"]),
        (["--license=CC-BY 4.0", "--license=b.txt=MIT"], ["CC-BY 4.0", "MIT"]),
        ([], ["CC-BY 4.0", "MIT"]),
    ):
        rootstock("prepare", *arguments, *licenses)
        card = json.loads((tmp_path / "store" / "card.json").read_text())
        assert [source["license"] for source in card["sources"]] == expected
        assert all(name in (tmp_path / "store" / "card.html").read_text() for name in expected)
        manifest = manifest or (tmp_path / "store" / "manifest.json").read_bytes()
        assert (tmp_path / "store" / "manifest.json").read_bytes() == manifest
    assert shlex.split(card["command"])[-2:] == ["--license=CC-BY 4.0", "--license=b.txt=MIT"]
    assert "no source is named 'c.txt'" in error_of(*arguments, "--license=c.txt=MIT")


@pytest.mark.parametrize("flag", ["input", "output", "tokenizer", "avoid"])
def test_a_name_that_is_too_long_is_a_one_line_error(tmp_path, flag):
    (tmp_path / "a.txt").write_text("some text")
    given = {"input": f"{tmp_path}/a.txt", "output": f"{tmp_path}/store", "tokenizer": "bytes"} | {flag: "x" * 300}
    error = error_of(*(f"--{name}={value}" for name, value in given.items()))
    assert "x" * 20 in error


def error_of(*arguments):
    """Returns the one line with which `rootstock prepare` ends."""
    ended = rootstock("prepare", *arguments, check=False)
    assert ended.returncode == 1 and ended.stdout == ""
    *_, error = ended.stderr.splitlines()
    assert error.startswith("rootstock: error: ") and "Traceback" not in ended.stderr
    return error


@pytest.mark.parametrize("given", ["{}/e.jsonl", "{}/*.jsonl", "rows={}/e.jsonl", "date={}/e.jsonl"])
def test_a_path_that_contains_an_equals_sign(tmp_path, given):
    folder = tmp_path / "date=2024"
    folder.mkdir()
    question = "In what country is Normandy located, and when did the Normans give it its name?"
    (folder / "e.jsonl").write_text(json.dumps({"question": question}) + "\n")
    rows = [json.dumps({"text": text}) + "\n" for text in (f"Asked: {question}", "a text of its own")]
    (folder / "a.jsonl.gz").write_bytes(gzip.compress("".join(rows).encode()))
    (folder / "b.txt").write_text("another text")
    arguments = (f"--input={folder}/a.jsonl.gz,{folder}/b.txt", f"--output={tmp_path}/store", "--tokenizer=bytes")
    licenses = (f"--license={folder}/b.txt=MIT", "--license=date=2024/a.jsonl.gz=CC0")
    avoid = f"--avoid={given.format(folder)}"
    ended = rootstock("prepare", *arguments, "--validation_fraction=0", avoid, *licenses)
    (name,) = json.loads(ended.stdout)["contamination"]
    assert name == {"r": "rows", "d": "date"}.get(given[0], given.rpartition("/")[2])
    card = json.loads((tmp_path / "store" / "card.json").read_text())
    assert card["removed"] == {f"contamination: {name}": 1}
    assert [one["license"] for one in card["sources"]] == ["CC0", "MIT"]
