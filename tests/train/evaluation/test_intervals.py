"""Every metric of every task: its interval contains its value, and for perfect predictions it is that value alone."""

import pkgutil

import numpy as np
import pytest

from data.labeled import Example
from train import tasks
from train.evaluation import metrics
from train.evaluation.interval import interval, resamples
from train.tasks.chat import Chat
from train.tasks.classification import Classification
from train.tasks.generation import Generation
from train.tasks.loading import load_task
from train.tasks.preference import Preference
from train.tasks.regression import Regression
from train.tasks.reward import Reward
from train.tasks.span import Span
from train.tasks.tagging import Tagging

CLASSES = tuple(f"c{i:02}" for i in range(12))


def example(**fields):
    return Example("", "", fields)


def rare_class(rng):
    """Returns a class; half of the draws are the first one, so that the others are often missing from a resample."""
    return CLASSES[0] if rng.random() < 0.5 else CLASSES[rng.integers(12)]


def class_rows(rng, n, perfect):
    labels = [rare_class(rng) for _ in range(n)]
    first = labels if perfect else [rare_class(rng) for _ in labels]
    predicted = [[name, *(c for c in CLASSES if c != name)] for name in first]
    task = Classification(CLASSES, (1.0,) * 12, False, "last", "")
    return task, [example(labels=[label]) for label in labels], predicted


def label_sets(rng, n, perfect):
    # Most rows have no label at all.
    labels = [[rare_class(rng)] if rng.random() < 0.3 else [] for _ in range(n)]
    predicted = labels if perfect else [[rare_class(rng)] if rng.random() < 0.5 else [] for _ in labels]
    task = Classification(CLASSES, (1.0,) * 12, True, "last", "")
    return task, [example(labels=row) for row in labels], predicted


def tag_rows(rng, n, perfect):
    # Most sentences have no entity.
    labels = [["O", rare_class(rng) if rng.random() < 0.3 else "O"] for _ in range(n)]
    predicted = labels if perfect else [["O", rare_class(rng)] for _ in labels]
    return Tagging(("O", *CLASSES)), [example(words=["a", "b"], tags=row) for row in labels], predicted


def number_rows(rng, n, perfect):
    # Few values differ, so that all values of a resample are often equal.
    values = [float(rng.random() < 0.15) for _ in range(n)]
    predicted = values if perfect else [float(rng.random() < 0.3) for _ in values]
    return Regression(0.0, 1.0, "last"), [example(value=value) for value in values], predicted


def text_rows(rng, n, perfect):
    # Most texts are shorter than the 4-grams of BLEU.
    texts = [" ".join(rng.permutation(list("abcdefgh"))[: 7 if rng.random() < 0.2 else 3]) for _ in range(n)]
    predicted = texts if perfect else [" ".join(rng.permutation(list("abcdefgh"))[:5]) for _ in texts]
    task = Generation("plain", ("rouge", "bleu", "squad"), "")
    return task, [example(input="", references=[text]) for text in texts], predicted


def span_rows(rng, n, perfect):
    answers = ["owl" if rng.random() < 0.8 else "" for _ in range(n)]
    predicted = answers if perfect else ["owl" if rng.random() < 0.5 else "" for _ in answers]
    found = [[{"text": text, "start": 0}] if text else [] for text in answers]
    return Span(""), [example(question="", context="owl", answers=answer) for answer in found], predicted


def chat_rows(rng, n, perfect):
    predicted = [(0.0 if perfect else rng.random() * 9, float(rng.integers(1, 50))) for _ in range(n)]
    return Chat("plain"), [example()] * n, predicted


def pair_rows(rng, n, perfect):
    predicted = [(1.0, 0.0) if perfect else tuple(rng.normal(size=2)) for _ in range(n)]
    return Preference("plain", 0.1), [example()] * n, predicted


def reward_rows(rng, n, perfect):
    return Reward("plain", 0.1), [example()] * n, [1.0 if perfect else rng.normal() for _ in range(n)]


ROWS = {
    "classification": class_rows, "multi_label": label_sets, "tagging": tag_rows, "regression": number_rows,
    "generation": text_rows, "span": span_rows, "chat": chat_rows, "preference": pair_rows, "reward": reward_rows,
}  # fmt: skip


def test_all_tasks_are_covered():
    names = {module.name for module in pkgutil.iter_modules(tasks.__path__)} - {"task", "loading"}
    assert {ROWS[name](np.random.default_rng(0), 5, True)[0].__class__ for name in names} == set(map(load_task, names))


@pytest.mark.parametrize("rows", [1, 7, 19])
@pytest.mark.parametrize("name", ROWS)
def test_the_interval_of_perfect_predictions_is_their_value(name, rows):
    task, examples, predictions = ROWS[name](np.random.default_rng(rows), rows, perfect=True)
    for metric, found in task.metrics(examples, predictions).items():
        assert found.low == pytest.approx(found.value, abs=1e-9) == found.high, metric


@pytest.mark.integration
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", ROWS)
def test_an_interval_contains_its_value(name, seed):
    rng = np.random.default_rng(seed)
    for rows in (2, int(rng.integers(5, 40))):
        task, examples, predictions = ROWS[name](rng, rows, perfect=False)
        for metric, found in task.metrics(examples, predictions).items():
            assert found.low <= found.value <= found.high, (metric, rows)


def test_perfect_predictions_of_rare_classes():
    """12 classes in 19 rows: many resamples lack some of them."""
    labels = [CLASSES[i % 12] for i in range(19)]
    found = metrics.classification(labels, [[label] for label in labels])
    assert found["macro_f1"][:3] == (1.0, 1.0, 1.0)


@pytest.mark.integration
def test_a_resample_averages_over_the_classes_that_it_contains():
    """Each resampled macro-F1 is the metric itself, applied to the rows of the resample."""
    rng = np.random.default_rng(1)
    _, examples, predicted = class_rows(rng, 19, perfect=False)
    labels = np.array([e.fields["labels"][0] for e in examples])
    first = np.array([ranking[0] for ranking in predicted])

    def macro(rows):
        return metrics._macro_f1(labels[rows], first[rows], np.unique(labels[rows])).value

    found = metrics.classification(labels.tolist(), predicted)["macro_f1"]
    expected = interval(found.value, [macro(rows) for rows in resamples(19)[:150]])
    assert found.low == pytest.approx(expected.low, abs=0.05)
    assert found.high == pytest.approx(expected.high, abs=0.05)


def test_undefined_resamples_are_left_out():
    assert interval(1.0, [1.0, np.nan, 1.0, np.nan])[:3] == (1.0, 1.0, 1.0)
    assert interval(0.3, [np.nan] * 4)[:3] == (0.3, 0.3, 0.3)
    assert interval(0.3, [0.1, 0.2])[:3] == pytest.approx((0.3, 0.1025, 0.3))
