"""What a fault is: a module of this package lists its own as `FAULTS`, and `python -m tests.faults` finds them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one fault.

    Attributes:
        injected: what was done, with numbers: "50 SIGKILLs in 200 steps".
        survived: what the row of the table promises was seen.
        lost_steps: steps that were done again, of all restarts together.
        seen: one line: what the run said or how it ended.
    """

    injected: str
    survived: bool
    lost_steps: int
    seen: str


@dataclasses.dataclass(frozen=True)
class Fault:
    """One row of the table.

    Attributes:
        name: short: "SIGKILL", "disk full".
        inject: (an empty directory, short) -> what came of it; `short` is the form of seconds for `make test`.
        in_test: whether `make test` runs the short form.
    """

    name: str
    inject: Callable[[Path, bool], Outcome]
    in_test: bool = True
