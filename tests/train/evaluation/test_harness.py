"""The harness's scores are those of its own Hugging Face backend, stored by tests/golden/make_harness.py."""

import json
import shutil
from pathlib import Path

import pytest

from configs.errors import UserError
from data.tokenizer_training import train_tokenizer
from train.huggingface.importing import import_hf
from train.run.language_model import open_writer

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance

from train.evaluation import harness

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests" / "golden"
SCORES = json.loads((GOLDEN / "harness" / "scores.json").read_text())
PAIRS = [("", "the cat"), ("a dog ", "ran"), ("far away " * 9, "home"), ("a", " sat on the mat " * 3), ("so", "\n")]
CONTEXTS = ["the cat", "a dog ran far away and", "far away " * 9, "über"]
TASKS = ["golden_choice", "golden_text", "golden_written"]


def imported(name, folder):
    directory = shutil.copytree(GOLDEN / "huggingface" / name, folder / name)
    train_tokenizer("bytes", []).with_post_processor(eos=False).save(directory)
    import_hf(str(directory), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module", params=sorted(SCORES))
def model(request, tmp_path_factory):
    """(what the peer said, our writer)."""
    run = imported(request.param, tmp_path_factory.mktemp(request.param))
    return SCORES[request.param], open_writer(run, spread=True)


def ask(kind, arguments):
    return [Instance(request_type=kind, doc={}, arguments=each, idx=0) for each in arguments]


def test_each_kind_of_request_is_answered_alike(model):
    expected, writer = model
    ours = harness.Harness(writer)
    found = ours.loglikelihood(ask("loglikelihood", PAIRS))
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected["pairs"]]
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected["pairs"]], abs=1e-3)
    texts = ours.loglikelihood_rolling(ask("loglikelihood_rolling", [(a + b,) for a, b in PAIRS]))
    assert texts == pytest.approx(expected["texts"], abs=1e-3)
    until = {"until": ["t"], "max_gen_toks": 16}
    written = ours.generate_until(ask("generate_until", [(text, until) for text in CONTEXTS]))
    assert written == expected["written"]


@pytest.mark.parametrize("shots", [0, 1])
def test_tasks_get_the_same_scores(model, shots, monkeypatch):
    expected, writer = model
    monkeypatch.chdir(ROOT)
    folders = [str(GOLDEN / "harness")]
    found = harness.evaluate(writer, TASKS, folders, shots=shots, limit=0, data={}, chat=False)
    for task, figures in expected[f"tasks, {shots} shots"].items():
        for name, value in figures.items():
            if not name.endswith("stderr"):
                assert found[task][name] == pytest.approx(value, rel=1e-3, abs=1e-3), (task, name)
        assert found[task]["rows"] == 24


def rows_of(folder, **files):
    paths = {}
    for name, rows in files.items():
        paths[name] = str(folder / f"{name}.jsonl")
        Path(paths[name]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


def test_our_task_files_read_labelled_rows(model, tmp_path):
    _, writer = model
    evals = [str(ROOT / "configs" / "evals")]
    labels = [{"text": f"t{i}", "label": ("in_a", "b")[i % 2]} for i in range(8)]
    data = rows_of(tmp_path, test=labels[:6], train=labels[6:])
    found = harness.evaluate(writer, ["intent", "sentiment"], evals, shots=1, limit=4, data=data, chat=False)
    assert {name: (figures["rows"], figures["num_fewshot"]) for name, figures in found.items()} == {
        "intent": (4, 1),
        "sentiment": (4, 1),
    }
    assert 0 <= found["intent"]["acc"] <= 1


def test_answers_are_scored_by_the_best_of_the_right_ones():
    doc = {"answers": [{"text": "the Rhine"}, {"text": "a river"}]}
    assert harness._squad(doc, [" River."]) == {"exact_match": 1.0, "f1": 1.0}
    assert harness._squad({"answers": []}, [""]) == {"exact_match": 1.0, "f1": 1.0}
    assert harness._squad(doc, ["lake"]) == {"exact_match": 0.0, "f1": 0.0}


def test_wrong_tasks_and_rows_are_one_line(model, tmp_path):
    _, writer = model
    evals = [str(ROOT / "configs" / "evals")]
    data = rows_of(tmp_path, test=[{"text": "a"}])

    def evaluated(tasks, data):
        harness.evaluate(writer, tasks, evals, shots=None, limit=0, data=data, chat=False)

    with pytest.raises(UserError, match="'intents' is unknown; did you mean 'intent'"):
        evaluated(["intents"], data)
    with pytest.raises(UserError, match="--data is missing: task 'intent' reads rows with the columns text, label"):
        evaluated(["intent"], {})
    with pytest.raises(UserError, match="row 1: no 'label'; columns found: text"):
        evaluated(["intent"], data)
