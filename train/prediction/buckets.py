"""Encoded examples of any length -> batches of few shapes: rows of a power of two, in batches of few sizes."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from data.examples import ExampleRows, Segment, pack
from train.trees import round_up

_MIN_WIDTH = 64
# Rows up to this wide hold at least two examples, so that padding is at most a third; attention in wider ones is slow.
_WIDE = 512
_TOKENS_PER_BATCH = {"cpu": 4096}
_ACCELERATOR_TOKENS_PER_BATCH = 65536


def batches(
    examples: Sequence[tuple[Segment, ...]], pad_id: int, multiple: int
) -> Iterator[tuple[list[int], ExampleRows, int]]:
    """Yields (numbers of the examples, the examples packed into rows, rows per batch); each example occurs once.

    Args:
        examples: the segments of each example.
        pad_id: the token that pads a row.
        multiple: number of rows in a batch that the mesh can split.
    """
    widths = np.array([_width(sum(len(part["tokens"]) for part in example)) for example in examples])
    for width in np.unique(widths).tolist():
        numbers = np.flatnonzero(widths == width).tolist()
        packed = pack([examples[number] for number in numbers], width, pad_id, seed=0)
        tokens = _TOKENS_PER_BATCH.get(jax.default_backend(), _ACCELERATOR_TOKENS_PER_BATCH)
        largest = round_up(max(tokens // width, 1), multiple)
        full = len(packed) // largest * largest
        yield from _part(numbers, packed, 0, full, largest)
        # What is left is one batch of a few sizes, the powers of four.
        size = 1
        while size < len(packed) - full:
            size *= 4
        yield from _part(numbers, packed, full, len(packed), min(round_up(size, multiple), largest))


def _part(
    numbers: list[int], packed: ExampleRows, first: int, last: int, size: int
) -> Iterator[tuple[list[int], ExampleRows, int]]:
    """Yields the rows from `first` up to `last`, with their own examples, unless there are none."""
    if first == last:
        return
    held = [example for row in packed.packed[first:last] for example in row]
    place = {example: number for number, example in enumerate(held)}
    rows = [[place[example] for example in row] for row in packed.packed[first:last]]
    examples = [packed.examples[example] for example in held]
    yield (
        [numbers[example] for example in held],
        ExampleRows(examples, rows, packed.sequence_length, packed.pad_id),
        size,
    )


def _width(length: int) -> int:
    """Returns the width of the rows that hold an example."""
    width = max(_MIN_WIDTH, 1 << (length - 1).bit_length())
    return width * 2 if width < 2 * length and 2 * width <= _WIDE else width
