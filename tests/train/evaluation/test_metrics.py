"""Metrics equal known or library values; fast resampling equals the direct computation."""

import itertools
import random

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import f1_score

from data.labeled import Example
from train.evaluation import metrics
from train.evaluation.interval import Interval, bootstrap, gain, interval, mean_interval, resamples
from train.evaluation.squad import exact_match, normalize, token_f1
from train.tasks.generation import Generation


def test_interval_is_the_percentiles_of_the_resamples():
    values = np.random.default_rng(0).random(200)
    found = mean_interval(values, better="lower")
    plain = bootstrap(lambda rows: float(values[rows].mean()), 200, better="lower")
    np.testing.assert_allclose(found[:3], plain[:3])
    assert found.better == "lower" and found.low < found.value < found.high
    # About 1.96 standard errors on either side.
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 200**0.5, rel=0.1)
    assert mean_interval([1.0] * 5)[:3] == (1.0, 1.0, 1.0)


def test_mean_of_many_rows_in_chunks_equals_the_direct_mean():
    values = np.random.default_rng(0).random(10_000)
    means = values[resamples(10_000)].mean(-1)
    np.testing.assert_allclose(mean_interval(values)[:3], interval(values.mean(), means)[:3])


def test_gain_respects_which_direction_is_better():
    up = gain(Interval(0.2, 0.1, 0.3), Interval(0.5, 0.4, 0.6))
    assert up == {"relative_gain": pytest.approx(1.5), "intervals_overlap": False}
    down = gain(Interval(4.0, 3.9, 4.1, "lower"), Interval(3.0, 2.9, 3.1, "lower"))
    assert down == {"relative_gain": pytest.approx(0.25), "intervals_overlap": False}
    assert gain(Interval(0.2, 0.1, 0.3), Interval(0.4, 0.3, 0.5))["intervals_overlap"]
    worse = gain(Interval(0.5, 0.4, 0.6), Interval(0.2, 0.1, 0.3))
    assert worse["relative_gain"] == pytest.approx(-0.6) and not worse["intervals_overlap"]
    for value in (0.0, -0.5):
        assert gain(Interval(value, value, value), Interval(1.0, 1.0, 1.0))["relative_gain"] is None


@pytest.mark.integration
def test_classification_metrics_and_resamples_equal_scikit_learn():
    rng = np.random.default_rng(0)
    names = [f"c{i}" for i in range(9)]
    labels = [names[i] for i in rng.integers(0, 7, 150)]
    rankings = [[label if rng.random() < 0.7 else names[rng.integers(9)], *rng.permutation(names)] for label in labels]
    found = metrics.classification(labels, rankings)
    predicted = np.array([ranking[0] for ranking in rankings])
    y, classes = np.array(labels), np.unique(labels)

    def macro(rows):
        return f1_score(y[rows], predicted[rows], labels=np.unique(y[rows]), average="macro", zero_division=0)

    plain = [macro(rows) for rows in resamples(150)[:40]]
    drawn = metrics._macro_f1(y, predicted, classes)
    assert found["macro_f1"] == drawn and drawn.value == pytest.approx(macro(np.arange(150)))
    assert min(plain) - 0.1 < drawn.low < drawn.value < drawn.high < max(plain) + 0.1
    np.testing.assert_allclose(
        drawn[1:3], interval(drawn.value, [macro(rows) for rows in resamples(150)])[1:3], atol=1e-6
    )
    assert found["accuracy"].value == pytest.approx((y == predicted).mean())
    assert found["top_3"].value >= found["accuracy"].value
    counts = metrics.confusion(labels, predicted.tolist(), names)
    assert counts.sum() == 150 and np.trace(counts) == (y == predicted).sum()


def test_multi_label_metrics():
    found = metrics.multi_label([{"a"}, {"a", "b"}, set()], [{"a"}, {"b"}, {"c"}])
    # 2 correct of 3 predicted and 3 expected.
    assert found["micro_f1"].value == pytest.approx(2 * 2 / (3 + 3))
    assert found["exact_match"].value == pytest.approx(1 / 3)
    assert found["macro_f1"].value == pytest.approx((2 / 3 + 1) / 2)
    assert metrics.multi_label([set()] * 2, [set()] * 2)["micro_f1"][:3] == (0.0, 0.0, 0.0)
    one = metrics.multi_label([{"a"}, set(), {"a"}], [{"a"}, set(), set()])
    assert one["micro_f1"].value == one["macro_f1"].value == pytest.approx(2 / 3)


