"""The rows of a mixture follow its weights, whoever reads them; each source has its own shuffle and epochs."""

import itertools
import pickle

import grain
import numpy as np
import pytest
from conftest import random_documents

from data.loader import BatchFunction, train_batches
from data.mixed_rows import MixedRows, source_seed
from data.mixture import MixtureChange, MixtureSource, mixture_errors, mixture_plan, weights_by_step
from data.order import shuffled
from data.packing import PackedRows
from data.row_plan import row_plan
from data.store import store_from_documents

EQUAL, FIBONACCI = (1.0,) * 7, (1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377)
TINY = (2.2e-6, 4.6e-6, 1e-5, 1e-4, 0.02, 0.3, 0.3, 0.379)


def due_rows(changes, rows):
    """The rows that each source should have given after each row: the sum of its shares."""
    shares = np.empty((rows, len(changes[0][1])))
    for (start, weights), stop in itertools.zip_longest(changes, [step for step, _ in changes[1:]], fillvalue=rows):
        shares[start:stop] = np.array(weights) / sum(weights)
    return np.cumsum(shares, axis=0)


def largest_error(changes, rows):
    plan = row_plan(changes)
    sources, numbers = plan.pick(np.arange(rows))
    due, worst = due_rows(changes, rows), 0.0
    for source in range(len(changes[0][1])):
        mine = sources == source
        # Each source gives its rows one after the other.
        assert (numbers[mine] == np.arange(mine.sum())).all()
        worst = max(worst, np.abs(np.cumsum(mine) - due[:, source]).max())
    assert plan.counts(rows) == tuple(np.bincount(sources, minlength=len(changes[0][1])))
    return worst


@pytest.mark.parametrize("weights", [(0.7, 0.3), EQUAL, FIBONACCI], ids=["two", "equal", "fibonacci"])
def test_no_source_is_more_than_its_bound_from_its_share(weights):
    assert largest_error([(0, weights)], 100_000) < 1.68


@pytest.mark.parametrize("changes", [(), ((300_000, (*EQUAL, 0.0)), (300_100, TINY[::-1]), (700_000, FIBONACCI[:8]))])
def test_no_source_is_two_rows_from_its_share_of_a_million(changes):
    """Weights of 2e-6 and more; none starves, also where they change."""
    assert largest_error([(0, TINY), *changes], 1_000_000) < 2


