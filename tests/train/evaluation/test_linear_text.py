"""A linear model of texts is the same after it was saved, and a damaged file is one line."""

import sys

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import FeatureUnion
from sklearn.svm import LinearSVC

from configs.errors import UserError
from train.evaluation.linear_text import fit_linear_text, read_linear_text

TEXTS = [
    "I lost my card",
    "my card is lost!",
    "what is the rate?",
    "rate of the day",
    "Ünïcode \ud800 card",
    "漢字 rate",
]
LABELS = ["card", "card", "rate", "rate", "card", "rate"]
THREE = ["card", "card", "rate", "rate", "a\nb", "a\nb"]


@pytest.mark.parametrize("labels", [LABELS, THREE])
def test_margins_are_those_of_scikit_learn(labels):
    model = fit_linear_text((TEXTS, labels), (TEXTS, labels))
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\w+|[^\w\s]")
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    features = FeatureUnion([("words", words), ("characters", characters)]).fit(TEXTS)
    others = ["the card", "a rate a day", ""]
    expected = []
    for strength in (0.1, 1.0, 10.0):
        svm = LinearSVC(C=strength, random_state=0, max_iter=2000).fit(features.transform(TEXTS), labels)
        found = svm.decision_function(features.transform(others))
        expected.append(np.stack([-found, found], -1) if found.ndim == 1 else found)
    margins = model.margins(others, model.classes)
    assert min(np.abs(margins - each).max() for each in expected) < 2e-3  # the weights have the precision of float16


@pytest.mark.parametrize("labels", [LABELS, THREE])
def test_a_saved_model_gives_the_same_margins(labels):
    model = fit_linear_text((TEXTS, labels), (TEXTS, labels))
    copy = read_linear_text(model.to_bytes(), "file")
    assert copy.classes == model.classes
    others = [*TEXTS, "a new card\nand a rate", ""]
    np.testing.assert_array_equal(copy.margins(others, model.classes), model.margins(others, model.classes))
    assert copy.to_bytes() == model.to_bytes()


def test_margins_are_in_the_order_of_the_classes_asked_for():
    model = fit_linear_text((TEXTS, THREE), (TEXTS, THREE))
    own = model.margins(TEXTS, model.classes)
    found = model.margins(TEXTS, ("rate", "unheard", "card"))
    places = [model.classes.index("rate"), model.classes.index("card")]
    np.testing.assert_array_equal(found[:, [0, 2]], own[:, places])
    np.testing.assert_array_equal(found[:, 1], own.min(-1))


@pytest.mark.parametrize("damage", [lambda data: data[:-40], lambda data: b"not an archive", lambda data: b""])
def test_a_damaged_file_is_an_error(damage):
    data = fit_linear_text((TEXTS, LABELS), (TEXTS, LABELS)).to_bytes()
    with pytest.raises(
        UserError, match=r"run/linear_model.npz is corrupt: .*; run the same `rootstock finetune` again"
    ):
        read_linear_text(damage(data), "run/linear_model.npz")


def test_a_machine_without_scikit_learn_is_told_what_to_install(monkeypatch):
    data = fit_linear_text((TEXTS, LABELS), (TEXTS, LABELS)).to_bytes()
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(UserError, match=r"^file needs scikit-learn: pip install -e '.\[tasks\]'$"):
        read_linear_text(data, "file")
