"""Where the time of a profile's steps goes: by module, kind and operation, of one device and one step.

At each moment, a device's time counts for the operations that it executes, in equal parts if there are several, and as
idle if there is none. So the parts add up to the time of a step.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.errors import UserError
from train.hardware import CHIPS
from train.profiling.events import Execution, read_executions
from train.profiling.files import Window, profiles, read_window, trace_files
from train.profiling.program import IDLE, KINDS, StepProgram

# The module of programs that ran between the steps, such as an evaluation.
OTHER_PROGRAMS = "(other programs)"


@dataclasses.dataclass(frozen=True)
class OperationTime:
    """An operation's part of a step on one device.

    Attributes:
        name: in the program's text and in the trace.
        kind: one of `KINDS`.
        module: the module of the model, or another part of the step.
        count: executions per step.
        seconds: its time per step.
        flops: of its matrix products, per step.
        bytes: read from and written to memory, per step.
    """

    name: str
    kind: str
    module: str
    count: float
    seconds: float
    flops: float
    bytes: float


@dataclasses.dataclass(frozen=True)
class Summary:
    """Where the time of a step goes, as the mean over steps and devices.

    Attributes:
        window: the profiled steps.
        devices: number of devices with a trace.
        steps: number of steps in the trace; fewer than the window's where the profiler dropped some.
        seconds: from the start of a step to that of the next one.
        modules: {module: {kind: seconds}}, by time; the idle time is not in it.
        idle: seconds in which a device executes nothing.
        directions: {"forward", "backward", "update": seconds} of the step's operations.
        operations: all operations of the step, by time.
        flops: of the matrix products of a step, on one device, as they were executed.
        bytes: read from and written to memory in a step by one device.
    """

    window: Window
    devices: int
    steps: float
    seconds: float
    modules: dict[str, dict[str, float]]
    idle: float
    directions: dict[str, float]
    operations: tuple[OperationTime, ...]
    flops: float
    bytes: float

    def kinds(self) -> dict[str, float]:
        """Returns {kind: seconds}, with the idle time."""
        return {kind: sum(m.get(kind, 0.0) for m in self.modules.values()) for kind in KINDS} | {IDLE: self.idle}

    def limits(self) -> tuple[float, float] | None:
        """Returns (FLOP/s, bytes per second) that a device can do at most; None for a chip that is not listed."""
        if self.window.chip is None:
            return None
        chip = CHIPS[self.window.chip]
        return chip.flops / chip.devices, chip.hbm_bandwidth / chip.devices

    def as_json(self, count: int) -> dict[str, Any]:
        """Returns the summary for `--json`, with the `count` longest operations."""
        limits = self.limits()
        shortened = dataclasses.replace(self, operations=self.operations[:count])
        return dataclasses.asdict(shortened) | {
            "kinds": self.kinds(),
            "limits": None
            if limits is None
            else dict(zip(("flops_per_second", "bytes_per_second"), limits, strict=True)),
        }


def newest_profile(workdir: Path, step: int = 0) -> Path | None:
    """Returns the directory of the run's last profile, or of the one that has `step`; None: the run has no profile.

    Raises:
        UserError: no profile has the step.
    """
    found = profiles(workdir)
    if not step:
        return found[-1] if found else None
    windows = {path: path.name.removeprefix("steps-").split("-") for path in found}
    having = [path for path, (first, last) in windows.items() if int(first) <= step <= int(last)]
    if not having:
        have = ", ".join(f"{first} to {last}" for first, last in windows.values()) or "none"
        raise UserError(f"--step={step} is not in a profile of {workdir}; steps with a profile: {have}")
    return having[-1]


def summarize(directory: Path) -> Summary:
    """Returns the `Summary` of a profile.

    Raises:
        UserError: a file is missing or damaged, or the trace has no operation of the step.
    """
    window, text = read_window(directory)
    program = StepProgram(text)
    traces = trace_files(directory)
    by_device: dict[str, list[Execution]] = defaultdict(list)
    for process, path in enumerate(traces):
        for one in read_executions(path):
            by_device[f"{process}:{one.device}"].append(one)
    try:
        return of_executions(window, program, by_device)
    except UserError as error:
        raise UserError(f"{directory}: {error}") from None


def of_executions(window: Window, program: StepProgram, by_device: Mapping[str, Sequence[Execution]]) -> Summary:
    """Returns the `Summary` of what each device executed.

    Raises:
        UserError: no device executed an operation of the step.
    """
    steps = {name: own for name, found in by_device.items() if (own := _of_steps(found, program))}
    if not steps:
        raise UserError(f"the trace has no operation of {program.name}; profile the steps again")
    return _summary(window, program, steps)


def _of_steps(executions: Sequence[Execution], program: StepProgram) -> list[Execution]:
    """Returns the executions from the first operation of a step to the last one, without those that contain others."""
    own = [one for one in executions if _is_of(one, program)]
    if not own:
        return []
    first, last = min(one.start for one in own), max(one.end for one in own)
    return [
        one
        for one in executions
        if first <= one.start
        and one.end <= last
        and not (_is_of(one, program) and program.operation(one.operation).container)
    ]


def _is_of(one: Execution, program: StepProgram) -> bool:
    return one.program in ("", program.name)


def _summary(window: Window, program: StepProgram, by_device: Mapping[str, Sequence[Execution]]) -> Summary:
    counts: dict[tuple[str, bool], int] = defaultdict(int)
    times: dict[tuple[str, bool], float] = defaultdict(float)
    whole = idle = 0.0
    for found in by_device.values():
        for one in found:
            counts[_key(one, program)] += 1
        for key, seconds in _shares((one.start, one.end, _key(one, program)) for one in found):
            if key is None:
                idle += seconds
            else:
                times[key] += seconds
        whole += (max(one.end for one in found) - min(one.start for one in found)) / 1e9
    once = program.entry_operations()
    runs = max((n for (name, own), n in counts.items() if own and name in once), default=len(by_device) * window.count)
    modules: dict[str, dict[str, float]] = {}
    directions: dict[str, float] = defaultdict(float)
    operations = []
    for (name, own), seconds in sorted(times.items(), key=lambda item: -item[1]):
        operation = program.operation(name)
        kind, module = (operation.kind, operation.module) if own else ("other", OTHER_PROGRAMS)
        kinds = modules.setdefault(module, {})
        kinds[kind] = kinds.get(kind, 0.0) + seconds / runs
        if own:
            count = counts[name, own] / runs
            directions[operation.direction] += seconds / runs
            operations.append(
                OperationTime(
                    name, kind, module, count, seconds / runs, count * operation.flops, count * operation.bytes
                )
            )
    return Summary(
        window=window,
        devices=len(by_device),
        steps=runs / len(by_device),
        seconds=whole / runs,
        modules=dict(sorted(modules.items(), key=lambda item: -sum(item[1].values()))),
        idle=idle / runs,
        directions=dict(directions),
        operations=tuple(operations),
        flops=sum(one.flops for one in operations),
        bytes=sum(one.bytes for one in operations),
    )


def _key(one: Execution, program: StepProgram) -> tuple[str, bool]:
    return one.operation, _is_of(one, program)


def _shares(intervals: Iterable[tuple[float, float, Any]]) -> Iterator[tuple[Any, float]]:
    """Yields (key, seconds) parts of the time from the first start to the last end; the key of an idle part is None."""
    edges: list[tuple[float, bool, Any]] = []
    for start, end, key in intervals:
        edges += [(start, True, key), (end, False, key)]
    edges.sort(key=lambda edge: edge[0])
    active: dict[Any, int] = defaultdict(int)
    running, before = 0, edges[0][0] if edges else 0.0
    for time, begins, key in edges:
        if time > before:
            seconds = (time - before) / 1e9
            if running == 0:
                yield None, seconds
            for name, number in active.items():
                yield name, seconds * number / running
            before = time
        active[key] += 1 if begins else -1
        running += 1 if begins else -1
        if active[key] == 0:
            del active[key]
