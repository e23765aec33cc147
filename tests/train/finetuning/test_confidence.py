"""The table of a fine-tuning run: what needs no model, costs, how sure the model is; test rows are never chosen by."""

import json
import random

import pytest

from configs import default, reference
from configs.errors import UserError
from tests.often import often
from tests.runs import ROOT, records, rootstock
from train.evaluation import linear_svm
from train.finetuning.run import finetune
from train.tasks.loading import load_task
from train.tasks.task import fields_without_effect

FOUNDATION = ROOT / "tests" / "golden" / "runs" / "foundation"
pytestmark = pytest.mark.usefixtures("one_device")
WORDS = {"a": "cat dog cow", "b": "oak elm ash", "oos": "gneiss slate chalk"}


def labeled(count, seed, kind="classification"):
    rng = random.Random(seed)
    for i in range(count):
        name = ("a", "b", "oos")[i % 3]
        words = rng.choices(WORDS[name].split(), k=3)
        if kind == "tagging":
            yield {
                "tokens": [*words, "of", str(i)],
                "label": ["N" if w in WORDS["a"] else "O" for w in words] + ["O"] * 2,
            }
        elif kind == "multi_label":
            yield {"text": f"{' '.join(words)} {seed} {i}", "label": [name] if name != "oos" else []}
        elif kind == "span":
            context = f"{' '.join(words)} {seed} {i}"
            yield {"question": "which?", "context": context, "label": [{"text": words[0], "answer_start": 0}] * (i % 2)}
        elif kind == "generation":
            yield {"text": ". ".join(words) + f". Number {i}.", "label": ". ".join(words) + "."}
        else:
            yield {"text": f"{' '.join(words)} {seed} {i}", "label": name}


