"""Labeled rows: splits share nothing, adding a row never moves another, errors are one line with the row's number."""

import json

import pytest

from configs.errors import UserError
from data.columns import column, fill
from data.labeled import Example, SplitOptions, draw, fold, read_splits


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def parse(row):
    text = fill("{text}", row, "config.task.input")
    label = column(row, "label", "config.task.target")
    return Example(text, str(row.get("group", text)), {"label": label})


def split(path, test="", fraction=0.3, rows=0):
    return read_splits(path, parse, SplitOptions(0.2, fraction, test, rows))


@pytest.fixture
def rows():
    return [{"text": f"message number {i}", "label": "ab"[i % 2]} for i in range(80)]


def contents(examples):
    return {fold(example.content) for example in examples}


def test_splits_share_no_text_and_duplicates_are_counted(tmp_path, rows):
    repeated = rows + [{"text": row["text"].upper() + "  ", "label": row["label"]} for row in rows]
    data = split(write(tmp_path / "all.jsonl", repeated))
    train, validation, test = map(contents, (data.train, data.validation, data.test))
    assert len(train) + len(validation) + len(test) == 80 == data.duplicates
    assert not train & test and not train & validation and not validation & test
    assert 10 < len(test) < 40 and 3 < len(validation) < 25


def test_groups_are_never_split(tmp_path, rows):
    grouped = [row | {"group": f"contract {i % 12}"} for i, row in enumerate(rows)]
    data = split(write(tmp_path / "all.jsonl", grouped))
    train, validation, test = ({e.group for e in part} for part in (data.train, data.validation, data.test))
    assert not train & test and not train & validation and not validation & test
    assert len(train | validation | test) == 12


def test_adding_a_row_never_moves_another(tmp_path, rows):
    before = split(write(tmp_path / "a.jsonl", rows))
    after = split(write(tmp_path / "b.jsonl", [{"text": "a new one", "label": "a"}, *rows]))
    for part in ("train", "validation", "test"):
        assert contents(getattr(before, part)) <= contents(getattr(after, part))


def test_training_rows_that_share_text_or_group_with_test_rows_are_dropped(tmp_path, rows):
    data = split(write(tmp_path / "train.jsonl", rows), write(tmp_path / "test.jsonl", rows[:10]))
    assert len(data.train) + len(data.validation) == 70 and len(data.test) == 10
    shared = [row | {"group": f"g{i % 8}"} for i, row in enumerate(rows)]
    held_out = [{"text": "of group one", "label": "a", "group": "g1"}]
    data = split(write(tmp_path / "train2.jsonl", shared), write(tmp_path / "test2.jsonl", held_out))
    assert "g1" not in {e.group for e in data.train + data.validation}
    alone = [row | {"group": f"author {i}"} for i, row in enumerate(rows)]
    held_out = [{"text": "Message  number 3", "label": "b", "group": "another author"}]
    data = split(write(tmp_path / "train3.jsonl", alone), write(tmp_path / "test3.jsonl", held_out))
    assert len(data.train) + len(data.validation) == 79
    assert not contents(data.train + data.validation) & contents(data.test)


def test_test_rows_are_selected_by_content_not_by_order(tmp_path, rows):
    test = write(tmp_path / "test.jsonl", rows[:40])
    turned = write(tmp_path / "turned.jsonl", rows[:40][::-1])
    train = write(tmp_path / "train.jsonl", rows[40:])
    few, again = (split(train, path, rows=7).test for path in (test, turned))
    assert len(few) == 7 and contents(few) == contents(again)
    assert draw(few, 100) == few


def test_fingerprint_depends_on_the_training_examples(tmp_path, rows):
    one = split(write(tmp_path / "a.jsonl", rows)).fingerprint
    assert one == split(write(tmp_path / "b.jsonl", rows)).fingerprint
    assert one != split(write(tmp_path / "c.jsonl", [row | {"label": "b"} for row in rows])).fingerprint


def test_pattern_columns_may_contain_dots_and_are_not_expanded_twice():
    row = {"a": 1, "b.c": "two", "d": "{a}"}
    assert fill("{a} and {b.c}: {d} {{x}}", row, "config.task.input") == "1 and two: {a} {x}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [{"txt": "x", "label": "a"}], "row 1: no 'text'; columns found: txt, label; set config"),
        (lambda rows: [*rows, {"text": "x", "class": "a"}], "row 81: no 'label'; columns found: text, class"),
        (lambda rows: [{"text": " ", "label": "a"}], "row 1: 'text' is empty; expected text"),
        (lambda rows: rows[:1], "expected at least one each"),
    ],
)  # fmt: skip
def test_bad_rows_are_one_line_errors(tmp_path, rows, change, message):
    with pytest.raises(UserError, match=message) as caught:
        split(write(tmp_path / "bad.jsonl", change(rows)))
    assert "\n" not in str(caught.value)
