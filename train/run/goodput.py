"""Accounts for a run's wall time: every second belongs to one part, and totals survive restarts.

Parts: "start" (initializing or restoring the state), "compile" (tracing and XLA, wherever they happen), "data" (waiting
for batches), "step" (everything else in the loop: the devices train), "checkpoint" (waiting for a save), "upload"
(waiting for a bucket), "evaluation", "profile" (starting and writing a profile), and "lost" (work undone by a kill or a
roll-back). Time between two starts of a run is not counted.
"""

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from jax import monitoring

from train.run.history import Record

PARTS = ("start", "compile", "data", "step", "checkpoint", "upload", "evaluation", "profile", "lost")
PHASE = "goodput"
# Parts that alternate with every step: on a time line they are one stretch.
_ALTERNATING = ("data", "step")
_COMPILE_EVENTS = "/jax/core/compile/"
T = TypeVar("T")


class Goodput:
    """Seconds per part since `since`, by the monotonic clock."""

    def __init__(self, since: float) -> None:
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._part, self._since = "start", since
        self._stretches: list[tuple[str, dict[str, float]]] = []

    def enter(self, part: str) -> str:
        """Starts counting time for `part`; returns the previous part."""
        now = time.perf_counter()
        self._seconds[self._part] += now - self._since
        self._draw(self._part, now - self._since)
        before, self._part, self._since = self._part, part, now
        return before

    def _draw(self, part: str, seconds: float) -> None:
        """Adds seconds to the last stretch of the time line, or to a new one if the run does something else now."""
        doing = "training" if part in _ALTERNATING else part
        # Compilation interrupts something, and belongs to it.
        if not self._stretches or (part != "compile" and doing != self._stretches[-1][0]):
            self._stretches.append((doing, {}))
        stretch = self._stretches[-1][1]
        stretch[part] = stretch.get(part, 0.0) + seconds

    def timeline(self) -> list[dict[str, float]]:
        """Returns what was done since the last call, in order: the seconds per part of each stretch.

        Waiting for batches and computing alternate with every step and make up one stretch; an evaluation is another.
        """
        self.enter(self._part)
        stretches, self._stretches = self._stretches, []
        shown = ({part: round(s, 6) for part, s in stretch.items() if s >= 1e-6} for _, stretch in stretches)
        return [stretch for stretch in shown if stretch]

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A context whose time counts for `name`."""
        before = self.enter(name)
        try:
            yield
        finally:
            self.enter(before)

    def timed(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yields the items; the time to produce each counts for `name`."""
        iterator = iter(items)
        while True:
            with self.part(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def carry(self, seconds: dict[str, float]) -> None:
        """Adds the seconds of earlier starts of the run; see `spent_before`."""
        for name, value in seconds.items():
            self._seconds[name] += value

    def seconds(self) -> dict[str, float]:
        """Returns the seconds of each part up to now; their sum is the total."""
        self.enter(self._part)
        return dict(self._seconds)


@contextlib.contextmanager
def measure(since: float) -> Iterator[Goodput]:
    """Yields a `Goodput` that counts from `since` (a `time.perf_counter()`) and times this thread's compilations."""
    goodput, thread = Goodput(since), threading.get_ident()
    interrupted: list[str] = []  # per nested compilation: the part that it interrupted

    # JAX measures durations by the wall clock, which can be adjusted; use only the times at which the events arrive.
    def began(event: str, *_: Any, **__: Any) -> None:  # noqa: ANN401 - JAX's signature
        if event.startswith(_COMPILE_EVENTS) and threading.get_ident() == thread:
            interrupted.append(goodput.enter("compile"))

    def ended(event: str, *_: Any, **__: Any) -> None:  # noqa: ANN401
        if interrupted and event.startswith(_COMPILE_EVENTS) and threading.get_ident() == thread:
            goodput.enter(interrupted.pop())

    monitoring.register_scalar_listener(began)
    monitoring.register_event_duration_secs_listener(ended)
    try:
        yield goodput
    finally:
        monitoring.unregister_scalar_listener(began)
        monitoring.unregister_event_duration_listener(ended)


def spent_before(records: Sequence[Record], resumed_step: int) -> dict[str, float]:
    """Returns the seconds per part of earlier starts of a run that resumes from `resumed_step`.

    Work after the last saved step counts as "lost", up to the last record before the kill.

    Args:
        records: all lines of `metrics.jsonl` in order, including those of steps that will be repeated.
        resumed_step: the number of steps that are kept.
    """
    kept: dict[str, float] = {}
    base = reached = 0.0
    for record in records:
        if "seconds" not in record:
            continue
        if record["phase"] == PHASE:
            whole = sum(record["parts"].values())
            base = whole - record["seconds"]
            if record["step"] <= resumed_step:
                kept = dict(record["parts"])
        reached = max(reached, base + record["seconds"])
    if reached:
        kept["lost"] = kept.get("lost", 0.0) + reached - sum(kept.values())
    return kept


def describe(seconds: dict[str, float]) -> str:
    """Returns one line: the total and the share of each part, largest first."""
    whole = max(sum(seconds.values()), 1e-9)
    shares = sorted(((value / whole, name) for name, value in seconds.items() if value), reverse=True)
    return f"{whole:,.1f} s: " + " · ".join(f"{name} {share:.1%}" for share, name in shares)
