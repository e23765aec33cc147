"""Suspicious labels: planted ones are found in real and made data, right ones and rare classes are left alone."""

import json
import random

import pytest

from tests.runs import ROOT
from train.evaluation import label_errors
from train.evaluation.label_errors import MIN_CLASS_ROWS, suspicious_labels

SHARED = ROOT.parent / "shared" / "data"
WORDS = {"animal": "cat dog cow hen pig", "tree": "oak elm ash fir yew", "stone": "slate chalk marble flint jade"}


def made(count, seed=0):
    """Returns (texts, labels) of three classes, each with its own words beside common ones."""
    rng = random.Random(seed)
    labels = [rng.choice([*WORDS]) for _ in range(count)]
    texts = [
        " ".join(rng.sample([*rng.choices(WORDS[label].split(), k=4), *"the of and with".split()], 8))
        for label in labels
    ]
    return texts, labels


def planted(labels, part, seed=0):
    """Returns (labels of which a part is wrong, the rows that are)."""
    rng, names = random.Random(seed), sorted(set(labels))
    rows = sorted(rng.sample(range(len(labels)), int(part * len(labels))))
    given = [rng.choice([n for n in names if n != label]) if i in rows else label for i, label in enumerate(labels)]
    return given, rows


def precision_and_recall(texts, labels, part=0.03):
    given, rows = planted(labels, part)
    found = suspicious_labels(texts, given, texts)
    hits = [s for s in found if s.row in rows]
    return len(hits) / max(len(found), 1), len(hits) / len(rows), [labels[s.row] == s.suggested for s in hits]


@pytest.mark.parametrize("characters", [True, False])
def test_planted_labels_are_found_with_the_right_class(monkeypatch, characters):
    monkeypatch.setattr(label_errors, "_EFFORTS", ((10**9, 5, characters),))
    precision, recall, right = precision_and_recall(*made(400))
    assert precision > 0.9 and recall > 0.9 and all(right)


def test_of_right_labels_none_is_suspicious():
    texts, labels = made(400)
    assert suspicious_labels(texts, labels, texts) == []


def test_the_most_suspicious_row_is_first():
    texts, labels = made(400)
    found = suspicious_labels(texts, planted(labels, 0.1)[0], texts)
    ratios = [s.label_probability / s.suggested_probability for s in found]
    assert len(found) > 10 and ratios == sorted(ratios)


@pytest.mark.parametrize("rows", [1, 2, MIN_CLASS_ROWS - 1])
def test_the_rows_of_a_rare_class_are_not_judged(rows):
    texts, labels = made(300)
    labels[:rows] = ["rare"] * rows
    assert not {s.row for s in suspicious_labels(texts, labels, texts)} & set(range(rows))


def test_a_class_in_one_group_is_not_judged_because_no_other_fold_has_it():
    texts, labels = made(300)
    labels[:20] = ["contract"] * 20
    groups = ["one" if label == "contract" else text for text, label in zip(texts, labels, strict=True)]
    assert not {s.row for s in suspicious_labels(texts, labels, groups)} & set(range(20))


def test_one_class_only_has_no_suspicious_label():
    assert suspicious_labels(["a", "b"], ["x", "x"], ["a", "b"]) == []


@pytest.mark.parametrize(("name", "precision", "recall"), [("sms_spam", 0.9, 0.6)])
def test_labels_planted_in_real_rows_are_found(name, precision, recall):
    file = SHARED / name / "all.jsonl"
    if not file.exists():
        pytest.skip("the shared data is absent")
    rows = {row["text"].lower(): row for row in map(json.loads, file.read_text().splitlines())}
    texts, labels = zip(*((row["text"], row["label"]) for row in rows.values()), strict=True)
    found = precision_and_recall(texts, labels)
    assert found[0] >= precision and found[1] >= recall
