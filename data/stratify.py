"""Splits groups of rows by a hash, and moves as few as necessary so that every class is in every split.

Large classes are split by the hash alone, so that a new row moves no other; a class of few groups may miss a split or
fall into it as a whole, and a model cannot learn or be judged by a class that is not there.
"""

import math
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

# The splits in the order in which a class gets its first groups: a class with one group is trained on.
_ORDER = ("train", "test", "validation")
# A split whose share of a class is at least this many groups has one of them.
_ENOUGH = 0.5


class Shares(NamedTuple):
    """The share of each split; they add up to 1."""

    train: float
    validation: float
    test: float

    def of(self, place: float) -> str:
        """Returns the split of a place in [0, 1)."""
        if place < self.test:
            return "test"
        return "validation" if place < self.test + self.validation else "train"

    def distance(self, place: float, split: str) -> float:
        """Returns how far a place is from those of a split."""
        start = {"test": 0.0, "validation": self.test, "train": self.test + self.validation}[split]
        end = start + getattr(self, split)
        return max(start - place, place - end, 0.0)


def stratified(
    places: Mapping[str, float], classes: Mapping[str, set[str]], shares: Shares
) -> tuple[dict[str, str], dict[str, int]]:
    """Returns ({group: its split}, {class: its groups} of the classes that are too rare to be tested).

    Every class is in training. It has at least half of its share, and at least one group, in every other split where
    its share is half a group or more; a class whose share of the test split is less is too rare.

    Args:
        places: group -> the hash of the group as a number in [0, 1).
        classes: group -> the classes that occur in it.
        shares: the share of each split; a split with a share of 0 gets no group.
    """
    split_of = {group: shares.of(place) for group, place in places.items()}
    groups_of: dict[str, list[str]] = {}
    for group in sorted(places, key=lambda group: (places[group], group)):
        for name in classes[group]:
            groups_of.setdefault(name, []).append(group)
    least = {name: _least(len(groups), shares) for name, groups in groups_of.items()}
    counts = {name: Counter(split_of[group] for group in groups) for name, groups in groups_of.items()}

    def spare(group: str, name: str, split: str) -> bool:
        """Returns whether a group of a class can leave its split for another one."""
        own = split_of[group]
        if own == split:
            return False
        # A class without a training row cannot be predicted at all, so that it and others may lose a row for it.
        first = split == "train" and not counts[name][split]
        return first or all(counts[other][own] > least[other][own] for other in classes[group])

    for name in sorted(groups_of, key=lambda name: (len(groups_of[name]), name)):
        for split in _ORDER:
            while counts[name][split] < least[name][split]:
                movable = [group for group in groups_of[name] if spare(group, name, split)]
                if not movable:
                    break
                moved = min(movable, key=lambda group: shares.distance(places[group], split))
                for other in classes[moved]:
                    counts[other][split_of[moved]] -= 1
                    counts[other][split] += 1
                split_of[moved] = split
    untested = {name for name in groups_of if not least[name]["test"] or not counts[name]["test"]}
    rare = {name: len(groups_of[name]) for name in sorted(untested) if shares.test}
    return split_of, rare


def _least(count: int, shares: Shares) -> Counter[str]:
    """Returns the smallest number of a class's groups in each split."""
    least = Counter({split: math.floor(count * getattr(shares, split) / 2) for split in _ORDER})
    for split in _ORDER:
        if split == "train" or count * getattr(shares, split) >= _ENOUGH:
            least[split] = max(least[split], 1)
    return least