@pytest.mark.slow
def test_multi_label_resamples_equal_scikit_learn():
    rng = np.random.default_rng(0)
    y, p = rng.random((2, 60, 4)) < 0.4
    y[:, 3] = False
    found = metrics.multi_label(*([{f"c{i}" for i in np.flatnonzero(row)} for row in rows] for rows in (y, p)))
    for average, columns in (("micro", 4), ("macro", 3)):

        def plain(rows, average=average, columns=columns):
            return f1_score(y[rows, :columns], p[rows, :columns], average=average, zero_division=0)

        np.testing.assert_allclose(found[f"{average}_f1"][:3], bootstrap(plain, 60)[:3], atol=1e-6)


def test_regression_and_tagging_metrics():
    found = metrics.regression([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 3.0])
    assert found["mean_absolute_error"].value == 0.25 and found["mean_absolute_error"].better == "lower"
    assert found["r2"].value == pytest.approx(1 - 1 / 5)
    assert metrics.regression([1.0, 2.0], [0.0, 0.0])["spearman"].value == 0.0
    tags = metrics.tagging([["O", "N"], ["V"]], [["O", "N"], ["N"]])
    assert tags["accuracy"].value == pytest.approx(2 / 3)
    assert tags["macro_f1"].value == pytest.approx((2 / 3 + 0) / 2)
    assert set(metrics.tagging([["O"]], [["O"]])) == {"accuracy"}


def test_tags_are_resampled_by_sentences():
    """The words of one are right together here, so that a resample of words would tell a third of the width."""
    right = np.random.default_rng(0).random(80) < 0.7
    labels = [["N", "O", "V"] * 3 for _ in right]
    found = metrics.tagging(labels, [row if ok else ["X"] * 9 for row, ok in zip(labels, right, strict=True)])
    np.testing.assert_allclose(found["accuracy"][:3], mean_interval(right)[:3], atol=1e-6)
    rows = resamples(80)
    hits = right[rows].mean(-1)
    # Precision is 1 and recall the part that is right.
    expected = interval(found["macro_f1"].value, 2 * hits / (1 + hits))
    np.testing.assert_allclose(found["macro_f1"][1:3], expected[1:3], atol=1e-6)
    uneven = metrics.tagging([["N"], [], ["V"] * 3], [["N"], [], ["N"] * 3])
    assert uneven["accuracy"].value == 0.25 and np.isfinite(uneven["macro_f1"][:3]).all()


def test_texts():
    rouge = metrics.rouge([["the cat sat"], ["no", "a dog ran"]], ["the cat", "dogs ran"])
    assert rouge["rouge_1"].value == pytest.approx((0.8 + 0.8) / 2)
    assert rouge["rouge_2"].value == pytest.approx((2 / 3 + 1 / 2) / 2, abs=0.26)
    same = metrics.bleu_chrf([["the cat sat on the mat"]] * 4, ["the cat sat on the mat"] * 4)
    assert same["bleu"].value == pytest.approx(100) and same["chrf"].value == pytest.approx(100)
    several = metrics.bleu_chrf([["a b c d", "e f g h"], ["a b c d"]], ["e f g h", "a b c d"])
    assert several["bleu"].value == pytest.approx(100) and type(several["chrf"].low) is float
    assert metrics.bleu_chrf([["a b c d"]] * 3, ["x y z w"] * 3)["bleu"].value < 5


OTHER_SCRIPTS = {
    "Japanese": "東京で会議が開かれた",
    "Russian": "встреча прошла в москве",
    "Arabic": "عقد الاجتماع أمس هنا",
    "Hindi": "बैठक कल दिल्ली में हुई",
    "Thai": "การประชุมจัดขึ้นที่นี่",
    "German": "Übergrößen für ältere Männer",
}


