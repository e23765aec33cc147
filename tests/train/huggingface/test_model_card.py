"""The model card of an export: the Hub's metadata, results, calibration, limits, and lines that load the model."""

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml

from tests.runs import ROOT, error_lines, rootstock
from tests.train.finetuning.test_confidence import trained
from train.huggingface import model_card
from train.huggingface.card_metadata import data_name, data_path, dataset_ids, held_out_of
from train.huggingface.importing import import_hf
from train.run.record import open_run

GOLDEN = ROOT / "tests" / "golden"
FOUNDATION = GOLDEN / "runs" / "foundation"
HAS_TRANSFORMERS = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
pytestmark = pytest.mark.usefixtures("one_device")
DATA_CARD = "---\nlicense: cc-by-4.0\n---\n# Rows of mine\n\n| a | b |\n|---|---|\n"


def read(output):
    """Returns (front matter, body, results.json) of an export."""
    _, front, body = (output / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), body, json.loads((output / "results.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory, one_device):
    """Returns kind -> (results, run directory) of fine-tuned runs, each trained once."""
    made = {}

    def run(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            changes = {"task.template": "chatml", "sequence_length": 128} if kind == "generation" else {"num_steps": 12}
            # Transformers has no class that pools by mean.
            changes |= {"task.pooling": "last"} if kind in ("classification", "multi_label") else {}
            made[kind] = trained(folder, kind, **changes)
            (folder / "README.md").write_text(DATA_CARD)
        return made[kind]

    return run


def test_data_in_a_bucket_that_cannot_be_read_cost_only_their_card(monkeypatch, capsys):
    def unreadable(path):
        raise OSError("Unable to locate credentials")

    monkeypatch.setattr(model_card, "at", unreadable)
    run = SimpleNamespace(record=SimpleNamespace(config={"data": {"path": "s3://bucket/rows.jsonl", "mixture": ()}}))
    assert model_card._data_card(run) == ""
    assert "s3://bucket/rows.jsonl, which cannot be read: Unable to locate credentials" in capsys.readouterr().err


def exported(run, output, *flags):
    rootstock("export-hf", run, f"--output={output}", *flags)
    return read(output)


@pytest.mark.parametrize(
    ("kind", "pipeline", "metric"),
    [
        ("classification", "text-classification", "accuracy"),
        ("multi_label", "text-classification", "f1"),
        ("tagging", "token-classification", "accuracy"),
        ("generation", "text-generation", "rouge"),
    ],
)
def test_the_front_matter_has_what_the_hub_indexes(runs, tmp_path, kind, pipeline, metric):
    results, run = runs(kind)
    flags = ("--license=apache-2.0", "--language=en,de", "--base_model=me/base", "--dataset=me/rows")
    front, body, stored = exported(run, tmp_path / "mine", *flags)
    assert (front["license"], front["language"], front["pipeline_tag"]) == ("apache-2.0", ["en", "de"], pipeline)
    assert (front["base_model"], front["datasets"], front["library_name"]) == ("me/base", ["me/rows"], "transformers")
    (entry,) = front["model-index"]
    (result,) = entry["results"]
    assert entry["name"] == "mine" and result["dataset"]["type"] == "me/rows" and metric in front["metrics"]
    assert results["models"]["fine-tuned"] != results["models"].get("majority-class baseline")
    tuned = {name: figure for name, figure in results["models"]["fine-tuned"].items() if name != "rows"}
    assert [m["value"] for m in result["metrics"]] == [figure["value"] for figure in tuned.values()]
    assert [m["args"]["low"] for m in result["metrics"]] == [figure["low"] for figure in tuned.values()]
    assert stored["card"] == front and stored["results"]["models"] == results["models"]
    assert all(f"| {model} |" in body for model in results["models"])


def test_the_body_says_how_sure_from_what_data_and_within_which_limits(runs, tmp_path):
    results, run = runs("classification")
    front, body, stored = exported(run, tmp_path / "mine")
    assert "one of 3 classes: `a`, `b`, `oos`" in body
    brier = results["calibration"]["before"]["brier"]["value"]
    assert "## How sure it is" in body and f"| before | {brier:.3f} [" in body
    assert "train.jsonl" in body and f"{results['train_rows']:,} rows" in body and "> # Rows of mine" in body
    assert "license: cc-by-4.0" not in body and stored["data"]["card"].startswith("# Rows of mine")
    assert "texts are cut at 48 tokens" in body and "no license is stated" in body
    assert results["verdict"].removeprefix("finetune: f") in body
    assert "These files are the row `fine-tuned`" in body
    assert not {"license", "language", "base_model", "datasets"} & {*front}


def test_a_foundation_has_a_card_of_held_out_text(tmp_path):
    front, body, _ = exported(FOUNDATION, tmp_path / "base", "--license=mit")
    assert front["pipeline_tag"] == "text-generation" and front["metrics"] == ["loss", "bits_per_byte"]
    assert "It was not fine-tuned" in body and "| bits per byte |" in body


def test_an_imported_model_names_its_source(tmp_path):
    source = tmp_path / "base"
    exported(FOUNDATION, source)
    import_hf(str(source), tmp_path / "run")
    front, body, _ = exported(tmp_path / "run", tmp_path / "back")
    # A local directory is not a name on the Hub.
    assert "base_model" not in front and "model-index" not in front and f"Imported from `{source}`" in body


def test_texts_of_the_user_cannot_break_the_card(tmp_path):
    named = [("cat", "no"), ("oak", "a|b\n---\n- x: `")]
    rows = [{"text": f"{word} {i}", "label": name} for i in range(60) for word, name in named]
    _, run = trained(
        tmp_path, test=rows, **{"task.test_path": "", "data.path": str(tmp_path / "test.jsonl"), "task.pooling": "last"}
    )
    front, body, stored = exported(run, tmp_path / "it's: {mine}")
    assert front["model-index"][0]["name"] == "it's: {mine}" and stored["card"] == front
    table = [line for line in body.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in table[: 2 + len(stored["results"]["models"])]}) == 1


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--license=Apache 2", "--license='Apache 2' is not an identifier"),
        ("--language=English", "--language='English' is not a code"),
        ("--base_model=a/b/c", "--base_model='a/b/c' is not a name on the Hub"),
        ("--dataset=/data/rows", "--dataset='/data/rows' is not a name on the Hub"),
    ],
)
def test_a_value_that_the_hub_refuses_is_one_line(tmp_path, flag, expected):
    done = rootstock("export-hf", FOUNDATION, f"--output={tmp_path / 'out'}", flag, check=False)
    assert done.returncode == 1 and len(error_lines(done)) == 1 and expected in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["classification", "multi_label", "tagging", "generation", "foundation"])
