"""A look at the labels and the split of the rows: near-duplicates, and rows whose label is suspicious.

It only reports: no row is left out of training or of the scores, and nothing is chosen by it.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from data.labeled import Example, Splits, fold
from data.similar_texts import similar_texts, words
from train.evaluation.label_errors import suspicious_labels
from train.tasks.classification import Classification
from train.tasks.tagging import Tagging
from train.tasks.task import Task

TRAIN, REMOVED = "train", "removed as a duplicate"
HELD_OUT = ("test", "validation")
# Entries of each list in results.json; the counts are exact.
_MOST_LISTED = 1000
_MOST_CHARACTERS = 300


class AuditedRow(NamedTuple):
    """A row of the user's files.

    Attributes:
        part: "train", "validation", "test" or `REMOVED`.
        place: its file and the number of the row in it.
        label: its class, classes or tags; "": the task has none.
        text: its content.
    """

    part: str
    place: str
    label: str
    text: str


class Pair(NamedTuple):
    """Two rows with almost the same text; 1: the same words, else the Jaccard index of their word pairs."""

    first: AuditedRow
    second: AuditedRow
    similarity: float


class SuspiciousLabel(NamedTuple):
    """A row with the class that it seems to have; see `train.evaluation.label_errors`."""

    row: AuditedRow
    suggested: str
    label_probability: float
    suggested_probability: float


@dataclasses.dataclass(frozen=True)
class LabelAudit:
    """What was found.

    Attributes:
        counts: {part: number of its rows}.
        leaks: (a validation or test row, the training row that is most like it).
        conflicts: near-duplicates with different labels, in any parts; each row with the one that is most like it.
        complete: False: there are more near-duplicates than were compared, so both lists are a lower bound.
        suspicious: rows whose label is suspicious, most suspicious first; None: these were not looked for.
    """

    counts: dict[str, int]
    leaks: list[Pair]
    conflicts: list[Pair]
    complete: bool
    suspicious: list[SuspiciousLabel] | None

    def leaked(self, part: str) -> int:
        """Returns how many rows of a part are near-duplicates of training rows."""
        return sum(pair.first.part == part for pair in self.leaks)


def look_at_labels(task: Task[Any], splits: Splits, suspicious: bool) -> LabelAudit:
    """Returns what is remarkable about the rows.

    Args:
        task: the task.
        splits: its rows.
        suspicious: also look for suspicious labels; the task has one class per row.
    """
    parts = {TRAIN: splits.train, "validation": splits.validation, "test": splits.test, REMOVED: splits.repeated}
    rows = [_audited(task, part, example) for part, examples in parts.items() for example in examples]
    leaks, conflicts, complete = _near_duplicates(rows)
    examples = [*splits.train, *splits.validation, *splits.test]
    found = _suspicious(examples, rows) if suspicious else None
    return LabelAudit({part: len(examples) for part, examples in parts.items()}, leaks, conflicts, complete, found)


def _audited(task: Task[Any], part: str, example: Example) -> AuditedRow:
    if isinstance(task, Classification):
        label = ", ".join(example.classes)
    else:
        label = task.expected(example) if isinstance(task, Tagging) else ""
    return AuditedRow(part, example.place, label, example.content)


def _near_duplicates(rows: Sequence[AuditedRow]) -> tuple[list[Pair], list[Pair], bool]:
    """Returns (leaks, conflicts, whether these are all); see `LabelAudit`."""
    # {words: the first row of each part and label}: rows with the same words are compared once.
    nodes: dict[tuple[str, ...], dict[tuple[str, str], int]] = defaultdict(dict)
    node_of = []
    for number, row in enumerate(rows):
        key = tuple(words(row.text))
        nodes[key].setdefault((row.part, row.label), number)
        node_of.append(key)
    keys = list(nodes)
    similar = similar_texts(keys)
    neighbors: dict[tuple[str, ...], list[tuple[float, tuple[str, ...]]]] = defaultdict(list)
    for first, second, jaccard in similar.pairs:
        neighbors[keys[first]].append((jaccard, keys[second]))
        neighbors[keys[second]].append((jaccard, keys[first]))

    def alike(number: int) -> Iterator[tuple[int, float]]:
        """Yields (row, similarity), the most similar first."""
        key = node_of[number]
        for similarity, other in [(1.0, key), *sorted(neighbors.get(key, ()), reverse=True)]:
            yield from ((row, similarity) for row in nodes[other].values())

    leaks, conflicts = [], {}
    for number, row in enumerate(rows):
        if row.part in HELD_OUT:
            leak = next(((o, s) for o, s in alike(number) if rows[o].part == TRAIN), None)
            leaks += [Pair(row, rows[leak[0]], leak[1])] if leak else []
        conflict = next(((o, s) for o, s in alike(number) if rows[o].label != row.label), None)
        if conflict:
            first, second = sorted((number, conflict[0]))
            conflicts[first, second] = Pair(rows[first], rows[second], conflict[1])
    by_similarity = sorted(conflicts.values(), key=lambda pair: -pair.similarity)
    return sorted(leaks, key=lambda pair: -pair.similarity), by_similarity, similar.complete


def _suspicious(examples: Sequence[Example], rows: Sequence[AuditedRow]) -> list[SuspiciousLabel]:
    """Returns the suspicious labels of the examples, which `rows` begin with in the same order."""
    texts, labels = [example.content for example in examples], [example.classes[0] for example in examples]
    found = suspicious_labels(texts, labels, [fold(example.group) for example in examples])
    return [SuspiciousLabel(rows[s.row], *s[1:]) for s in found]


def audit_json(found: LabelAudit) -> dict[str, Any]:
    """Returns what `results.json` contains: the counts, and the first rows of each list."""

    def row(r: AuditedRow) -> dict[str, Any]:
        return {**r._asdict(), "text": r.text[:_MOST_CHARACTERS]}

    def pairs(listed: Sequence[Pair]) -> dict[str, Any]:
        shown = [{"rows": [row(p.first), row(p.second)], "similarity": p.similarity} for p in listed[:_MOST_LISTED]]
        return {"count": len(listed), "listed": shown}

    result = {
        "rows": found.counts,
        "near_duplicates_across_the_split": pairs(found.leaks),
        "leaked_rows": {part: found.leaked(part) for part in HELD_OUT},
        "near_duplicates_with_different_labels": pairs(found.conflicts),
        "complete": found.complete,
    }
    if found.suspicious is not None:
        shown = [{**s._asdict(), "row": row(s.row)} for s in found.suspicious[:_MOST_LISTED]]
        result["suspicious_labels"] = {"count": len(found.suspicious), "listed": shown}
    return result
