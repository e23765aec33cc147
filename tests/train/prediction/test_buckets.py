"""Examples of any length are packed into rows of few shapes, each once and whole."""

import numpy as np
import pytest

from train.prediction.buckets import batches

LENGTHS = {
    "one": [7],
    "short": [12] * 300,
    "just above half a row": [33] * 200,
    "mixed": np.random.default_rng(0).integers(1, 400, 500).tolist(),
    "long": [1500, 3, 2048, 2049],
    "none": [],
}


def examples_of(lengths):
    """Returns examples whose tokens are their number; every third one has two segments."""
    found = []
    for number, length in enumerate(lengths):
        parts = [length // 2, length - length // 2] if number % 3 == 0 and length > 1 else [length]
        found.append(tuple({"tokens": np.full(n, number, np.int32), "weights": np.ones(n, np.float32)} for n in parts))
    return found


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("name", LENGTHS)
def test_each_example_is_in_one_batch(name, multiple):
    lengths = LENGTHS[name]
    seen = []
    for numbers, rows, size in batches(examples_of(lengths), -1, multiple):
        assert size % multiple == 0
        seen += numbers
        batch = rows.rows(np.arange(len(rows)))
        for row in range(len(rows)):
            for place, slices in rows.segment_slices(row):
                for part in slices:
                    assert (batch["tokens"][row, part] == numbers[place]).all()
                assert sum(part.stop - part.start for part in slices) == lengths[numbers[place]]
    assert sorted(seen) == list(range(len(lengths)))


@pytest.mark.parametrize("name", ["short", "just above half a row", "mixed"])
def test_few_shapes_and_little_padding(name):
    found = list(batches(examples_of(LENGTHS[name]), -1, 1))
    shapes = {(rows.sequence_length, size) for _, rows, size in found}
    assert all(width & (width - 1) == 0 for width, _ in shapes) and len(shapes) <= 10
    tokens = sum(LENGTHS[name])
    assert tokens >= 0.6 * sum(len(rows) * rows.sequence_length for _, rows, _ in found)
