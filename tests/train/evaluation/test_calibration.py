"""Temperature, Brier score, calibration error, thresholds, sets of classes and ranks, on decisions with known odds."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from train.evaluation import calibration
from train.evaluation.calibration import UNSEEN, Decisions, joined

CLASSES = {"two": 2, "five": 5, "many": 40}


def drawn(classes, count=3000, factor=1.0, seed=0):
    """Returns decisions whose labels have the probabilities of the logits, which are then multiplied by a factor."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(count, classes))
    labels = np.array([rng.choice(classes, p=p) for p in calibration.softmax(logits)])
    return Decisions((factor * logits).astype(np.float32), labels, np.arange(count))


@pytest.mark.integration
@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("classes", CLASSES.values(), ids=CLASSES)
def test_the_temperature_undoes_a_factor(classes, factor):
    decisions = drawn(classes, factor=factor)
    found = calibration.fit_temperature(decisions)
    assert found == pytest.approx(factor, rel=0.1)
    names = range(classes)
    before, after = (log_loss(decisions.labels, decisions.probabilities(t), labels=names) for t in (1.0, found))
    assert after <= before + 1e-9
    if factor != 1.0:
        assert calibration.brier_score(decisions, found).value < calibration.brier_score(decisions, 1.0).value
        before, after = (calibration.calibration_error(decisions, t) for t in (1.0, found))
        assert after.value < 0.04 < 0.06 < before.value


def test_scores_of_certain_decisions():
    logits = np.array([[50.0, 0.0], [0.0, 50.0], [50.0, 0.0], [50.0, 0.0]])
    for labels, brier, error in (([0, 1, 0, 0], 0.0, 0.0), ([1, 0, 1, 1], 2.0, 1.0), ([0, 1, 1, UNSEEN], 1.0, 0.5)):
        decisions = Decisions(logits, np.array(labels), np.arange(4))
        assert calibration.brier_score(decisions, 1.0).value == pytest.approx(brier)
        assert calibration.calibration_error(decisions, 1.0).value == pytest.approx(error)
    assert calibration.fit_temperature(Decisions(logits, np.full(4, UNSEEN), np.arange(4))) == 1.0


def test_few_rows_fit_no_temperature():
    """Of 60 calibrated rows the best temperature differs from 1 by chance, and would make other rows worse."""
    found = [calibration.fit_temperature(drawn(8, count=60, seed=seed)) for seed in range(40)]
    assert sum(temperature == 1.0 for temperature in found) >= 34


@pytest.mark.parametrize("count", [1, 5, 10, 20, 40, 1000])
def test_rows_without_an_error_do_not_make_the_model_certain(count):
    """Their log loss falls with the temperature down to 0; but 9 of 10 predictions with p=0.9 are right by chance."""
    logits = np.tile([0.0, np.log(9.0)], (count, 1))
    found = calibration.fit_temperature(Decisions(logits, np.ones(count, int), np.arange(count)))
    sure = calibration.softmax(logits / found).max()
    assert (found == 1.0) == (count <= 20)
    # As sure as if of ten more rows nine were right.
    assert sure == pytest.approx(0.9 if count <= 20 else (count + 9) / (count + 10), abs=1e-3)
    words = Decisions(np.repeat(logits, 9, 0), np.ones(9 * count, int), np.repeat(np.arange(count), 9))
    assert calibration.fit_temperature(words) == pytest.approx(found, abs=1e-3)


@pytest.mark.parametrize("count", [5, 10, 20, 100, 1000])
def test_a_temperature_does_not_spoil_calibrated_probabilities(count):
    new = drawn(8, seed=99)
    seeds = range(20 if count < 1000 else 2)
    found = [calibration.fit_temperature(drawn(8, count=count, seed=seed)) for seed in seeds]
    errors = {temperature: calibration.calibration_error(new, temperature).value for temperature in {1.0, *found}}
    assert np.mean([errors[temperature] for temperature in found]) <= errors[1.0] + 0.005


