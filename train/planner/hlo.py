"""Parses the text of a compiled HLO module: collectives and memory traffic of one execution.

XLA's own cost analysis counts the body of a loop once; here every computation counts as often as it runs. XLA's text
format is not stable: this parser was tested with `TESTED_JAX_VERSIONS`, and a test fails with any other version.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

TESTED_JAX_VERSIONS = ("0.10", "0.12")
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Opcodes that move no bytes: they name, group or wait for the results of others.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all partition-id replica-id "
    "opt-barrier async-start async-update async-done copy-done slice-done iota".split()
)
_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4,
    "s64": 8, "u64": 8, "f64": 8, "c64": 8, "s4": 0.5, "u4": 0.5, "f8e4m3fn": 1, "f8e5m2": 1,
}  # fmt: skip
_ARRAY = re.compile(r"([a-z]+[0-9]*(?:e\dm\d\w*)?)\[([\d,]*)\](\{[^{}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_NAME = re.compile(r"%([\w.\-]+)")


class Instruction(NamedTuple):
    """One line of a computation; `rest` is the text after the operands."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    root: bool


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind and one group of devices in one execution of the module.

    Attributes:
        kind: one of `COLLECTIVES`.
        group: the device numbers of the first replica group.
        count: number of executions.
        bytes: bytes sent by each device in all executions, by a ring or bidirectional ring.
        host: whether the hosts transfer it between TPU slices; then `group` is empty and `bytes` is the payload,
            counted once.
    """

    kind: str
    group: tuple[int, ...]
    count: float
    bytes: float
    host: bool = False


class Module:
    """A parsed HLO module; `runs` counts the executions of each computation."""

    def __init__(self, text: str) -> None:
        self.computations, self.entry = _parse(text)
        partitions = re.search(r"num_partitions=(\d+)", text)
        self.partitions = int(partitions[1]) if partitions else 1
        self.runs: dict[str, float] = {}
        self.fused: set[str] = set()
        self._count(self.entry, 1.0)

    def collectives(self) -> list[Collective]:
        """Returns the module's collectives, summed by kind and group."""
        found: dict[tuple[str, tuple[int, ...]], tuple[float, float]] = {}
        seen: set[str] = set()
        for name, runs in self.runs.items():
            for instruction in self.computations[name].values():
                between_slices = re.search(r'rendezvous="([a-z\-]+)\.', instruction.rest)
                if instruction.opcode == "send" and between_slices:
                    count, total = found.get((between_slices[1], ()), (0.0, 0.0))
                    size = _size(self.computations[name][instruction.operands[0]].shape)
                    found[between_slices[1], ()] = (count + runs, total + runs * size)
                    continue
                kind = instruction.opcode.removesuffix("-start")
                if kind not in COLLECTIVES:
                    continue
                # An asynchronous collective appears in every fusion of the chain that it overlaps with.
                chain = re.search(r'channel_id=(\d+).*chain_id="(\d+)"', instruction.rest)
                if chain and name in self.fused:
                    if chain[0] in seen:
                        continue
                    seen.add(chain[0])
                group = _group(instruction) or tuple(range(self.partitions))
                count, total = found.get((kind, group), (0.0, 0.0))
                found[kind, group] = (count + runs, total + runs * self._sent(name, instruction, kind, len(group)))
        return [Collective(kind, group, count, total, group == ()) for (kind, group), (count, total) in found.items()]

    def memory_traffic(self) -> float:
        """Returns the bytes that one device reads from and writes to main memory: operands and results of fusions.

        A fusion that slices one layer out of a stacked array counts the slice only.
        """
        total = 0.0
        for name, runs in self.runs.items():
            if name in self.fused:
                continue
            computation = self.computations[name]
            for instruction in computation.values():
                if instruction.opcode not in _FREE and not instruction.opcode.endswith("-done"):
                    total += runs * self.moved(computation, instruction)
        return total

    def instructions(self) -> int:
        """Returns the number of instructions in computations that run, including those inside fusions."""
        return sum(len(self.computations[name]) for name in self.runs)

    def _count(self, name: str, runs: float, fused: bool = False) -> None:
        self.runs[name] = self.runs.get(name, 0.0) + runs
        if fused:
            self.fused.add(name)
        for instruction in self.computations[name].values():
            for called, times in self._calls(instruction):
                if called in self.computations:
                    self._count(called, runs * times, fused or instruction.opcode == "fusion")

    def _calls(self, instruction: Instruction) -> Iterator[tuple[str, float]]:
        rest = instruction.rest
        if instruction.opcode == "while":
            body = _attribute(rest, "body")
            yield body, self._trips(rest, _attribute(rest, "condition"), body)
        elif instruction.opcode == "conditional":
            branches = re.search(r"branch_computations=\{([^}]*)\}", rest)
            names = (
                _NAME.findall(branches[1]) if branches else re.findall(r"(?:true|false)_computation=%([\w.\-]+)", rest)
            )
            for name in names:
                yield name, 1.0 / len(names)
        elif instruction.opcode in ("fusion", "call", "async-start"):
            name = _attribute(rest, "calls") or _attribute(rest, "to_apply")
            if name:
                yield name, 1.0

    def _trips(self, rest: str, condition: str, body: str) -> float:
        """Returns the trip count of a loop: XLA's annotation, or from `counter < limit` and the body's increment."""
        known = re.search(r"known_trip_count\W+n\W+(\d+)", rest)
        if known:
            return float(known[1])
        test = self.computations[condition]
        compare = next((i for i in test.values() if i.root), None)
        if compare is None:
            return 1.0
        limits = [_constant(test[o]) for o in compare.operands if o in test and test[o].opcode == "constant"]
        if not limits:
            limits = [_constant(i) for i in test.values() if i.opcode == "constant"]
        counters = [test[o] for o in compare.operands if o in test and test[o].opcode == "get-tuple-element"]
        step = self._step(body, int(_attribute(counters[0].rest, "index") or 0)) if counters else 1
        return math.ceil(limits[0] / step) if limits else 1.0

    def _step(self, body: str, index: int) -> int:
        computation = self.computations[body]
        root = next(i for i in computation.values() if i.root)
        if root.opcode != "tuple" or index >= len(root.operands):
            return 1
        added = computation.get(root.operands[index])
        if added is None or added.opcode != "add":
            return 1
        steps = [_constant(computation[o]) for o in added.operands if computation[o].opcode == "constant"]
        return steps[0] if steps and steps[0] > 0 else 1

    def _sent(self, name: str, instruction: Instruction, kind: str, size: int) -> float:
        computation = self.computations[name]
        operands = sum(_size(computation[o].shape) for o in instruction.operands if o in computation)
        if kind == "collective-permute":
            return operands
        share = (size - 1) / max(size, 1)
        if kind == "all-gather":
            return operands * (size - 1)
        return operands * share * (2 if kind == "all-reduce" else 1)

    def moved(self, computation: Computation, instruction: Instruction) -> float:
        """Returns the bytes of main memory that one execution of an instruction reads and writes."""
        written = _size(instruction.shape, main_memory=True)
        if instruction.opcode == "dynamic-slice":
            return 2 * written
        if instruction.opcode == "dynamic-update-slice":
            return 2 * _size(computation[instruction.operands[1]].shape, main_memory=True)
        called = _attribute(instruction.rest, "calls") if instruction.opcode == "fusion" else ""
        read = 0.0
        for number, operand in enumerate(instruction.operands):
            if operand not in computation:
                continue
            whole = _size(computation[operand].shape, main_memory=True)
            part, replaced = self._touched(called, number) if called and whole else (whole, 0.0)
            read += min(part, whole)
            if replaced:
                # The result is the operand with one slice replaced: only the slice is written.
                written = max(written - whole, 0.0) + replaced
        return read + written

    def _touched(self, name: str, number: int) -> tuple[float, float]:
        """Returns (bytes read, bytes replaced in place) of one parameter of a computation."""
        computation = self.computations[name]
        pending = [i for i in computation.values() if i.opcode == "parameter" and _constant(i) == number]
        read, replaced = 0.0, 0.0
        while pending:
            source = pending.pop()
            for user in computation.values():
                places = [place for place, operand in enumerate(user.operands) if operand == source.name]
                if not places:
                    continue
                if user.opcode == "bitcast":
                    pending.append(user)
                elif user.opcode == "dynamic-slice":
                    read += _size(user.shape)
                elif user.opcode == "dynamic-update-slice" and places == [0]:
                    replaced += _size(computation[user.operands[1]].shape)
                elif user.opcode == "fusion":
                    for place in places:
                        inner = self._touched(_attribute(user.rest, "calls"), place)
                        read, replaced = read + inner[0], replaced + inner[1]
                else:
                    return math.inf, 0.0
        return read, replaced


