"""Rows contain every target once and never mix documents; batch t depends only on (seed, t)."""

import dataclasses
import itertools

import numpy as np
import pytest
from conftest import random_documents

from data.loader import BatchFunction, evaluation_batches, train_batches
from data.offsets import Offsets
from data.packing import PackedRows, pack_examples
from data.store import store_from_documents


@pytest.fixture(scope="module")
def documents():
    return random_documents(26, seed=3)


@pytest.fixture(scope="module")
def rows(documents):
    return PackedRows(store_from_documents(documents), 16)


def test_every_target_appears_once_with_its_input(documents, rows):
    batch = rows.rows(np.arange(len(rows)))
    real = batch["weights"] == 1
    expected = [pair for d in documents for pair in itertools.pairwise(d)]
    got = list(zip(batch["tokens"][real].tolist(), batch["targets"][real].tolist(), strict=True))
    assert got == expected
    assert (batch["segment_ids"][~real] == 0).all() and (batch["segment_ids"][real] > 0).all()
    assert real.sum() > (len(rows) - 1) * 16


def test_segments_and_positions_match_the_documents(documents, rows):
    batch = rows.rows(np.arange(len(rows)))
    for row in range(len(rows)):
        segments, positions = batch["segment_ids"][row], batch["positions"][row]
        for segment in set(segments.tolist()) - {0}:
            inside = segments == segment
            assert positions[inside].tolist() == list(range(inside.sum()))
        starts = (batch["tokens"][row] == 1) & (batch["weights"][row] == 1)
        assert (positions[starts] == 0).all()
        assert len(set(segments.tolist()) - {0}) == starts.sum() + (not starts[0])


def test_row_does_not_depend_on_the_other_rows_of_a_call(rows):
    together = rows.rows(np.array([5, 2, 7]))
    alone = rows.rows(np.array([2]))
    for name, values in together.items():
        np.testing.assert_array_equal(values[1:2], alone[name])


def rows_by_definition(store, T, indices):
    """The rows from the end of every document, computed for all documents at once."""
    ends = store.offsets[1:] - np.arange(1, len(store.offsets))
    first = indices[:, None] * T
    real = first + np.arange(T) < ends[-1]
    pair = np.minimum(first + np.arange(T), ends[-1] - 1)
    document = np.searchsorted(ends, pair, side="right")
    start = np.maximum(store.offsets[document] - document, first)
    return {
        "tokens": store.tokens[pair + document].astype(np.int32),
        "targets": store.tokens[pair + document + 1].astype(np.int32),
        "segment_ids": np.where(real, document - document[:, :1] + 1, 0).astype(np.int32),
        "positions": np.where(real, pair - start, 0).astype(np.int32),
        "weights": real.astype(np.float32),
    }


@pytest.mark.integration
@pytest.mark.parametrize("shortest", [1, 2, 3])
@pytest.mark.parametrize("longest", [4, 60])
def test_rows_equal_their_definition_on_random_stores(shortest, longest):
    """A document of one token has no pair, one of two tokens (bos, eos) has one."""
    rng = np.random.default_rng(shortest)
    for count in (*range(1, 20), 64, 65, 500):
        lengths = [*rng.integers(shortest, longest, count - 1).tolist(), longest]
        store = store_from_documents([rng.integers(0, 99, length).tolist() for length in lengths])
        for T in (1, 7, 64):
            rows = PackedRows(store, T)
            indices = np.arange(len(rows))
            expected, found = rows_by_definition(store, T, indices), rows.rows(indices)
            assert expected.keys() == found.keys()
            for name, values in expected.items():
                assert values.dtype == found[name].dtype
                np.testing.assert_array_equal(found[name], values)
            first = np.searchsorted(store.offsets[1:] - np.arange(1, count + 1), indices * T, side="right")
            assert [rows.first_document(row) for row in indices.tolist()] == first.tolist()


@dataclasses.dataclass
class Generated:
    """An array of `length` elements that are computed when they are read, and counts them."""

    length: int
    value: object
    reads: int = 0

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        numbers = (
            np.arange(*index.indices(self.length)) if isinstance(index, slice) else np.asarray(index) % self.length
        )
        self.reads += numbers.size
        return self.value(numbers)