@pytest.mark.parametrize("text", OTHER_SCRIPTS.values(), ids=OTHER_SCRIPTS)
def test_texts_of_any_script_are_scored(text):
    for name, figure in (metrics.rouge([[text]], [text]) | metrics.bleu_chrf([[text]], [text])).items():
        assert figure.value == pytest.approx(1 if name.startswith("rouge") else 100), name
    assert metrics.rouge([[text]], ["?! — …"])["rouge_1"].value == 0


def test_words_that_differ_in_an_umlaut_or_a_vowel_sign_are_not_equal():
    assert metrics.rouge([["für Öl"]], ["for Ol"])["rouge_1"].value == 0
    assert metrics.rouge([["की"]], ["का"])["rouge_1"].value == 0


def test_rouge_of_ascii_texts_is_that_of_rouge_score():
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    rng = random.Random(0)
    alphabet = [chr(code) for code in range(128)] + list("aaeeiinnggsst    ")
    texts = ["".join(rng.choices(alphabet, k=60)) for _ in range(40)]
    texts += ["The cats' 3.5% running_costs -- don't!", "The cat ran; running costs: 3.5 don t", "", "?!"]
    for reference, text in itertools.pairwise(texts + [t[:40] + u[40:] for t, u in itertools.pairwise(texts)]):
        expected = scorer.score(reference, text)
        found = metrics.rouge([[reference]], [text])
        assert [f.value for f in found.values()] == [score.fmeasure for score in expected.values()]


@pytest.mark.parametrize("references", [[["a b c d"], []], [[], ["a b c d", "e f g h"]], [[], []]])
@pytest.mark.parametrize("texts", [["a b c d", "a b c d"], ["", ""]])
def test_rows_without_a_reference_or_a_text_are_scored(references, texts):
    found = [metrics.rouge(references, texts), metrics.bleu_chrf(references, texts), metrics.squad(references, texts)]
    assert all(np.isfinite(figure[:3]).all() for figures in found for figure in figures.values())
    assert bool(found[0]["rouge_1"].value) == bool(any(references) and texts[0])


def test_a_generation_row_without_an_answer_expects_the_text_that_it_trains():
    task = Generation("plain", ("rouge", "bleu", "squad"), "{input}")
    examples = [Example("", "", {"input": "a", "references": right}) for right in (["a b c d"], [])]
    found = task.metrics(examples, ["a b c d", "no answer"])
    assert found["rouge_1"].value == found["exact_match"].value == 1 and found["chrf"].value == pytest.approx(100)


def test_squad_metrics_follow_the_official_script():
    assert normalize("The  Cat's, an owl!") == "cats owl"
    assert exact_match("the Cat", "cat.") == 1.0 and exact_match("cat", "dog") == 0.0
    assert token_f1("the black cat", "a cat sat") == pytest.approx(0.5)
    assert token_f1("", "") == 1.0 and token_f1("", "x") == 0.0
    found = metrics.squad([["a cat", "Tom"], [], []], ["tom", "", "x"])
    assert found["exact_match"].value == pytest.approx(2 / 3) and found["no_answer_accuracy"].value == 0.5
    assert set(metrics.squad([["a b"]], ["a b"])) == {"exact_match", "f1"}
    assert set(metrics.squad([[]], ["a b"])) == {"exact_match", "f1", "no_answer_accuracy"}
    # Questions with an answer are scored apart: here the mean of "tom" (1) and "black cat" (F1 2/3).
    found = metrics.squad([["a cat", "Tom"], ["cat"], [], []], ["tom", "black cat", "", ""])
    assert found["answerable_exact_match"].value == 0.5 and found["answerable_f1"].value == pytest.approx(5 / 6)
    assert found["f1"].value == pytest.approx((5 / 3 + 2) / 4) and found["no_answer_accuracy"].value == 1.0
    # An article alone counts as no answer, predicted or expected.
    found = metrics.squad([["the", "owl"], []], ["the", "the"])
    assert found["exact_match"].value == 0.5 and found["no_answer_accuracy"].value == 1.0
