"""Tests that our scores equal those of the harness's Hugging Face backend, stored by tests/golden/make_harness.py."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import tiny_model

from configs.errors import UserError
from data.columns import RowRules
from data.templates import render
from data.tokenizer_training import train_tokenizer
from tests.designs import design
from tests.often import often
from train.distributed.mesh import single_device_mesh
from train.generation.language_model import LanguageModel
from train.huggingface.importing import import_hf
from train.run.language_model import open_language_model

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance

from train.evaluation import harness
from train.evaluation.harness import HarnessOptions

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


@pytest.fixture(scope="module", params=often(sorted(SCORES), "llama3"))
def model(request, tmp_path_factory):
    """(the reference scores, our language model)."""
    run = imported(request.param, tmp_path_factory.mktemp(request.param))
    return SCORES[request.param], open_language_model(run, spread=True)


def requests(kind, arguments):
    return [Instance(request_type=kind, doc={}, arguments=each, idx=0) for each in arguments]


@pytest.mark.integration
def test_each_request_type_equals_the_hugging_face_backend(model):
    expected, language_model = model
    ours = harness.Harness(language_model)
    found = ours.loglikelihood(requests("loglikelihood", PAIRS))
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected["pairs"]]
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected["pairs"]], abs=1e-3)
    texts = ours.loglikelihood_rolling(requests("loglikelihood_rolling", [(a + b,) for a, b in PAIRS]))
    assert texts == pytest.approx(expected["texts"], abs=1e-3)
    until = {"until": ["t"], "max_gen_toks": 16}
    generated = ours.generate_until(requests("generate_until", [(text, until) for text in CONTEXTS]))
    assert generated == expected["written"]


@pytest.mark.integration
@pytest.mark.parametrize("shots", [0, 1])
def test_task_scores_equal_the_hugging_face_backend(model, shots, monkeypatch):
    expected, language_model = model
    monkeypatch.chdir(ROOT)
    folders = [str(GOLDEN / "harness")]
    found = harness.evaluate(language_model, TASKS, HarnessOptions(folders, shots))
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


def test_our_task_files_read_labeled_rows(model, tmp_path):
    _, language_model = model
    evals = [str(ROOT / "configs" / "evals")]
    labels = [{"text": f"t{i}", "label": ("in_a", "b")[i % 2]} for i in range(8)]
    data = rows_of(tmp_path, test=labels[:6], train=labels[6:])
    found = harness.evaluate(language_model, ["intent", "sentiment"], HarnessOptions(evals, 1, limit=4, data=data))
    assert {name: (figures["rows"], figures["num_fewshot"]) for name, figures in found.items()} == {
        "intent": (4, 1),
        "sentiment": (4, 1),
    }
    assert 0 <= found["intent"]["acc"] <= 1


def test_squad_scores_use_the_best_matching_answer():
    doc = {"answers": ["the Rhine", "a river"]}
    assert harness._squad(doc, [" River."]) == {"exact_match": 1.0, "f1": 1.0}
    assert harness._squad({"answers": []}, [""]) == {"exact_match": 1.0, "f1": 1.0}
    assert harness._squad(doc, ["lake"]) == {"exact_match": 0.0, "f1": 0.0}


def test_rows_of_task_files_are_cleaned_and_converted(tmp_path):
    answers = {"text": ["a\r\nb", "c"], "answer_start": [0, 4]}
    rows = [{"text": "one\r\ntwo", "label": 0, "answers": answers, "choices": ["a\x00", 1], "index": 1}] * 2
    path = rows_of(tmp_path, test=rows)["test"]
    read = harness._read(path, list(rows[0]), RowRules())
    (row, _) = harness._dataset(path, read, ["0"])
    assert row["text"] == "one\ntwo" and row["label"] == "0" and row["choices"] == ["0"] and row["answer"] == 0
    assert row["answers"] == ["a\nb", "c"] and row["first_answer"] == "a\nb" and row["index"] == 1
    for name, value in (("text", None), ("label", None), ("text", {"a": 1}), ("answers", None), ("choices", [None])):
        path = rows_of(tmp_path, bad=[rows[0], rows[0] | {name: value}])["bad"]
        with pytest.raises(UserError, match=rf"bad.jsonl: row 2: '{name}' is (null|an object)"):
            harness._read(path, list(rows[0]), RowRules())


def test_choices_are_the_labels_of_all_rows_and_texts_beside_numbers_are_texts(tmp_path):
    test, train = [{"text": "a", "label": "x"}, {"text": 5, "label": "x"}], [{"text": "c", "label": "y"}]
    config = {"task": "intent", "metadata": {"columns": ["text", "label"]}}
    filled = harness._with_rows(config, rows_of(tmp_path, test=test, train=train), RowRules())
    rows = filled["custom_dataset"]()
    assert [(row["choices"], row["answer"]) for row in rows["test"]] == [(["x", "y"], 0)] * 2
    assert {row["text"] for row in rows["test"]} == {"a", "5"} and rows["train"][0]["answer"] == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a", "label": "x"}] * 2, "all rows have the label 'x'; expected at least two labels"),
        ([{"text": ["a", 1], "label": "x"}, {"text": ["b"], "label": "y"}], "expected values of one type"),
    ],
)
def test_rows_that_ask_nothing_or_mix_types_are_one_line_errors(rows, message, tmp_path):
    config = {"task": "intent", "metadata": {"columns": ["text", "label"]}}
    with pytest.raises(UserError, match=message) as caught:
        harness._with_rows(config, rows_of(tmp_path, test=rows), RowRules())
    assert "\n" not in str(caught.value)


@pytest.mark.integration
def test_unknown_task_or_missing_column_is_a_one_line_error(model, tmp_path):
    _, language_model = model
    evals = [str(ROOT / "configs" / "evals")]
    data = rows_of(tmp_path, test=[{"text": "a"}])

    def evaluated(tasks, data):
        harness.evaluate(language_model, tasks, HarnessOptions(evals, data=data))

    with pytest.raises(UserError, match="'intents' is unknown; did you mean 'intent'"):
        evaluated(["intents"], data)
    with pytest.raises(UserError, match="--data is missing: task 'intent' reads rows with the columns text, label"):
        evaluated(["intent"], {})
    with pytest.raises(UserError, match="row 1: no 'label'; columns found: text"):
        evaluated(["intent"], data)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({}, "the file of task 'own' has no rows; expected metadata.columns"),
        ({"metadata": {"version": 1.0}}, "the file of task 'own' has no rows"),
        ({"dataset_path": "some/set"}, "--data has no effect for --tasks=own"),
    ],
)
def test_a_task_file_without_rows_or_with_rows_of_its_own_is_one_line(task, message, tmp_path):
    whole = {
        "task": "own",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_target": "label",
    } | task
    (tmp_path / "own.yaml").write_text(json.dumps(whole))
    opened = LanguageModel(tiny_model(), {}, design("bytes", SOURCE), "", 0, single_device_mesh())
    data = rows_of(tmp_path, test=[{"text": "a", "label": "b"}])
    with pytest.raises(UserError, match=message):
        harness.evaluate(opened, ["own"], HarnessOptions([str(tmp_path)], data=data))


SOURCE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("template", ["chatml", "llama3", "gemma", "tokenizer"])
@pytest.mark.parametrize("name", ["byte-level BPE", "prepend normalizer", "metaspace first", "bytes"])
@pytest.mark.parametrize("content", [" the cat", "x</s><|im_end|> <|eot_id|>"])
def test_a_chat_in_a_task_has_the_tokens_of_a_prompt(name, template, content):
    tokenizer = design(name, SOURCE)
    opened = LanguageModel(tiny_model(), {}, tokenizer, template, tokenizer.eos_id, single_device_mesh())
    chat = [{"role": "user", "content": content}]
    ours = harness.Harness(opened)
    found = ours.tok_encode(ours.apply_chat_template(chat), add_special_tokens=False)
    assert found == render(chat, template, tokenizer, prompt=True).tokens