@dataclasses.dataclass
class GeneratedStore:
    """`count` documents of 5 tokens each, of which none is stored."""

    count: int
    per_shard: int = 0  # documents; 0: one array of offsets

    def __post_init__(self):
        if not self.per_shard:
            self.arrays = [Generated(self.count + 1, lambda i: i * 5)]
            self.offsets = self.arrays[0]
            return
        sizes = [min(self.per_shard, self.count - first) for first in range(0, self.count, self.per_shard)]
        self.arrays = [Generated(size + 1, lambda i: i * 5) for size in sizes]
        self.offsets = Offsets(sizes, [5 * size for size in sizes], self.arrays.__getitem__)

    @property
    def reads(self):
        return sum(array.reads for array in self.arrays)

    def read(self, starts, stops):
        return [np.arange(start, stop) % 997 for start, stop in zip(starts, stops, strict=True)]


@pytest.mark.parametrize("per_shard", [0, 250_000])
def test_offsets_read_per_batch_do_not_grow_with_the_number_of_documents(per_shard):
    reads = {}
    for exponent in (4, 6, 9):
        store = GeneratedStore(10**exponent, per_shard)
        rows = PackedRows(store, 64)
        indices = np.linspace(0, len(rows) - 1, 8).astype(np.int64)
        batch = rows.rows(indices)
        reads[exponent] = store.reads
        pair = np.minimum(indices[:, None] * 64 + np.arange(64), rows.num_pairs - 1)
        np.testing.assert_array_equal(batch["tokens"], (pair + pair // 4) % 997)
        np.testing.assert_array_equal(batch["targets"], (pair + pair // 4 + 1) % 997)
    # Two searches per row, and per pair at most its document and one document's end.
    for exponent, count in reads.items():
        assert count <= 8 * (2 * (10**exponent).bit_length() + 2 * 64) + 10
    assert reads[9] - reads[4] <= 8 * 2 * 17


@pytest.mark.parametrize("num_hosts", [2, 4, 8])
def test_hosts_read_the_batch_of_a_single_host(rows, num_hosts):
    for t in (0, 3, 1_000_000):
        whole = BatchFunction(rows, 8, seed=7)(t)
        parts = [BatchFunction(rows, 8, 7, part)(t) for part in np.arange(8).reshape(num_hosts, -1)]
        for name in whole:
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])


def test_epochs_visit_every_row_once_in_different_orders(rows):
    function = BatchFunction(rows, 1, seed=0)
    first = [function.row_numbers(t)[0] for t in range(len(rows))]
    second = [function.row_numbers(t)[0] for t in range(len(rows), 2 * len(rows))]
    assert sorted(first) == sorted(second) == list(range(len(rows)))
    assert first != second != sorted(second)
    assert first != [BatchFunction(rows, 1, seed=1).row_numbers(t)[0] for t in range(len(rows))]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_do_not_depend_on_prefetching_or_the_first_step(rows, num_workers):
    function = BatchFunction(rows, 4, seed=2)
    got = list(train_batches(function, 3, 6, num_workers, prefetch=2))
    assert len(got) == 3
    for t, batch in enumerate(got, 3):
        for name, values in function(t).items():
            np.testing.assert_array_equal(batch[name], values)


def test_evaluation_counts_each_target_once_and_pads_with_weight_0(rows):
    assert len(rows) % 8, "the last batch must need padding"
    batches = list(evaluation_batches(rows, 8, limit=0))
    assert {b["tokens"].shape for b in batches} == {(8, 16)}
    assert sum(b["weights"].sum() for b in batches) == rows.num_pairs
    assert sum((b["segment_ids"] > 0).sum() for b in batches) == rows.num_pairs
    halves = [list(evaluation_batches(rows, 8, 0, part)) for part in np.arange(8).reshape(2, 4)]
    for whole, a, b in zip(batches, *halves, strict=True):
        np.testing.assert_array_equal(np.concatenate([a["weights"], b["weights"]]), whole["weights"])
    assert len(list(evaluation_batches(rows, 8, limit=1))) == 1


def test_every_example_is_packed_once_within_the_row_length():
    lengths = np.random.default_rng(0).integers(3, 30, 200)
    packed = pack_examples(lengths, 32, seed=0)
    assert sorted(i for row in packed for i in row) == list(range(200))
    assert max(lengths[row].sum() for row in packed) <= 32
    assert len(packed) < 1.15 * lengths.sum() / 32
    assert packed == pack_examples(lengths, 32, seed=0) != pack_examples(lengths, 32, seed=1)