def by_kind(collectives: Iterable[Collective]) -> dict[str, dict[str, float]]:
    """Returns {kind: {"count", "bytes"}}, summed over groups."""
    found: dict[str, dict[str, float]] = {}
    for one in sorted(collectives, key=lambda c: c.kind):
        before = found.get(one.kind, {"count": 0.0, "bytes": 0.0})
        found[one.kind] = {"count": before["count"] + one.count, "bytes": before["bytes"] + one.bytes}
    return found


def _parse(text: str) -> tuple[dict[str, Computation], str]:
    computations: dict[str, Computation] = {}
    entry, current = "", ""
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = header[2]
            computations[current] = {}
            entry = current if header[1] else entry
        elif current and line.startswith(("  %", "  ROOT %")):
            instruction = _instruction(line)
            if instruction:
                computations[current][instruction.name] = instruction
        elif line == "}":
            current = ""
    return computations, entry


def _instruction(line: str) -> Instruction | None:
    match = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not match:
        return None
    text = line[match.end() :]
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, text = text[:end], text[end:].lstrip()
    opening = text.index("(")
    closing = _closing(text, opening)
    operands = tuple(_NAME.findall(text[opening:closing]))
    # Constants and parameters have a value or number in place of operands.
    rest = text[opening:] if text.startswith(("constant(", "parameter(")) else text[closing + 1 :]
    return Instruction(match[2], shape, text[:opening], operands, rest, bool(match[1]))


