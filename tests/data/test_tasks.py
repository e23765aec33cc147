"""Labelled rows: no text on both sides of a split, labels only where they are targets, faults in one line."""

import json

import numpy as np
import pytest

from configs.errors import UserError
from data.tasks import Example, classification_data, classification_rows, fold
from data.tokenizer import train_tokenizer


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def split(path, test="", fraction=0.3):
    return classification_data(path, test, "text", "label", fraction)


@pytest.fixture
def rows():
    return [{"text": f"message number {i}", "label": "ab"[i % 2]} for i in range(60)]


def test_no_text_stands_on_both_sides(tmp_path, rows):
    repeated = rows + [{"text": row["text"].upper() + "  ", "label": row["label"]} for row in rows]
    data = split(write(tmp_path / "all.jsonl", repeated))
    train, test = ({fold(e.text) for e in part} for part in (data.train, data.test))
    assert len(train) + len(test) == 60 == len(data.train) + len(data.test)
    assert not train & test and 8 < len(test) < 30


def test_adding_a_row_moves_no_other(tmp_path, rows):
    before = split(write(tmp_path / "a.jsonl", rows))
    after = split(write(tmp_path / "b.jsonl", [{"text": "a new one", "label": "a"}, *rows]))
    assert {e.text for e in before.test} <= {e.text for e in after.test}
    assert {e.text for e in before.train} <= {e.text for e in after.train}


def test_training_rows_that_repeat_a_held_out_one_are_dropped(tmp_path, rows):
    data = split(write(tmp_path / "train.jsonl", rows), write(tmp_path / "test.jsonl", rows[:10]))
    assert len(data.train) == 50 and len(data.test) == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [{"txt": "x", "label": "a"}], r"row 1 has no 'text'; fields found: txt, label"),
        (lambda rows: [{"text": "x", "class": "a"}], r"row 1 has no 'label'; fields found: text, class"),
        (lambda rows: [row | {"label": "a"} for row in rows], "one class only"),
        (lambda rows: rows[:1], "legal: at least one each"),
    ],
)
def test_faults_are_one_line(tmp_path, rows, change, message):
    with pytest.raises(UserError, match=message) as caught:
        split(write(tmp_path / "bad.jsonl", change(rows)))
    assert "\n" not in str(caught.value)


def test_a_label_seen_only_in_the_test_split_is_an_error(tmp_path, rows):
    test = write(tmp_path / "test.jsonl", [{"text": "new", "label": "c"}])
    with pytest.raises(UserError, match=r"test.jsonl: label 'c' is only among held-out rows; known: a, b"):
        split(write(tmp_path / "train.jsonl", rows), test)


def test_rows_hold_each_example_with_its_class_at_its_last_token():
    examples = [Example("abc" * (i % 5 + 1), "xyz"[i % 3]) for i in range(40)]
    tokenizer = train_tokenizer("bytes", [])
    rows = classification_rows(examples, ["x", "y", "z"], tokenizer, 24, seed=0)
    batch = rows.rows(np.arange(len(rows)))
    last = batch["weights"] == 1
    assert last.sum() == 40 and (batch["tokens"][last] == tokenizer.eos_id).all()
    assert [examples[i].label for i in rows.order] == ["xyz"[t] for t in batch["targets"][last]]
    assert (batch["targets"][~last] == 0).all()
    first = rows.order[0]
    text = tokenizer.decode(batch["tokens"][0][batch["segment_ids"][0] == 1].tolist())
    assert text == examples[first].text


def test_long_texts_are_cut_counted_and_keep_their_end_token():
    tokenizer = train_tokenizer("bytes", [])
    rows = classification_rows([Example("x" * 100, "a"), Example("y", "b")], ["a", "b"], tokenizer, 16, seed=0)
    assert rows.truncated == 1 and len(rows.tokens[0]) == 16
    assert rows.tokens[0][0] == tokenizer.bos_id and rows.tokens[0][-1] == tokenizer.eos_id


def test_an_unknown_label_at_evaluation_is_an_error():
    with pytest.raises(UserError, match="label 'q' is unknown to the model; its classes: a, b"):
        classification_rows([Example("x", "q")], ["a", "b"], train_tokenizer("bytes", []), 16, seed=0)
