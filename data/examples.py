"""Labelled examples as tokens, packed into rows: what each task's `render` makes, and the loader reads.

An example is one segment of a row, or two neighbours where one answer is compared with another. T row length.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data.packing import pack_examples

# Arrays whose first axis is the segment's tokens: tokens, targets, weights, and whatever else an objective reads.
Segment = dict[str, np.ndarray]


class Rendered(NamedTuple):
    """An example as segments of one row; `cut` says that text was left out to make it fit."""

    segments: tuple[Segment, ...]
    cut: bool = False


@dataclasses.dataclass(frozen=True)
class ExampleRows:
    """Examples packed into rows of T tokens; `rows(indices)` makes any of them.

    Attributes:
        examples: the segments of each example.
        packed: the numbers of the examples in each row.
        sequence_length: T.
        pad_id: fills a row up.
    """

    examples: list[tuple[Segment, ...]]
    packed: list[list[int]]
    sequence_length: int
    pad_id: int

    def __len__(self) -> int:
        return len(self.packed)

    def places(self, row: int) -> Iterator[tuple[int, list[slice]]]:
        """Yields (example number, the places of its segments) in the order in which the row holds them."""
        start = 0
        for example in self.packed[row]:
            places = []
            for segment in self.examples[example]:
                places.append(slice(start, start + len(segment["tokens"])))
                start = places[-1].stop
            yield example, places

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the segments' arrays as (rows, T, ...), with segment_ids and positions; zeros where no segment is."""
        shape = (len(indices), self.sequence_length)
        arrays = self.examples[0][0].items()
        batch = {name: np.zeros((*shape, *array.shape[1:]), array.dtype) for name, array in arrays}
        batch["tokens"] += self.pad_id
        batch |= {name: np.zeros(shape, np.int32) for name in ("segment_ids", "positions")}
        for row, index in enumerate(indices):
            number = 0
            for example, places in self.places(index):
                for place, segment in zip(places, self.examples[example], strict=True):
                    number += 1
                    for name, array in segment.items():
                        batch[name][row, place] = array
                    batch["segment_ids"][row, place] = number
                    batch["positions"][row, place] = np.arange(place.stop - place.start)
        return batch


def pack(examples: list[tuple[Segment, ...]], sequence_length: int, pad_id: int, seed: int) -> ExampleRows:
    """Returns the examples, each at most `sequence_length` tokens long, as rows."""
    lengths = np.array([sum(len(segment["tokens"]) for segment in example) for example in examples])
    return ExampleRows(examples, pack_examples(lengths, sequence_length, seed), sequence_length, pad_id)


def labeled_segment(tokens: list[int], targets: dict[int, float], weights: dict[int, float], dtype: type) -> Segment:
    """Returns a segment with targets and weights at some of its places, 0 elsewhere.

    Args:
        tokens: of the segment.
        targets: place -> target.
        weights: place -> weight.
        dtype: of the targets.
    """
    segment = {
        "tokens": np.array(tokens, np.int32),
        "targets": np.zeros(len(tokens), dtype),
        "weights": np.zeros(len(tokens), np.float32),
    }
    for name, values in (("targets", targets), ("weights", weights)):
        for place, value in values.items():
            segment[name][place] = value
    return segment


def text_segment(tokens: list[int], mask: list[bool]) -> Segment:
    """Returns the segment of next-token prediction in which the tokens that `mask` names are targets."""
    return {
        "tokens": np.array(tokens[:-1], np.int32),
        "targets": np.array(tokens[1:], np.int32),
        "weights": np.array(mask[1:], np.float32),
    }


def sliding_windows(tokens: Sequence[int], window: int, stride: int) -> list[Segment]:
    """Returns segments in which each token but the first is a target once, after as many others as there is room for.

    The first segment has up to `window` targets. Each of the next ones has `stride` new ones, the last what is left,
    and is filled up with what came before them.

    Args:
        tokens: of a text.
        window: tokens a segment at most.
        stride: 1 to `window`; the smaller, the more each token sees and the more segments there are.
    """
    segments = []
    done, count = 0, len(tokens) - 1
    while done < count:
        end = min(done + (stride if done else window), count)
        start = max(end - window, 0)
        fresh = [start + place > done for place in range(end - start + 1)]
        segments.append(text_segment(list(tokens[start : end + 1]), fresh))
        done = end
    return segments
