"""What a learning curve says: gains by intervals, where it is flat, and which models are compared."""

import pytest

from train.evaluation.interval import Interval
from train.learning_curve.curve import Point, against, flat_from, gain, helped, is_flat, mean, verdict
from train.learning_curve.sweep import label_counts


def seeds(*values, half=0.01, better="higher"):
    return [Interval(value, value - half, value + half, better) for value in values]


def point(labels, tuned, other=(0.5, 0.5), rows=100):
    return Point(labels, rows, {"svm": seeds(*other), "fine-tuned": seeds(*tuned)})


def test_the_interval_of_a_mean_has_test_rows_and_seeds():
    rows_only = mean(seeds(0.8, 0.8, 0.8, half=0.02))
    assert (rows_only.value, rows_only.low, rows_only.high) == pytest.approx((0.8, 0.78, 0.82))
    # Standard deviation 0.1 of three seeds: 1.96 * 0.1 / sqrt(3), beside half a percent of the rows.
    spread = mean(seeds(0.7, 0.8, 0.9, half=0.005))
    assert spread.high - spread.value == pytest.approx((0.005**2 + (1.96 * 0.1) ** 2 / 3) ** 0.5)


def test_the_interval_of_a_share_stays_between_0_and_1():
    found = mean(seeds(0.2, 0.8))
    assert (found.low, found.high) == (0.0, 1.0)
    assert mean(seeds(1.2, 1.8)).high > 2


def test_a_gain_pairs_the_seeds():
    """Seeds that are equally much better at both points say nothing against the gain."""
    found = gain(seeds(0.6, 0.7, 0.8), seeds(0.65, 0.75, 0.85))
    assert found.value == pytest.approx(0.05) and found.high - found.value == pytest.approx(0.01 * 2**0.5)
    assert helped(seeds(0.6, 0.7, 0.8), seeds(0.65, 0.75, 0.85))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (seeds(0.5, 0.5), seeds(0.6, 0.6), True),
        (seeds(0.5, 0.5), seeds(0.51, 0.51), False),
        (seeds(0.5, 0.5), seeds(0.4, 0.4), False),
        (seeds(0.5), seeds(0.9), False),
        (seeds(0.5, 0.5, 0.5), seeds(0.9), False),
        (seeds(2.0, 2.0, better="lower"), seeds(1.5, 1.5, better="lower"), True),
        (seeds(1.5, 1.5, better="lower"), seeds(2.0, 2.0, better="lower"), False),
        (seeds(0.5, 0.5), seeds(0.2, 1.0), False),
    ],
)
def test_a_gain_is_clear_above_its_interval_with_two_seeds(before, after, expected):
    assert helped(before, after) is expected


@pytest.mark.parametrize(
    ("values", "flat", "start"),
    [
        ([0.5, 0.6], False, 1),
        ([0.5, 0.6, 0.6], False, 1),
        ([0.5, 0.6, 0.6, 0.6], True, 1),
        # Two steps of which neither is clear alone, but both together are.
        ([0.5, 0.6, 0.61, 0.62], False, 2),
        ([0.5, 0.6, 0.6, 0.7], False, 3),
        ([0.6, 0.5, 0.4], True, 0),
    ],
)
def test_a_curve_is_flat_after_two_steps_without_a_gain(values, flat, start):
    curve = [seeds(value, value) for value in values]
    assert (is_flat(curve), flat_from(curve)) == (flat, start)


def test_the_verdict_says_whether_more_labels_help():
    rising = [point(8, (0.5, 0.5)), point(0, (0.7, 0.7), rows=1234)]
    assert verdict(rising, "fine-tuned", "accuracy", False) == (
        "more labels help: from 8 labels per class to all 1,234 labels, accuracy of the fine-tuned model went from "
        "0.500 to 0.700, a gain of +0.200 [+0.186, +0.214]"
    )
    flat = [point(8, (0.5, 0.5)), point(32, (0.7, 0.7)), point(128, (0.7, 0.7)), point(512, (0.7, 0.7))]
    found = verdict(flat, "fine-tuned", "accuracy", True)
    assert found.startswith("more labels do not help from 32 labels per class on: up to 512 labels per class, accuracy")
    assert found.endswith("which may be chance; the remaining points are skipped")


@pytest.mark.parametrize(
    ("tuned", "expected"),
    [
        ((0.4, 0.6, 0.7), "the fine-tuned model is clearly better than svm from 32 labels per class on"),
        ((0.6, 0.4, 0.7), "the fine-tuned model is clearly better than svm from all 100 labels on"),
        ((0.6, 0.6, 0.7), "the fine-tuned model is clearly better than svm from 8 labels per class on"),
        ((0.6, 0.6, 0.5), "with all 100 labels, the fine-tuned model is not clearly better than svm"),
        ((0.6, 0.6, 0.4), "with all 100 labels, the fine-tuned model is clearly worse than svm"),
    ],
)
def test_the_comparison_says_from_how_many_labels_on(tuned, expected):
    points = [point(labels, (value, value)) for labels, value in zip((8, 32, 0), tuned, strict=True)]
    assert against(points, "fine-tuned", "svm") == expected


@pytest.mark.parametrize(
    ("largest", "given", "expected"),
    [
        (3, (), [0]),
        (8, (), [0]),
        (9, (), [8, 0]),
        (600, (), [8, 32, 128, 512, 0]),
        (100, (50, 10, 10), [10, 50, 0]),
        (100, (10, 100, 500), [10, 0]),
    ],
)
def test_the_points_end_with_all_labels(largest, given, expected):
    assert label_counts(largest, given) == expected