def test_calibration_error_is_that_of_the_bins():
    decisions = drawn(5, factor=3.0)
    bins = calibration.reliability(decisions, 1.0)
    total = sum(b.decisions for b in bins)
    assert total == len(decisions.labels)
    expected = sum(b.decisions * abs(b.accuracy - b.confidence) for b in bins) / total
    assert calibration.calibration_error(decisions, 1.0).value == pytest.approx(expected)
    # A probability of exactly 1 is in the last bin.
    sure = Decisions(np.array([[900.0, 0.0]]), np.array([0]), np.array([0]))
    assert calibration.reliability(sure, 1.0) == [(1, 1.0, 1.0)]


def test_several_decisions_of_an_example_are_resampled_together():
    one = drawn(2, count=40)
    repeated = Decisions(np.repeat(one.logits, 25, 0), np.repeat(one.labels, 25), np.repeat(one.rows, 25))
    for score in (calibration.brier_score, calibration.calibration_error):
        a, b = score(one, 1.0), score(repeated, 1.0)
        assert b[:3] == pytest.approx(a[:3])
    parts = joined([(one.logits[:3], one.labels[:3]), (one.logits[3:4], one.labels[3:4])])
    assert parts.rows.tolist() == [0, 0, 0, 1]


def test_the_sure_rows_are_more_accurate():
    rows = calibration.answered(drawn(5), 1.0)
    assert rows[0].share == 1.0
    assert all(a.share >= b.share and b.accuracy >= b.threshold - 0.05 for a, b in itertools.pairwise(rows))
    nobody = calibration.answered(Decisions(np.zeros((3, 2)), np.zeros(3, int), np.arange(3)), 1.0)
    assert [row.accuracy for row in nobody if row.threshold > 0.5] == [None] * 6


@pytest.mark.integration
@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("classes", CLASSES.values(), ids=CLASSES)
def test_sets_contain_the_right_class_of_new_rows(classes, coverage):
    """Over many splits the mean coverage is what was asked for: at least that, and not much more."""
    decisions, found, sizes = drawn(classes, count=8000, factor=2.0), [], []
    for start in range(0, 8000, 800):
        known, new = (
            Decisions(decisions.logits[part], decisions.labels[part], np.arange(400))
            for part in (slice(start, start + 400), slice(start + 400, start + 800))
        )
        temperature = calibration.fit_temperature(known)
        held_out = calibration.label_probabilities(known, temperature)
        sets = calibration.score_sets(new, temperature, calibration.set_threshold(held_out, coverage))
        found.append(sets.coverage.value)
        sizes.append(sets.size.value)
    assert coverage - 0.015 <= np.mean(found) <= coverage + 0.03 or np.mean(sizes) == 1.0
    assert 1.0 <= np.mean(sizes) <= classes


def test_too_few_rows_give_sets_of_all_classes():
    assert calibration.set_threshold([0.1, 0.2, 0.9], 0.95) == 0.0
    assert calibration.set_threshold([0.1 * i for i in range(1, 10)], 0.9) == pytest.approx(0.1)
    lost = Decisions(np.zeros((30, 2)), np.full(30, UNSEEN), np.arange(30))
    assert calibration.set_threshold(calibration.label_probabilities(lost, 1.0), 0.9) == 0.0


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_rank_area_is_that_of_scikit_learn(decimals):
    rng = np.random.default_rng(1)
    positive = rng.random(300) < 0.2
    scores = np.round(rng.normal(size=300) + positive, decimals)
    found = calibration.rank_area(scores, positive)
    assert found.value == pytest.approx(roc_auc_score(positive, scores))
    assert found.low < found.value < found.high
    assert np.isnan(calibration.rank_area(scores, np.zeros(300, bool)).value)


def test_sigmoid_and_softmax_do_not_overflow():
    assert calibration.sigmoid(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 0.5, 1.0]
    assert calibration.softmax(np.array([1e4, -1e4])).tolist() == [1.0, 0.0]
