"""A linear model joins a classifier where validation rows ask for it, in every command that predicts."""

import json
import shutil

import pytest

from configs import default
from tests.runs import ROOT, error_lines, rootstock
from tests.train.finetuning.test_confidence import labeled, write
from train.finetuning.ensembling import ENSEMBLE
from train.finetuning.run import finetune
from train.finetuning.seeds import finetune_seeds
from train.prediction import load

FOUNDATION = ROOT / "tests" / "golden" / "runs" / "foundation"
pytestmark = [pytest.mark.usefixtures("one_device"), pytest.mark.integration]


def config_of(folder, **changes):
    config = default.get_config()
    config.task.name, config.task.baseline, config.task.zero_shot_rows = "classification", False, 0
    config.batch_size, config.sequence_length, config.num_steps, config.optimizer.warmup_steps = 4, 48, 3, 1
    config.task.validation_fraction, config.optimizer.learning_rate = 0.3, 0.03
    config.data.path, config.task.test_path = str(folder / "train.jsonl"), str(folder / "test.jsonl")
    config.update_from_flattened_dict(changes)
    return config.to_dict()


def trained(folder, name="run", **changes):
    return finetune(config_of(folder, **changes), FOUNDATION, folder / name)


@pytest.fixture(scope="module")
def together(tmp_path_factory, one_device):
    """(Folder of a run that a linear model joins, its results)."""
    folder = tmp_path_factory.mktemp("together")
    write(folder / "train.jsonl", labeled(60, 1))
    write(folder / "test.jsonl", labeled(30, 2))
    return folder, trained(folder)


def test_the_last_row_is_both_models(together):
    folder, results = together
    assert list(results["models"])[-2:] == ["fine-tuned", ENSEMBLE]
    alone, both = (results["models"][name]["accuracy"]["value"] for name in ("fine-tuned", ENSEMBLE))
    assert alone < both == 1.0
    assert set(results["gain"]) == set(results["models"]) - {ENSEMBLE}
    assert results["verdict"].endswith(
        f"; the fine-tuned model alone {alone:.3f}. Use TF-IDF + linear SVM as things are"
    )
    cost = {name: figures["seconds"] for name, figures in results["costs"].items()}
    assert cost[ENSEMBLE] == pytest.approx(cost["fine-tuned"] + cost["TF-IDF + linear SVM"])
    stored = json.loads((folder / "run" / "calibration.json").read_text())
    assert stored["weights"] == list(results["ensemble"]["weights"].values()) and stored["temperature"] == 1.0
    # An export contains the fine-tuned model alone, so its figures are kept apart.
    assert results["calibration"] != results["ensemble"]["calibration"]
    page = (folder / "run" / "report.html").read_text()
    assert ENSEMBLE in page and "the margins of the linear SVM times" in page


def test_predictions_are_those_of_both(together):
    folder, results = together
    model = load(folder / "run")
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    answers = model.answer_rows(rows)
    right = [row["label"] == answer["prediction"] for row, answer in zip(rows, answers, strict=True)]
    assert sum(right) / len(rows) == results["models"][ENSEMBLE]["accuracy"]["value"]
    # One at a time, as over HTTP.
    single = [model.answer_rows([row])[0] for row in rows[:3]]
    assert [answer["prediction"] for answer in single] == [answer["prediction"] for answer in answers[:3]]
    output = folder / "predictions.jsonl"
    done = rootstock("predict", f"--run={folder / 'run'}", f"--data={folder / 'test.jsonl'}", f"--output={output}")
    assert "the run's linear SVM joins the model" in done.stderr
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["probability"] for row in written] == pytest.approx([a["probability"] for a in answers], abs=1e-5)
    evaluated = rootstock("evaluate", f"--run={folder / 'run'}", f"--data={folder / 'test.jsonl'}", "--json").stdout
    assert json.loads(evaluated)["accuracy"] == pytest.approx(results["models"][ENSEMBLE]["accuracy"])


def test_a_linear_model_that_is_gone_or_damaged_is_an_error(together, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(together[0] / "run", run)
    path = run / "linear_model.npz"
    flags = [f"--run={run}", f"--data={together[0] / 'test.jsonl'}", f"--output={tmp_path / 'out.jsonl'}"]
    path.write_bytes(path.read_bytes()[:-99])
    (line,) = error_lines(rootstock("predict", *flags, check=False))
    assert f"{path} is corrupt" in line and "run the same `rootstock finetune` again" in line
    path.unlink()
    (line,) = error_lines(rootstock("predict", *flags, check=False))
    assert f"{path} is missing" in line and "restore it" in line


def test_the_same_run_without_it_predicts_alone(together):
    folder, _ = together
    shutil.copytree(folder / "run", folder / "again")
    results = trained(folder, "again", **{"task.ensemble": False})
    assert list(results["models"])[-1] == "fine-tuned" and "ensemble" not in results
    assert not (folder / "again" / "linear_model.npz").exists()
    stored = json.loads((folder / "again" / "calibration.json").read_text())
    assert stored["weights"] is None


def test_a_merged_adapter_keeps_it(together):
    folder, _ = together
    trained(folder, "adapter", **{"adapt.method": "lora", "adapt.rank": 2})
    rootstock("merge", f"--run={folder / 'adapter'}", f"--workdir={folder / 'merged'}")
    texts = ["cat cow", "slate", "an oak"]
    adapter, merged = (load(folder / name) for name in ("adapter", "merged"))
    assert merged.calibration.weights == adapter.calibration.weights is not None
    assert merged(texts) == adapter(texts)


def test_each_seed_has_its_own(together):
    folder, results = together
    config = config_of(folder)
    found = finetune_seeds(config, FOUNDATION, folder / "run", seeds=2)
    both = found["seeds"]["ensemble_metrics"]["accuracy"]
    assert both["values"][0] == results["models"][ENSEMBLE]["accuracy"]["value"] and len(both["values"]) == 2
    alone = found["seeds"]["metrics"]["accuracy"]["values"]
    assert alone[0] == results["models"]["fine-tuned"]["accuracy"]["value"]
