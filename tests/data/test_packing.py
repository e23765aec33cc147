"""Rows hold every target once and never mix documents; batch t depends on (seed, t) alone."""

import itertools

import numpy as np
import pytest
from conftest import random_documents

from data.loader import BatchFunction, evaluation_batches, train_batches
from data.packing import PackedRows, pack_examples
from data.store import store_from_documents


@pytest.fixture(scope="module")
def documents():
    return random_documents(26, seed=3)


@pytest.fixture(scope="module")
def rows(documents):
    return PackedRows(store_from_documents(documents), 16)


def test_every_target_stands_exactly_once_with_its_own_input(documents, rows):
    batch = rows.rows(np.arange(len(rows)))
    real = batch["weights"] == 1
    expected = [pair for d in documents for pair in itertools.pairwise(d)]
    got = list(zip(batch["tokens"][real].tolist(), batch["targets"][real].tolist(), strict=True))
    assert got == expected
    assert (batch["segment_ids"][~real] == 0).all() and (batch["segment_ids"][real] > 0).all()
    assert real.sum() > (len(rows) - 1) * 16


def test_segments_and_positions_follow_the_documents(documents, rows):
    batch = rows.rows(np.arange(len(rows)))
    for row in range(len(rows)):
        segments, positions = batch["segment_ids"][row], batch["positions"][row]
        for segment in set(segments.tolist()) - {0}:
            inside = segments == segment
            assert positions[inside].tolist() == list(range(inside.sum()))
        starts = (batch["tokens"][row] == 1) & (batch["weights"][row] == 1)
        assert (positions[starts] == 0).all()
        assert len(set(segments.tolist()) - {0}) == starts.sum() + (not starts[0])


def test_a_row_does_not_depend_on_which_are_asked_for_with_it(rows):
    together = rows.rows(np.array([5, 2, 7]))
    alone = rows.rows(np.array([2]))
    for name, values in together.items():
        np.testing.assert_array_equal(values[1:2], alone[name])


@pytest.mark.parametrize("num_hosts", [2, 4, 8])
def test_hosts_together_read_the_batch_of_one(rows, num_hosts):
    for t in (0, 3, 1_000_000):
        whole = BatchFunction(rows, 8, seed=7)(t)
        parts = [BatchFunction(rows, 8, 7, places)(t) for places in np.arange(8).reshape(num_hosts, -1)]
        for name in whole:
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])


def test_an_epoch_visits_every_row_once_and_the_next_in_another_order(rows):
    function = BatchFunction(rows, 1, seed=0)
    first = [function.row_numbers(t)[0] for t in range(len(rows))]
    second = [function.row_numbers(t)[0] for t in range(len(rows), 2 * len(rows))]
    assert sorted(first) == sorted(second) == list(range(len(rows)))
    assert first != second != sorted(second)
    assert first != [BatchFunction(rows, 1, seed=1).row_numbers(t)[0] for t in range(len(rows))]


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_ahead_and_starting_midway_change_no_batch(rows, workers):
    function = BatchFunction(rows, 4, seed=2)
    got = list(train_batches(function, 3, 6, workers, prefetch=2))
    assert len(got) == 3
    for t, batch in enumerate(got, 3):
        for name, values in function(t).items():
            np.testing.assert_array_equal(batch[name], values)


def test_evaluation_counts_each_target_once_and_fills_up_with_weight_0(rows):
    assert len(rows) % 8, "the last batch has rows to fill up"
    batches = list(evaluation_batches(rows, 8, limit=0))
    assert {b["tokens"].shape for b in batches} == {(8, 16)}
    assert sum(b["weights"].sum() for b in batches) == rows.num_pairs
    assert sum((b["segment_ids"] > 0).sum() for b in batches) == rows.num_pairs
    halves = [list(evaluation_batches(rows, 8, 0, places)) for places in np.arange(8).reshape(2, 4)]
    for whole, a, b in zip(batches, *halves, strict=True):
        np.testing.assert_array_equal(np.concatenate([a["weights"], b["weights"]]), whole["weights"])
    assert len(list(evaluation_batches(rows, 8, limit=1))) == 1


def test_examples_are_packed_once_each_and_never_beyond_a_row():
    lengths = np.random.default_rng(0).integers(3, 30, 200)
    packed = pack_examples(lengths, 32, seed=0)
    assert sorted(i for row in packed for i in row) == list(range(200))
    assert max(lengths[row].sum() for row in packed) <= 32
    assert len(packed) < 1.15 * lengths.sum() / 32
    assert packed == pack_examples(lengths, 32, seed=0) != pack_examples(lengths, 32, seed=1)
