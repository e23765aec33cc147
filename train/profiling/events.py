"""Reads the operations of a trace: which one a device ran, from when to when."""

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jax.profiler import ProfileData

from configs.errors import UserError

# The line of a TPU's plane with one event per operation; GPUs have a line per stream.
_TPU_LINE = "XLA Ops"
_END = "end: "


class Execution(NamedTuple):
    """One execution of an operation of a compiled program.

    Attributes:
        device: name of the device, unique in a trace.
        program: name of the program ("jit_train_step"), or "" where the trace has none.
        operation: name of the operation in the program's text, or of a kernel.
        start: nanoseconds since the profiler started.
        end: likewise.
    """

    device: str
    program: str
    operation: str
    start: float
    end: float


def read_executions(path: Path) -> list[Execution]:
    """Returns what the devices of a process executed, in no order.

    Raises:
        UserError: the file is not a trace.
    """
    try:
        # The types of the statistics have no __module__ in some versions of JAX.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            planes = list(ProfileData.from_file(str(path)).planes)
            accelerators = [plane for plane in planes if plane.name.startswith("/device:")]
            found = [one for plane in accelerators for one in _of_accelerator(plane)]
            # Beside those of accelerators, the host's events are of the same operations, being started.
            return found or [one for plane in planes if plane.name == "/host:CPU" for one in _of_cpu(plane)]
    # The reader raises what its C++ library does.
    except Exception as error:
        raise UserError(f"{path} is not a trace of the profiler: {error}") from None


def _of_accelerator(plane: Any) -> Iterator[Execution]:  # noqa: ANN401 - JAX does not export its type
    lines = list(plane.lines)
    named = [line for line in lines if line.name == _TPU_LINE]
    for line in named or lines:
        for event in line.events:
            stats = dict(event.stats)
            if not named and "hlo_op" not in stats and not stats.get("correlation_id"):
                continue
            operation = str(stats.get("hlo_op") or _first_name(event.name))
            start, program = event.start_ns, str(stats.get("hlo_module", "")).partition("(")[0]
            yield Execution(plane.name, program, operation, start, start + event.duration_ns)


def _of_cpu(plane: Any) -> Iterator[Execution]:  # noqa: ANN401
    """Yields a CPU's executions.

    A matrix product returns at once and is computed by other threads; another event, with the number of its producer,
    marks its end.
    """
    started: list[tuple[tuple[Any, Any], dict[str, Any], float, float]] = []
    ends: dict[tuple[Any, Any], float] = {}
    for line in plane.lines:
        for event in line.events:
            if event.name.startswith(_END):
                stats = dict(event.stats)
                ends[stats.get("_ct"), stats.get("_c")] = event.start_ns
                continue
            stats = dict(event.stats)
            if "hlo_op" in stats:
                started.append(((stats.get("_pt"), stats.get("_p")), stats, event.start_ns, event.duration_ns))
    for number, stats, start, duration in started:
        end = max(ends.get(number, start + duration), start)
        device = f"cpu:{stats.get('device_ordinal', 0)}"
        yield Execution(device, str(stats.get("hlo_module", "")), str(stats["hlo_op"]), start, end)


def _first_name(text: str) -> str:
    """Returns the name at the start of an operation's text, as in "%fusion.3 = f32[8] fusion(...)"."""
    match = re.match(r"%?([\w.\-]+)", text)
    return match[1] if match else text
