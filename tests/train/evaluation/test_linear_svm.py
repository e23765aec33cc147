"""The SVM baselines learn simple rules, choose C on validation rows, and read nothing of the rows they predict."""

import random

import numpy as np
import pytest

from train.evaluation import linear_svm
from train.evaluation.linear_text import fit_linear_text

WORDS = {"animal": "cat dog cow pig".split(), "plant": "oak elm ash fir".split(), "stone": "gneiss slate chalk".split()}


def texts(count, seed, names=tuple(WORDS)):
    rng = random.Random(seed)
    rows = [(name := names[i % len(names)], " ".join(rng.choices(WORDS[name], k=3))) for i in range(count)]
    return [text for _, text in rows], [name for name, _ in rows]


@pytest.mark.parametrize("names", [("animal", "plant"), ("animal", "plant", "stone")])
def test_classes_are_ranked(names):
    test, expected = texts(30, 3, names)
    rankings = fit_linear_text(texts(60, 1, names), texts(20, 2, names)).ranked(test)
    assert [ranking[0] for ranking in rankings] == expected
    assert all(sorted(ranking) == sorted(names) for ranking in rankings)


def test_several_classes_may_be_none():
    (a, labels), (b, more) = texts(60, 1), texts(30, 2)
    several = (
        [[] if name == "stone" else [name] for name in labels],
        [[] if name == "stone" else [name] for name in more],
    )
    test, expected = texts(30, 3)
    found = linear_svm.several_classes((a, several[0]), (b, several[1]), test)
    assert found == [[] if name == "stone" else [name] for name in expected]
    # Labels that only validation rows have, and a class that all rows have.
    odd = linear_svm.several_classes((a, [["all", *names] for names in several[0]]), (b, [["new"]] * len(b)), test)
    assert all("all" in names for names in odd)


def test_words_are_tagged():
    def sentences(count, seed):
        rng = random.Random(seed)
        names = [word for words in WORDS.values() for word in words]
        words = [[rng.choice(names) for _ in range(4)] for _ in range(count)]
        return words, [["A" if word in WORDS["animal"] else "O" for word in sentence] for sentence in words]

    test, expected = sentences(10, 3)
    assert linear_svm.tag_words(sentences(40, 1), sentences(10, 2), test) == expected


@pytest.mark.parametrize("odd", [["", "  "], ["!!", "?"], ["漢字", "かな"]])
def test_texts_without_words_are_no_error(odd):
    found = fit_linear_text((["!", "?", "cat", "."], ["a", "b", "b", "a"]), (odd, ["a", "b"]))
    assert len(found.ranked(odd)) == 2


def test_the_strength_is_chosen_on_validation_rows(monkeypatch):
    """With C of the training labels' noise, the validation rows decide; other validation labels decide otherwise."""
    seen = []
    monkeypatch.setattr(
        linear_svm, "_best", lambda models, scores: seen.append(scores) or models[int(np.argmax(scores))]
    )
    train, validation = texts(60, 1), texts(20, 2)
    fit_linear_text(train, validation)
    fit_linear_text(train, (validation[0], ["stone"] * 20))
    assert len(seen[0]) == len(linear_svm.STRENGTHS) and seen[0] != seen[1]


def test_rows_to_predict_change_nothing_for_each_other():
    train, validation, (test, _) = texts(60, 1), texts(20, 2), texts(9, 3)
    poison = ["cat oak gneiss unheard words " * 30] * 50
    model = fit_linear_text(train, validation)
    assert model.ranked(test + poison)[:9] == model.ranked(test)