@pytest.mark.parametrize("sources", [2, 5, 24])
@pytest.mark.parametrize("changes", [1, 6, 200])
def test_no_source_is_two_rows_from_its_share_where_weights_change(sources, changes):
    rng = np.random.default_rng(sources + changes)
    starts = [0, *np.cumsum(rng.integers(1, 50_000 // changes, changes)).tolist()]
    weights = rng.dirichlet(np.ones(sources), changes + 1) + 1e-4
    # In half of the phases, a source rests.
    weights[:, 1] *= rng.random(changes + 1) < 0.5
    assert largest_error(list(zip(starts, weights.tolist(), strict=True)), 60_000) < 2


def test_a_linear_curriculum_follows_its_line():
    changes = [(16 * i, (1 - i / 1000, i / 1000, 0.5)) for i in range(1000)]
    assert largest_error(changes, 20_000) < 1.5


def test_rows_before_a_change_do_not_depend_on_it():
    numbers = np.arange(5000)
    one = row_plan([(0, (3, 1, 1)), (700, (1, 1, 8))])
    other = row_plan([(0, (3, 1, 1)), (700, (1, 1, 8)), (3001, (5, 0, 1)), (4000, (0, 1, 0))])
    for found, expected in zip(one.pick(numbers[:3001]), other.pick(numbers[:3001]), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert set(other.pick(numbers[4000:])[0].tolist()) == {1}
    # A change to the same weights, however they are written, is none.
    assert row_plan([(0, (3, 1)), (700, (0.75, 0.25))]) == row_plan([(0, (3, 1))])


def test_rows_far_away_are_found_in_place():
    plan = row_plan([(0, TINY), (10**6, (*EQUAL, 2.0))])
    for first in (10**9, 2 * 10**12):
        sources, numbers = plan.pick(np.arange(first, first + 4096))
        before, after = plan.counts(first), plan.counts(first + 4096)
        for source in range(8):
            np.testing.assert_array_equal(numbers[sources == source], np.arange(before[source], after[source]))


@pytest.mark.parametrize("length", [1, 7, 1000, 70_000])
def test_the_order_is_that_of_grain(length):
    for seed in (0, 1, 2**31):
        expected = grain.MapDataset.range(length).seed(seed).shuffle().repeat()
        numbers = np.array([0, 1, length - 1, length, 3 * length + length // 2, 10**9])
        assert shuffled(numbers, length, seed).tolist() == [expected[number] for number in numbers.tolist()]


SOURCES = (MixtureSource("code", "b", 1.0), MixtureSource("books", "a", 3.0), MixtureSource("web", "c", 0.5))
SCHEDULE = (MixtureChange(7, {"web": 2.0, "books": 0.0, "code": 2.0}),)


@pytest.fixture(scope="module")
def mixed():
    """Three sources of different lengths."""
    counts = {"books": 20, "code": 25, "web": 60}
    stores = [store_from_documents(random_documents(count, seed, 30)) for seed, count in enumerate(counts.values())]
    sources = tuple(PackedRows(store, 16) for store in stores)
    return MixedRows(tuple(counts), sources, mixture_plan(SOURCES, SCHEDULE, 8))


def test_each_source_has_its_own_epochs_and_shuffle(mixed):
    sources, rows = mixed.locate(mixed.order(np.arange(250), seed=3))
    orders = []
    for number, source in enumerate(mixed.sources):
        mine, length = rows[sources == number], len(source)
        for epoch in range(len(mine) // length):
            assert sorted(mine[epoch * length : (epoch + 1) * length]) == list(range(length))
        orders.append(mine[:length].tolist())
    alone = [shuffled(np.arange(len(s)), len(s), 3).tolist() for s in mixed.sources]
    assert all(order != sorted(order) and order != own for order, own in zip(orders, alone, strict=True))
    assert len({source_seed(seed, name) for seed in (0, 1) for name in mixed.names}) == 6


def test_two_sources_of_equal_length_are_shuffled_differently():
    store = store_from_documents(random_documents(40))
    mixed = MixedRows(("a", "b"), (PackedRows(store, 16),) * 2, row_plan([(0, (1, 1))]))
    sources, rows = mixed.locate(mixed.order(np.arange(2 * len(mixed.sources[0])), seed=0))
    assert sorted(rows[sources == 0]) == sorted(rows[sources == 1])
    assert rows[sources == 0].tolist() != rows[sources == 1].tolist()


def test_a_row_of_a_mixture_is_that_of_its_source(mixed):
    function = BatchFunction(mixed, 8, seed=1)
    for t in (0, 6, 7, 500):
        batch, places = function(t), function.places(t)
        for i, (name, row) in enumerate(zip(places["sources"], places["rows"], strict=True)):
            alone = mixed.sources[mixed.names.index(name)]
            for key, values in alone.rows(np.array([row])).items():
                np.testing.assert_array_equal(batch[key][i], values[0])
            assert mixed.first_document(int(function.row_numbers(t)[i])) == alone.first_document(row)
    assert set(function.places(6)["sources"]) > set(function.places(7)["sources"]) == {"code", "web"}


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_mixture_resumed_on_another_number_of_hosts_has_the_same_batches(mixed, hosts, workers):
    """Also in Grain's worker processes, over a change of weights, and with batches that are skipped."""
    skipped = ((8, 9),)
    whole = [BatchFunction(mixed, 8, 5, None, skipped)(t) for t in range(12)]
    for part in np.split(np.arange(8), hosts):
        own = BatchFunction(pickle.loads(pickle.dumps(mixed)), 8, 5, part, skipped)
        for t, batch in enumerate(train_batches(own, 5, 12, workers if hosts == 1 else 0, prefetch=2), 5):
            for key, values in whole[t].items():
                np.testing.assert_array_equal(batch[key], values[part])


def test_the_order_of_the_entries_does_not_matter():
    assert mixture_plan(SOURCES, SCHEDULE, 8) == mixture_plan(SOURCES[::-1], SCHEDULE, 8)
    assert weights_by_step(SOURCES, SCHEDULE) == [
        (0, {"books": 3.0, "code": 1.0, "web": 0.5}), (7, {"books": 0.0, "code": 2.0, "web": 2.0}),
    ]  # fmt: skip


A, B = MixtureSource("a", "x", 1.0), MixtureSource("b", "y", 2.0)


@pytest.mark.parametrize(
    ("sources", "schedule", "error"),
    [
        ((A, A), (), "source 'a' is listed 2 times; expected different names"),
        ((A._replace(name="a/b"),), (), "source 'a/b': expected a name of letters, digits"),
        ((A._replace(path=""),), (), "source 'a' has no path; expected a token store"),
        ((A, B._replace(weight=-1.0)), (), "source 'b' has weight -1.0; expected a finite number of at least 0"),
        ((A, B._replace(weight=float("nan"))), (), "source 'b' has weight nan; expected a finite number"),
        ((A._replace(weight=0.0),), (), "all weights are 0; expected at least one above 0"),
        ((A, B), (MixtureChange(3, {"a": 1}),), "at step 3: the weight of b is missing"),
        ((A,), (MixtureChange(3, {"a": 1, "c": 1}),), "at step 3: c is no source of config.data.mixture (a)"),
        ((A,), (MixtureChange(3, {"a": 1}), MixtureChange(3, {"a": 2})), "the steps [3, 3]; expected rising steps"),
        ((A,), (MixtureChange(0, {"a": 1}),), "the steps [0]; expected rising steps of at least 1"),
    ],
)
def test_an_invalid_mixture_is_a_one_line_error(sources, schedule, error):
    errors = mixture_errors(sources, schedule)
    assert any(error in found for found in errors), errors
    assert mixture_errors((A, B), (MixtureChange(3, {"a": 0.0, "b": 1.0}),)) == []