def trained(folder, kind="classification", test=None, **changes):
    """Returns (results, workdir) of a run of a few steps; `test` are its test rows."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "train.jsonl", labeled(60, 1, kind))
    write(folder / "test.jsonl", test or labeled(30, 2, kind))
    config = default.get_config()
    config.task.name, config.task.multi_label = kind.replace("multi_label", "classification"), kind == "multi_label"
    config.task.input = "{question}" if kind == "span" else "{text}"
    config.task.baseline, config.task.zero_shot_rows, config.task.max_new_tokens = False, 0, 3
    config.batch_size, config.sequence_length, config.num_steps, config.optimizer.warmup_steps = 4, 48, 3, 1
    config.task.validation_fraction, config.optimizer.learning_rate = 0.3, 0.03
    config.data.path, config.task.test_path = str(folder / "train.jsonl"), str(folder / "test.jsonl")
    config.update_from_flattened_dict(changes)
    unused = fields_without_effect(load_task(config.task.name))
    config.update_from_flattened_dict({f.name: f.default for f in reference.fields() if f.name in unused})
    return finetune(config.to_dict(), FOUNDATION, folder / "run"), folder / "run"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


NAMES = {
    "classification": ["majority-class baseline", "TF-IDF + linear SVM", "fine-tuned", "fine-tuned + TF-IDF"],
    "multi_label": ["majority-class baseline", "TF-IDF + linear SVM", "fine-tuned"],
    "tagging": ["word features + linear SVM", "fine-tuned"],
    "span": ["always no answer", "fine-tuned"],
    "generation": ["first 3 sentences", "fine-tuned"],
}


@pytest.mark.integration
@pytest.mark.parametrize("kind", often(NAMES, "classification", "tagging", "generation"))
def test_the_table_has_what_needs_no_model(kind, tmp_path, capsys):
    results, workdir = trained(tmp_path, kind)
    assert list(results["models"]) == NAMES[kind]
    simple = results["models"][NAMES[kind][NAMES[kind].index("fine-tuned") - 1]]
    metric = next(name for name in simple if name != "rows")
    expected = {"span": 0.5, "generation": 0.8}.get(kind, 0.9)
    assert simple[metric]["value"] >= expected
    assert all(cost["seconds"] > 0 and cost["cpu_seconds"] >= 0 for cost in results["costs"].values())
    assert list(results["costs"]) == NAMES[kind]
    out = capsys.readouterr().out
    assert "CPU-seconds" in out and out.strip().splitlines()[-1] == results["verdict"]
    has_classes = kind in ("classification", "multi_label", "tagging")
    assert (workdir / "calibration.json").exists() == has_classes == ("calibration" in results)
    page = (workdir / "report.html").read_text()
    assert ("How sure" in page) == ('class="even"' in page) == has_classes and "CPU-seconds" in page
    assert ("sets" in results.get("calibration", {})) == (kind == "classification")
    # No option that `predict` refuses is advertised.
    for flag, key in {"--abstain_below": "answered", "--coverage": "sets"}.items():
        found = {flag in out, f"predict {flag}" in page, key in results.get("calibration", {})}
        assert found == {kind == "classification"}


@pytest.mark.integration
def test_a_resumed_run_has_no_cost_but_the_same_calibration(tmp_path):
    results, workdir = trained(tmp_path)
    stored = (workdir / "calibration.json").read_text()
    again, _ = trained(tmp_path)
    assert "fine-tuned" in results["costs"] and "fine-tuned" not in again["costs"]
    assert (workdir / "calibration.json").read_text() == stored
    assert again["calibration"] == results["calibration"]


def poisoned(rows, how):
    """Returns test rows that would mislead whoever chooses by them."""
    rows = list(rows)
    if how == "labels":
        return [row | {"label": "b" if row["label"] == "a" else "a"} for row in rows]
    if how == "texts":
        return [row | {"text": row["text"] + " oak" * 9} for row in rows]
    return rows + [{"text": f"cat cow {i}", "label": "oos"} for i in range(90)]


@pytest.mark.integration
@pytest.mark.parametrize("how", ["labels", "texts", "more rows"])
def test_test_rows_are_never_used_for_a_choice(how, tmp_path, monkeypatch):
    """Temperature, thresholds, C and the model are the same with poisoned test rows."""
    chosen = []

    def best(models, scores):
        chosen.append((scores, [float(model.coef_.sum()) for model in models]))
        return models[0]

    monkeypatch.setattr(linear_svm, "_best", best)
    rows = list(labeled(30, 2))
    _, honest = trained(tmp_path / "honest", test=rows)
    _, other = trained(tmp_path / "poisoned", test=poisoned(rows, how))
    assert (honest / "calibration.json").read_text() == (other / "calibration.json").read_text()
    assert chosen[0] == chosen[1]
    losses = [[r["loss"] for r in records(run) if r["phase"] == "eval"] for run in (honest, other)]
    assert losses[0] == losses[1] != []


@pytest.mark.integration
def test_rows_out_of_scope_are_scored_apart(tmp_path):
    results, workdir = trained(tmp_path, **{"task.out_of_scope": "oos"})
    svm = results["models"]["TF-IDF + linear SVM"]
    assert svm["accuracy_in_scope"]["value"] > 0.9 and svm["recall_out_of_scope"]["value"] > 0.9
    majority = results["models"]["majority-class baseline"]
    together = (20 * majority["accuracy_in_scope"]["value"] + 10 * majority["recall_out_of_scope"]["value"]) / 30
    assert majority["accuracy"]["value"] == pytest.approx(together)
    assert 0 <= results["calibration"]["out_of_scope_auroc"]["value"] <= 1
    assert json.loads((workdir / "run.json").read_text())["task"]["out_of_scope"] == "oos"


@pytest.mark.integration
@pytest.mark.parametrize("outside", [False, True])
def test_rows_of_which_all_or_none_are_out_of_scope_have_no_auroc(outside, tmp_path):
    test = [row for row in labeled(30, 2) if (row["label"] == "oos") == outside]
    results, workdir = trained(tmp_path, test=test, **{"task.out_of_scope": "oos"})
    assert ("recall_out_of_scope" in results["models"]["fine-tuned"]) == outside
    assert "out_of_scope_auroc" not in results["calibration"]
    assert "NaN" not in (workdir / "results.json").read_text()


def test_out_of_scope_without_effect_is_refused(tmp_path):
    with pytest.raises(UserError, match="out_of_scope='none' is the class of no row; expected one of a, b, oos"):
        trained(tmp_path, **{"task.out_of_scope": "none"})
    with pytest.raises(UserError, match="out_of_scope='oos' has no effect without config"):
        trained(tmp_path / "several", "multi_label", **{"task.out_of_scope": "oos"})


@pytest.mark.integration
def test_the_verdict_says_plainly_who_wins(tmp_path):
    changes = {"num_steps": 1, "optimizer.warmup_steps": 0, "optimizer.learning_rate": 1e-30, "task.ensemble": False}
    results, _ = trained(tmp_path, **changes)
    assert "LOSES to TF-IDF + linear SVM: accuracy 0." in results["verdict"]
    assert "Use TF-IDF + linear SVM as things are" in results["verdict"]


@pytest.mark.integration
def test_predict_uses_the_calibration(tmp_path):
    _, workdir = trained(tmp_path, **{"task.ensemble": False})
    stored = json.loads((workdir / "calibration.json").read_text())
    found = {}
    for temperature, said in {
        1.0: f"no temperature is clearly better on {stored['rows']} validation rows",
        4.0: f"calibrated: temperature 4.000, of {stored['rows']} validation rows",
    }.items():
        (workdir / "calibration.json").write_text(json.dumps(stored | {"temperature": temperature}))
        output = tmp_path / f"{temperature}.jsonl"
        arguments = [f"--run={workdir}", f"--data={tmp_path / 'test.jsonl'}", f"--output={output}", "--top_k=3"]
        assert said in rootstock("predict", *arguments, devices=1).stderr
        found[temperature] = [json.loads(line) for line in output.read_text().splitlines()]
    for sharp, soft in zip(found[1.0], found[4.0], strict=True):
        assert sharp["prediction"] == soft["prediction"] and sharp["probability"] > soft["probability"]
        odds = [(row["probability"] / row["probability_3"]) for row in (sharp, soft)]
        assert odds[0] == pytest.approx(odds[1] ** 4, rel=1e-2)