def _closing(text: str, opening: int) -> int:
    depth = 0
    for place in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return len(text) - 1


def _size(shape: str, main_memory: bool = False) -> float:
    """Returns the bytes of a shape, summed over tuples; `main_memory` excludes buffers in on-chip memory."""
    total = 0.0
    for dtype, dims, layout in _ARRAY.findall(shape):
        if dtype in _BYTES and not (main_memory and re.search(r"S\([1-9]\d*\)", layout)):
            total += _BYTES[dtype] * math.prod(int(d) for d in dims.split(",") if d)
    return total


def _attribute(rest: str, name: str) -> str:
    match = re.search(rf"\b{name}=%?([\w.\-]+)", rest)
    return match[1] if match else ""


def _constant(instruction: Instruction) -> int:
    match = re.match(r"\((-?\d+)\)", instruction.rest)
    return int(match[1]) if match else 0


def _group(instruction: Instruction) -> tuple[int, ...]:
    """Returns the first replica group, in any of XLA's three notations; empty means all devices.

    For a permutation it is the pair with the largest distance, which shows whether data leave a machine.
    """
    rest = instruction.rest
    if instruction.opcode.startswith("collective-permute"):
        pairs = [(int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)\}", rest.partition("pairs=")[2])]
        return max(pairs, key=lambda pair: abs(pair[0] - pair[1]), default=(0,))
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", rest)
    if listed:
        return tuple(int(n) for n in listed[1].split(","))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    if iota:
        devices = np.arange(math.prod(map(int, iota[3].split(",")))).reshape([int(n) for n in iota[3].split(",")])
        if iota[4]:
            devices = devices.transpose([int(n) for n in iota[4].split(",")])
        return tuple(devices.reshape(int(iota[1]), int(iota[2]))[0].tolist())
    named = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", rest)
    if named:
        axes = {name: int(size) for name, size in re.findall(r"'?(\w+)'?=(\d+)", named[1])}
        over = re.findall(r"\w+", named[2])
        devices = np.arange(math.prod(axes.values())).reshape(list(axes.values()))
        devices = np.moveaxis(devices, [list(axes).index(a) for a in over], range(len(over)))
        return tuple(devices.reshape(math.prod(axes[a] for a in over), -1)[:, 0].tolist())
    return ()
