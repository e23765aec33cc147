"""Which source gives row n of a mixture, and which of its rows that is: arithmetic, without state.

The sources are the leaves of a Huffman tree of their weights. A node's rows are divided among its two children by
rounding: after m rows of the node, the left child has had `round(m * share)` of them. So one walk from the root finds
the source of row n, and the rows of each source follow its weight. The error of a leaf is at most 1/2 plus its part of
the error of its parent. A Huffman tree has no long path of large parts: with constant weights the error stays below
half of the sum of the reciprocal Fibonacci numbers, 1.68 rows, for any number of sources.

Where the weights change, a new tree begins with the error that each source has by then, and corrects it.
"""

import dataclasses
import heapq
import itertools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

# The sum of the weights as integers; products with numbers below it fit into int64.
_TOTAL = 1 << 30


@dataclasses.dataclass(frozen=True)
class Node:
    """Two parts of the sources and how rows are divided among them.

    Attributes:
        left: a source, or the node of several.
        right: the same for the other part.
        share: the weight of the left part.
        total: the weight of both parts.
        credit: what rounding adds to the left part, in units of a row / `total`: half a row, and what the left part is
            behind its share when the node begins.
    """

    left: "Node | int"
    right: "Node | int"
    share: int
    total: int
    credit: int

    def left_rows(self, rows: np.ndarray) -> np.ndarray:
        """Returns how many of the node's first `rows` rows the left part gives."""
        whole, rest = np.divmod(rows, self.total)
        return np.clip(whole * self.share + (rest * self.share + self.credit) // self.total, 0, rows)


@dataclasses.dataclass(frozen=True)
class Phase:
    """Rows with the same weights.

    Attributes:
        start: its first row.
        counts: rows of each source before it.
        tree: how its rows are divided among the sources.
    """

    start: int
    counts: tuple[int, ...]
    tree: Node | int


@dataclasses.dataclass(frozen=True)
class RowPlan:
    """The source of every row; see `row_plan`."""

    phases: tuple[Phase, ...]

    def pick(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (source, number among the rows of this source) of each row, both int64."""
        numbers = np.asarray(numbers, np.int64)
        found = np.empty((2, len(numbers)), np.int64)
        phase_of = np.searchsorted([phase.start for phase in self.phases], numbers, side="right") - 1
        for i in np.unique(phase_of).tolist():
            places, phase = np.flatnonzero(phase_of == i), self.phases[i]
            _walk(phase.tree, numbers[places] - phase.start, places, found)
            found[1, places] += np.array(phase.counts)[found[0, places]]
        return found[0], found[1]

    def counts(self, rows: int) -> tuple[int, ...]:
        """Returns how many of the first `rows` rows each source gives."""
        phase = next(phase for phase in reversed(self.phases) if phase.start <= rows)
        counts = list(phase.counts)
        _count(phase.tree, rows - phase.start, counts)
        return tuple(counts)


def row_plan(changes: Sequence[tuple[int, Sequence[float]]]) -> RowPlan:
    """Returns the plan of a mixture whose weights change at given rows.

    A change to the same weights is none; what comes after a row does not affect the rows before it.

    Args:
        changes: (first row, weights from it on), in rising order, the first at row 0. Only the ratios of weights
            matter; a source of weight 0 gives no rows.
    """
    phases: list[Phase] = []
    # The rows that each source should have given, with fractions.
    due = [Fraction(0)] * len(changes[0][1])
    start, shares = 0, (0,) * len(due)
    for after, values in changes:
        weights = integer_weights(values)
        if weights == shares:
            continue
        counts = (0,) * len(due)
        if phases:
            counts = RowPlan(tuple(phases)).counts(after)
            rows = Fraction(after - start, sum(shares))
            due = [before + share * rows for before, share in zip(due, shares, strict=True)]
        start, shares = after, weights
        phases.append(Phase(start, counts, _tree(shares, counts, due)))
    return RowPlan(tuple(phases))


def integer_weights(weights: Sequence[float]) -> tuple[int, ...]:
    """Returns weights as integers whose sum is about 2^30; only a weight of 0 becomes 0."""
    total = sum(map(Fraction, weights))
    return tuple(max(round(Fraction(weight) / total * _TOTAL), 1) if weight else 0 for weight in weights)


def _tree(shares: Sequence[int], counts: Sequence[int], due: Sequence[Fraction]) -> Node | int:
    """Returns the Huffman tree of the sources whose share is above 0."""
    # The error of sources that have no rows now is spread over the others, which have it together already.
    active = [source for source, share in enumerate(shares) if share]
    excess = sum((counts[source] - due[source] for source in active), Fraction(0)) / len(active)
    parts: list[tuple[int, int, Node | int, int, Fraction]] = [
        (shares[source], source, source, counts[source], due[source] + excess) for source in active
    ]
    heapq.heapify(parts)
    # The second entry, different for every part, decides where weights are equal.
    for order in itertools.count(len(shares)):
        left = heapq.heappop(parts)
        if not parts:
            return left[2]
        right = heapq.heappop(parts)
        total, count, should = left[0] + right[0], left[3] + right[3], left[4] + right[4]
        behind = left[4] + Fraction(left[0], total) * (count - should) - left[3]
        node = Node(left[2], right[2], left[0], total, int((behind + Fraction(1, 2)) * total // 1))
        heapq.heappush(parts, (total, order, node, count, should))
    raise AssertionError


def _walk(node: Node | int, rows: np.ndarray, places: np.ndarray, found: np.ndarray) -> None:
    """Writes (source, number among its rows) of the node's rows to `found` at `places`."""
    if not len(rows):
        return
    if isinstance(node, int):
        found[0, places], found[1, places] = node, rows
        return
    before = node.left_rows(rows)
    is_left = node.left_rows(rows + 1) > before
    _walk(node.left, before[is_left], places[is_left], found)
    _walk(node.right, (rows - before)[~is_left], places[~is_left], found)


def _count(node: Node | int, rows: int, counts: list[int]) -> None:
    """Adds to the counts of the sources what the node's first `rows` rows are."""
    if isinstance(node, int):
        counts[node] += rows
        return
    left = int(node.left_rows(np.array(rows)))
    _count(node.left, left, counts)
    _count(node.right, rows - left, counts)
