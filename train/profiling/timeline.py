"""The time line of a run, from the lines of metrics.jsonl: what each second went to, between which steps."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from train.run.history import Record

# The order in which parts of one stretch are drawn; those of the loop alternate with every step.
ORDER = ("start", "compile", "data", "step", "evaluation", "checkpoint", "upload", "profile")


class Stretch(NamedTuple):
    """A time in which a run did one thing.

    Attributes:
        start: when it began, in seconds of the run's active time.
        first: the number of steps that were reported when it began.
        last: and when it ended.
        parts: {part: seconds}; "data" and "step" alternate within a stretch of training.
    """

    start: float
    first: int
    last: int
    parts: dict[str, float]

    @property
    def seconds(self) -> float:
        """How long it took."""
        return sum(self.parts.values())


def stretches_of(records: Sequence[Record]) -> list[Stretch]:
    """Returns the stretches of a run in order; runs of earlier versions have none."""
    found: list[Stretch] = []
    now, reported = 0.0, 0
    for record in records:
        for parts in record.get("timeline", ()):
            found.append(Stretch(now, reported, record["step"], parts))
            now += found[-1].seconds
        if "timeline" in record:
            reported = record["step"]
    return found


def totals(stretches: Sequence[Stretch]) -> dict[str, float]:
    """Returns {part: seconds} of all stretches, in the order of `ORDER`."""
    sums: Counter[str] = Counter()
    for stretch in stretches:
        sums.update(stretch.parts)
    return {part: sums[part] for part in ORDER if sums[part] > 0}


def slices(stretches: Sequence[Stretch], count: int) -> list[dict[str, float]]:
    """Returns what each of `count` equal slices of the time went to, {part: seconds}.

    Within a stretch, the parts are spread evenly if they alternate.
    """
    whole = sum(stretch.seconds for stretch in stretches)
    width = whole / count if whole else 1.0
    found: list[dict[str, float]] = [{} for _ in range(count)]
    for stretch in stretches:
        if not stretch.seconds:
            continue
        place, end = stretch.start, stretch.start + stretch.seconds
        while place < end - 1e-9:
            number = min(int(place / width + 1e-9), count - 1)
            stop = end if number == count - 1 else min(end, (number + 1) * width)
            share = (stop - place) / stretch.seconds
            for part, seconds in stretch.parts.items():
                found[number][part] = found[number].get(part, 0.0) + share * seconds
            place = stop
    return found
