"""The type of a fault. Each module of this package lists its own as `FAULTS`; `python -m tests.faults` runs them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of one injected fault.

    Attributes:
        injected: what was done, with numbers: "50 SIGKILLs in 200 steps".
        survived: whether the run behaved as docs/faults.md promises.
        lost_steps: steps that were repeated, summed over all restarts.
        seen: how the run ended and what it printed, in one line.
    """

    injected: str
    survived: bool
    lost_steps: int
    seen: str


@dataclasses.dataclass(frozen=True)
class Fault:
    """One row of the table.

    Attributes:
        name: short, such as "SIGKILL" or "disk full".
        inject: (an empty directory, short) -> outcome; the short form takes seconds.
        in_test: whether the test suite runs the short form.
    """

    name: str
    inject: Callable[[Path, bool], Outcome]
    in_test: bool = True
