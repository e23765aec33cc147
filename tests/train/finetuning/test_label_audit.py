"""`finetune` reports near-duplicates across the split, their different labels, and suspicious labels, by row."""

import json

import pytest

from configs import default
from configs.errors import UserError
from data.labeled import SplitOptions, read_splits
from tests.runs import rootstock
from tests.train.finetuning.test_confidence import labeled, trained, write
from train.finetuning.label_audit import audit_json, look_at_labels
from train.finetuning.report.label_audit import audit_lines, leak_line
from train.settings import from_config
from train.tasks.loading import load_task

pytestmark = pytest.mark.usefixtures("one_device")
LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"


def audit(tmp_path, rows, test, name="classification", suspicious=False, **changes):
    """Returns the audit of rows in train.jsonl and test.jsonl."""
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "test.jsonl", test)
    config = default.get_config()
    config.task.name = name
    config.update_from_flattened_dict(changes)
    settings = from_config(config.to_dict()).task
    cls = load_task(name)
    options = SplitOptions(0.2, 0.2, str(tmp_path / "test.jsonl"))
    splits = read_splits(str(tmp_path / "train.jsonl"), lambda row: cls.parse(row, settings), options, strict=False)
    return look_at_labels(cls.fit(splits.train, settings), splits, suspicious)


def row(text, label="a"):
    return {"text": text, "label": label}


def rows_of(pairs):
    return {tuple(sorted(r.place.rsplit("/", 1)[1] for r in (p.first, p.second))) for p in pairs}


@pytest.mark.parametrize(
    "text",
    [
        LONG.upper(),
        f"{LONG}!",
        LONG.replace(" ", "  ,"),
        f"{LONG} more",
        LONG.replace(" six ", " 6 "),
        LONG.replace("one ", ""),
    ],
)
def test_near_duplicates_across_the_split_are_leaks(tmp_path, text):
    rows = [*labeled(30, 1), row(LONG)]
    found = audit(tmp_path, rows, [*labeled(10, 2), row(text, "a")])
    if text.lower() == LONG:
        # A row with the content of a test row is not trained on, so it does not leak.
        assert not found.leaks
    else:
        assert rows_of(found.leaks) == {("test.jsonl: row 11", "train.jsonl: row 31")} and not found.conflicts
        assert leak_line(found) == "1 of 11 test rows are near-duplicates of training rows"


def test_different_texts_are_no_leak(tmp_path):
    changed = LONG.replace("three", "3").replace("seven", "7").replace("eight ", "")
    found = audit(tmp_path, [*labeled(30, 1), row(LONG)], [*labeled(10, 2), row(changed)])
    assert not found.leaks and not found.conflicts and leak_line(found) == ""


@pytest.mark.parametrize(
    ("extra", "test"),
    [
        pytest.param([row(LONG), row(f"{LONG} more", "b")], [], id="inside the training part"),
        pytest.param([row(LONG), row(LONG, "b")], [], id="the same text"),
        pytest.param([row(LONG)], [row(f"{LONG}?", "b")], id="across the split"),
        pytest.param([row(LONG)], [row(LONG, "b")], id="removed because the test rows have it"),
    ],
)
def test_near_duplicates_with_different_labels_are_conflicts(tmp_path, extra, test):
    found = audit(tmp_path, [*labeled(30, 1), *extra], [*labeled(10, 2), *test])
    last = "test.jsonl: row 11" if test else "train.jsonl: row 32"
    assert rows_of(found.conflicts) == {tuple(sorted(("train.jsonl: row 31", last)))}
    assert {p.first.label for p in found.conflicts} | {p.second.label for p in found.conflicts} == {"a", "b"}


@pytest.mark.parametrize("name", ["regression", "generation"])
def test_tasks_without_classes_have_leaks_but_no_conflicts(tmp_path, name):
    rows = [{"text": f"{LONG} {i} {j}", "label": str(i)} for i in range(3) for j in range(10)]
    found = audit(tmp_path, rows, [{"text": f"{LONG} 1 11", "label": "1"}, {"text": "other", "label": "2"}], name)
    assert len(found.leaks) >= 1 and not found.conflicts


def test_tags_that_differ_are_a_conflict(tmp_path):
    rows = [*labeled(30, 1, "tagging"), {"tokens": LONG.split(), "label": ["O"] * 17}]
    test = [*labeled(10, 2, "tagging"), {"tokens": [*LONG.split(), "end"], "label": ["N"] + ["O"] * 17}]
    assert rows_of(audit(tmp_path, rows, test, "tagging").conflicts) == {("test.jsonl: row 11", "train.jsonl: row 31")}


def test_rows_that_cannot_be_read_count_in_row_numbers(tmp_path):
    found = audit(tmp_path, [*labeled(30, 1), {"text": None, "label": "a"}, row(LONG)], [row(f"{LONG}.", "b")])
    assert rows_of(found.conflicts) == {("test.jsonl: row 1", "train.jsonl: row 32")}


def test_suspicious_rows_are_those_of_the_file(tmp_path):
    rows = list(labeled(240, 1))
    wrong = [7, 99, 202]
    for i in wrong:
        rows[i] = rows[i] | {"label": {"a": "b", "b": "oos", "oos": "a"}[rows[i]["label"]]}
    found = audit(tmp_path, rows, list(labeled(60, 2)), suspicious=True)
    assert {s.row.place.rsplit("/", 1)[1] for s in found.suspicious} == {f"train.jsonl: row {i + 1}" for i in wrong}
    assert audit_json(found)["suspicious_labels"]["count"] == 3
    assert sum("perhaps" in line for line in audit_lines(found)) == 3


@pytest.mark.integration
def test_the_report_and_results_list_the_rows(tmp_path):
    rows = list(labeled(30, 2))
    rows[0] = rows[0] | {"label": "<b>"}
    extra = [rows[0] | {"text": rows[0]["text"] + "!", "label": "a"}]
    results, workdir = trained(tmp_path, test=[*rows, *extra])
    assert results["labels"]["near_duplicates_with_different_labels"]["count"] == 1
    page = (workdir / "report.html").read_text()
    assert "Look at the labels" in page and "test.jsonl: row 31 (test)" in page and "&lt;b&gt;" in page
    assert json.loads((workdir / "results.json").read_text())["labels"] == results["labels"]


@pytest.mark.parametrize("kind", ["multi_label", "tagging", "generation", "span"])
def test_suspicious_is_refused_where_a_row_has_no_single_class(tmp_path, monkeypatch, kind):
    from tests.train.finetuning import test_confidence
    from train.finetuning import run

    suspicious = lambda *given: run.finetune(*given, suspicious=True)  # noqa: E731
    monkeypatch.setattr(test_confidence, "finetune", suspicious)
    with pytest.raises(UserError, match="--suspicious has no effect with config"):
        trained(tmp_path, kind)


def test_the_flag_is_passed_on(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr("train.finetuning.seeds.finetune_seeds", lambda *arguments: given.append(arguments))
    arguments = ("finetune", "--config=configs/finetune/intent.py", "--init_from=x", f"--workdir={tmp_path}")
    rootstock(*arguments)
    rootstock(*arguments, "--suspicious")
    assert [arguments[-1] for arguments in given] == [False, True]