def test_the_hub_reads_the_card(runs, tmp_path, kind):
    hub = pytest.importorskip("huggingface_hub")
    run = FOUNDATION if kind == "foundation" else runs(kind)[1]
    front, _, _ = exported(run, tmp_path / "mine", "--license=mit", "--language=en")
    card = hub.ModelCard.load(tmp_path / "mine" / "README.md")
    name, evaluated = hub.repocard_data.model_index_to_eval_results(front["model-index"])
    metrics = front["model-index"][0]["results"][0]["metrics"]
    assert name == "mine" and [e.metric_value for e in evaluated] == [m["value"] for m in metrics]
    assert card.data.license == "mit" and len(card.data.eval_results) == len(metrics)


@pytest.mark.skipif(not HAS_TRANSFORMERS, reason="needs torch and transformers")
@pytest.mark.parametrize("kind", ["classification", "multi_label", "tagging", "generation", "foundation"])
def test_the_lines_load_the_model(runs, tmp_path, kind):
    run = FOUNDATION if kind == "foundation" else runs(kind)[1]
    _, body, _ = exported(run, tmp_path / "mine")
    (code,) = re.findall(r"```python\n(.*?)```", body, re.S)
    assert len([line for line in code.splitlines() if line]) <= 3
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "[" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("data", "name", "ids"),
    [
        ({"path": "texts/mine.txt", "mixture": []}, "mine.txt", ()),
        ({"path": "", "mixture": [["books", "hf:a/b", 0.5], ["code", "code.txt", 0.5]]}, "a/b", ("a/b",)),
        ({"path": "", "mixture": [["books", "texts/books.txt", 0.5], ["code", "hf:c/d", 0.5]]}, "c/d", ("c/d",)),
    ],
)
def test_the_data_of_a_mixture_is_named(data, name, ids):
    run = SimpleNamespace(record=SimpleNamespace(config={"data": data}))
    assert data_name(run) == name and dataset_ids(data_path(run)) == ids


def test_the_figures_of_a_run_that_kept_its_best_parameters_are_theirs(tmp_path):
    record = {"phase": "eval", "loss": 3.3, "bits_per_byte": 4.7}
    lines = [record | {"step": 4}, record | {"step": 8, "loss": 3.7}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "best" / "4").mkdir(parents=True)
    results = {"training": {"held_out": lines[1]}}
    run = SimpleNamespace(directory=tmp_path, checkpoint_dir="best")
    assert held_out_of(run, results)["loss"] == 3.3
    run.checkpoint_dir = "checkpoints"
    assert held_out_of(run, results)["loss"] == 3.7


@pytest.mark.parametrize(("kept", "said"), [("checkpoints", "8 of 20 planned steps of"), ("best", "4 of 20 planned")])
def test_the_steps_are_those_of_the_exported_parameters(kept, said, tmp_path):
    for step in ("checkpoints/8", "best/4"):
        (tmp_path / step).mkdir(parents=True)
    run = open_run(FOUNDATION)
    record = dataclasses.replace(run.record, config=run.record.config | {"num_steps": 20})
    stopped = SimpleNamespace(directory=tmp_path, record=record, checkpoint_dir=kept)
    assert f"- {said}" in model_card._training(stopped, {})
    (tmp_path / kept / "20").mkdir()
    assert "- 20 steps of" in model_card._training(stopped, {})
