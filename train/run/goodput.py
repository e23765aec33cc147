"""Where a run's wall time went: every second belongs to one part, and a kill does not erase what came before it.

Parts: "start" (restoring or making the state), "compile" (tracing and XLA, wherever they happen), "data" (waiting for
batches), "step" (all else in the loop: the devices train), "checkpoint" (the loop waits for a save), "evaluation", and
"lost" (steps that a kill or a roll-back made worthless). The time between two starts of a run is in none of them.
"""

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from jax import monitoring

from train.run.history import Record

PARTS = ("start", "compile", "data", "step", "checkpoint", "evaluation", "lost")
PHASE = "goodput"
_COMPILE_EVENTS = "/jax/core/compile/"
T = TypeVar("T")


class Goodput:
    """Seconds a part, from `since` on; by the monotonic clock, so that setting the clock changes nothing."""

    def __init__(self, since: float) -> None:
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._part, self._since = "start", since

    def enter(self, part: str) -> str:
        """Gives the time from now on to `part`; returns the part that had it."""
        now = time.perf_counter()
        self._seconds[self._part] += now - self._since
        before, self._part, self._since = self._part, part, now
        return before

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A context whose time belongs to `name`."""
        before = self.enter(name)
        try:
            yield
        finally:
            self.enter(before)

    def timed(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yields the items; the time that each takes to come belongs to `name`."""
        iterator = iter(items)
        while True:
            with self.part(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def carry(self, seconds: dict[str, float]) -> None:
        """Adds what earlier starts of the run took: see `spent_before`."""
        for name, value in seconds.items():
            self._seconds[name] += value

    def seconds(self) -> dict[str, float]:
        """Returns the seconds of each part up to now; their sum is the whole."""
        self.enter(self._part)
        return dict(self._seconds)


@contextlib.contextmanager
def measure(since: float) -> Iterator[Goodput]:
    """Yields a `Goodput` that hears of this thread's compilations; it counts from `since`, a `time.perf_counter()`."""
    goodput, thread = Goodput(since), threading.get_ident()
    interrupted: list[str] = []  # one a nested compilation: the part that it interrupted

    # JAX tells how long each took by the clock on the wall, which may be set meanwhile; so only when it tells counts.
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
    """Returns the seconds of each part that earlier starts of a run took, when it goes on from `resumed_step`.

    What came after that step was saved is "lost", as far as the records tell: to the last one before the kill.

    Args:
        records: the lines of `metrics.jsonl`, in order, those of steps to be done again included.
        resumed_step: the steps that are kept.
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
    """Returns one line: the whole, and each part's share of it, the largest first."""
    whole = max(sum(seconds.values()), 1e-9)
    shares = sorted(((value / whole, name) for name, value in seconds.items() if value), reverse=True)
    return f"{whole:,.1f} s: " + " · ".join(f"{name} {share:.1%}" for share, name in shares)
