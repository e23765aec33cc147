"""`rootstock store ls` and `rootstock store show`, called in this process."""

import json

import pytest

from configs.errors import UserError
from data.engines import Engine
from data.prepare import Execution, StoreOptions, prepare
from train import cli
from train.commands import store as command

TEXTS = [f"text number {number} of the set" for number in range(30)]


@pytest.fixture(scope="module", params=[1 << 28, 200], ids=["one shard", "many shards"])
def store(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("store")
    (folder / "in.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    execution = Execution(Engine(processes=1), 0, request.param)
    options = StoreOptions("bytes", validation_fraction=0.3)
    prepare(str(folder / "in.jsonl"), folder / "store", options, execution=execution)
    return folder / "store"


def run(*arguments):
    command.run(cli.parse("store", command, list(map(str, arguments))))


def test_ls_shows_each_split(store, capsys):
    run("ls", store)
    shown = capsys.readouterr().out
    counts = json.loads((store / "manifest.json").read_text())["splits"]
    for split in ("train", "validation"):
        (line,) = (line for line in shown.splitlines() if split in line)
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        assert cells[1:3] == [str(counts[split]["documents"]), f"{counts[split]['tokens']:,}"]
        assert cells[4] == str(len(counts[split]["shards"]))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_show_prints_every_document_by_number(store, capsys, split):
    total = json.loads((store / "manifest.json").read_text())["splits"][split]["documents"]
    shown = []
    for number in range(total):
        run("show", store, f"--document={number}", f"--split={split}")
        header, text = capsys.readouterr().out.splitlines()
        assert header.startswith(f"--- document {number} of {split}: {len(text) + 2} tokens")
        shown.append(text)
    run("show", store, f"--count={total}", f"--split={split}")
    assert capsys.readouterr().out.splitlines()[1::2] == shown
    assert set(shown) < set(TEXTS) and len(set(shown)) == total


def test_show_prints_tokens(store, capsys):
    run("show", store, "--document=2", "--tokens")
    ids = [int(word) for word in capsys.readouterr().out.splitlines()[1].split()]
    assert ids[0] == 1 and ids[-1] == 2 and bytes(i - 3 for i in ids[1:-1]).decode() in TEXTS


@pytest.mark.parametrize(
    "arguments", [("--document=30",), ("--document=5", "--count=30"), ("--split=validation", "--document=29")]
)
def test_a_document_that_does_not_exist_is_an_error(store, arguments):
    with pytest.raises(UserError, match="does not exist; expected 0 to"):
        run("show", store, *arguments)


def test_a_directory_that_is_no_store_is_an_error(tmp_path):
    for action in ("ls", "show"):
        with pytest.raises(UserError, match="is not a token store"):
            run(action, tmp_path)
