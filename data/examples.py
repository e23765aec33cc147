"""Labeled examples as tokens, packed into rows: made by each task's `render`, read by the loader.

An example is one segment of a row, or two adjacent segments where two answers are compared. T is the row length.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data.packing import pack_examples

# Arrays with one entry per token of the segment: tokens, targets, weights, and others that an objective reads.
Segment = dict[str, np.ndarray]


class Rendered(NamedTuple):
    """An example as segments of one row; `cut` is True if text was removed to make it fit."""

    segments: tuple[Segment, ...]
    cut: bool = False


@dataclasses.dataclass(frozen=True)
class ExampleRows:
    """Examples packed into rows of T tokens; `rows(indices)` builds any of them.

    Attributes:
        examples: the segments of each example.
        packed: the indices of the examples in each row.
        sequence_length: T.
        pad_id: the token that pads a row.
    """

    examples: list[tuple[Segment, ...]]
    packed: list[list[int]]
    sequence_length: int
    pad_id: int

    def __len__(self) -> int:
        return len(self.packed)

    @functools.cached_property
    def target_share(self) -> float:
        """The share of all positions, padding included, that are in the loss."""
        targets = sum(int((segment["weights"] != 0).sum()) for example in self.examples for segment in example)
        return targets / (len(self) * self.sequence_length)

    def segment_slices(self, row: int) -> Iterator[tuple[int, list[slice]]]:
        """Yields (example index, the slice of the row that each of its segments fills) in row order."""
        start = 0
        for example in self.packed[row]:
            slices = []
            for segment in self.examples[example]:
                slices.append(slice(start, start + len(segment["tokens"])))
                start = slices[-1].stop
            yield example, slices

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns (rows, T, ...) arrays with segment_ids and positions; padding: pad_id in tokens, 0 in the others."""
        shape = (len(indices), self.sequence_length)
        arrays = self.examples[0][0].items()
        batch = {name: np.zeros((*shape, *array.shape[1:]), array.dtype) for name, array in arrays}
        batch["tokens"] += self.pad_id
        batch |= {name: np.zeros(shape, np.int32) for name in ("segment_ids", "positions")}
        for row, index in enumerate(indices):
            number = 0
            for example, slices in self.segment_slices(index):
                for part, segment in zip(slices, self.examples[example], strict=True):
                    number += 1
                    for name, array in segment.items():
                        batch[name][row, part] = array
                    batch["segment_ids"][row, part] = number
                    batch["positions"][row, part] = np.arange(part.stop - part.start)
        return batch


def pack(examples: list[tuple[Segment, ...]], sequence_length: int, pad_id: int, seed: int) -> ExampleRows:
    """Returns the examples, each of at most `sequence_length` tokens, packed into rows."""
    lengths = np.array([sum(len(segment["tokens"]) for segment in example) for example in examples])
    return ExampleRows(examples, pack_examples(lengths, sequence_length, seed), sequence_length, pad_id)


def labeled_segment(tokens: list[int], targets: dict[int, float], weights: dict[int, float], dtype: type) -> Segment:
    """Returns a segment with targets and weights at some positions and 0 at the others.

    Args:
        tokens: the tokens of the segment.
        targets: position -> target.
        weights: position -> weight in the loss.
        dtype: dtype of the targets.
    """
    segment = {
        "tokens": np.array(tokens, np.int32),
        "targets": np.zeros(len(tokens), dtype),
        "weights": np.zeros(len(tokens), np.float32),
    }
    for name, values in (("targets", targets), ("weights", weights)):
        for position, value in values.items():
            segment[name][position] = value
    return segment


def text_segment(tokens: list[int], mask: list[bool]) -> Segment:
    """Returns a next-token prediction segment in which the tokens selected by `mask` are in the loss."""
    return {
        "tokens": np.array(tokens[:-1], np.int32),
        "targets": np.array(tokens[1:], np.int32),
        "weights": np.array(mask[1:], np.float32),
    }


def sliding_windows(tokens: Sequence[int], window: int, stride: int) -> list[Segment]:
    """Returns segments in which each token but the first is a target once, with the longest context that fits.

    The first segment has up to `window` targets. Each later segment has `stride` new targets (the last one what is
    left), preceded by as many earlier tokens as fit.

    Args:
        tokens: the tokens of a text.
        window: maximum number of tokens per segment.
        stride: 1 to `window`; a smaller stride gives each token more context and makes more segments.
    """
    segments = []
    done, count = 0, len(tokens) - 1
    while done < count:
        end = min(done + (stride if done else window), count)
        start = max(end - window, 0)
        fresh = [start + offset > done for offset in range(end - start + 1)]
        segments.append(text_segment(list(tokens[start : end + 1]), fresh))
        done = end
    return segments
