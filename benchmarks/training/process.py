"""A program of the comparison in its own process, which trains a few steps whenever it is told to."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.training.work import Work

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass(frozen=True)
class Turn:
    """What some train steps cost.

    Attributes:
        seconds: wall time.
        cpu_seconds: CPU time of all threads, which other programs disturb less.
        faults: minor page faults.
        loss: of the last step, in nats per token.
    """

    seconds: float
    cpu_seconds: float
    faults: int
    loss: float


@dataclasses.dataclass(frozen=True)
class Program:
    """A running program.

    Attributes:
        name: in the table.
        about: its versions and number of parameters.
        process: it; a line on its input starts a turn, a line of JSON on its output ends it.
    """

    name: str
    about: dict[str, Any]
    process: subprocess.Popen[str]

    def turn(self) -> Turn:
        """Returns what the next turn cost; exits if the program ended."""
        before, start = self._used(), time.perf_counter()
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        answer = self._line()
        seconds, after = time.perf_counter() - start, self._used()
        return Turn(seconds, after[0] - before[0], after[1] - before[1], answer["loss"])

    def peak_bytes(self) -> int:
        """Returns the largest memory that it has had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    def _used(self) -> tuple[float, int]:
        """Returns (CPU seconds, minor page faults) so far (proc(5))."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS, int(fields[7])

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended with {self.process.wait()}; its messages are above")
        found: dict[str, Any] = json.loads(line)
        return found


@contextlib.contextmanager
def running(name: str, command: list[str], work: Work, root: Path, environment: dict[str, str]) -> Iterator[Program]:
    """Starts a program in the checkout `root`, with the work as its last argument; yields it with its model built."""
    with subprocess.Popen(
        [*command, json.dumps(work.as_json())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"} | environment,
    ) as process:
        try:
            program = Program(name, {}, process)
            yield dataclasses.replace(program, about=program._line())
        finally:
            process.kill()
