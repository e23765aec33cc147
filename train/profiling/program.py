"""What the operations of a compiled train step are: their kind, the module that they belong to, FLOPs and bytes."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from train.planner.hlo import COLLECTIVES, Computation, Instruction, Module

KINDS = ("products", "copies", "collectives", "other")
# The kind of the time in which a device runs nothing.
IDLE = "idle"
# Modules of operations that belong to none of the model. What has no name was added by the compiler, such as copies
# and the empty buffers of loops.
UPDATE, LAYERS, UNNAMED = "optimizer", "layers", "(no name)"

# What moves or converts values and computes nothing.
_MOVES = frozenset(
    "copy transpose reshape slice dynamic-slice dynamic-update-slice concatenate pad broadcast convert gather reverse "
    "copy-start copy-done slice-start slice-done bitcast bitcast-convert parameter constant tuple get-tuple-element "
    "iota".split()
)
_CONTAINERS = frozenset(("while", "conditional", "call"))
_PRODUCT_TARGETS = re.compile(r'custom_call_target="[^"]*(gemm|matmul|cublas|cudnn|conv|attention|mosaic|tpu_custom)')
# Parts of a name that transformations and control flow add; modules and named scopes are what is left.
_WRAPPERS = re.compile(r"^(?:transpose|jvp|vmap|remat|checkpoint|shard_map|custom_vjp|custom_jvp)\((.*)\)$")
_CONTROL = frozenset(
    "while body cond branch scan eval_jaxpr closed_call core_call pjit checkpoint remat rematted_computation shard_map "
    "custom_vjp_call custom_jvp_call custom_vjp_call_jaxpr".split()
)


class Operation(NamedTuple):
    """One operation of a program.

    Attributes:
        kind: one of `KINDS`.
        module: where it belongs to, e.g. "attention/query", "cross_entropy" or "optimizer".
        direction: "forward", "backward", or "update" for what follows the gradient.
        flops: multiplications and additions of its matrix products, per execution on a device.
        bytes: read from and written to memory, per execution on a device.
        container: whether it only runs other operations, which a trace has too.
    """

    kind: str
    module: str
    direction: str
    flops: float
    bytes: float
    container: bool


_OTHER = Operation("other", UNNAMED, "forward", 0.0, 0.0, False)


class StepProgram:
    """A compiled train step, by the text of its HLO."""

    def __init__(self, text: str) -> None:
        self.module = Module(text)
        name = re.match(r"HloModule ([\w.\-]+)", text)
        self.name = name[1] if name else ""
        self.places = {
            instruction.name: computation
            for label, computation in self.module.computations.items()
            if label in self.module.runs
            for instruction in computation.values()
        }
        self._known: dict[str, Operation] = {}

    def entry_operations(self) -> set[str]:
        """Returns the names of the operations that run once per step."""
        return set(self.module.computations[self.module.entry])

    def operation(self, name: str) -> Operation:
        """Returns the `Operation` of a name in a trace, which may be one that the text lacks (a GPU's kernel)."""
        if name not in self._known:
            computation = self.places.get(name)
            self._known[name] = _kernel(name) if computation is None else self._described(computation, name)
        return self._known[name]

    def _described(self, computation: Computation, name: str) -> Operation:
        instruction = computation[name]
        inside = list(self._inside(computation, instruction))
        products = [(around, one) for around, one in inside if _is_product(one)]
        module, direction = _place([one for _, one in products] or [instruction, *(one for _, one in inside)])
        return Operation(
            _kind([one for _, one in inside]),
            module,
            direction,
            sum(_product_flops(around, one) for around, one in products),
            self.module.moved(computation, instruction),
            instruction.opcode in _CONTAINERS and not (instruction.opcode == "call" and products),
        )

    def _inside(self, computation: Computation, instruction: Instruction) -> Iterator[tuple[Computation, Instruction]]:
        """Yields an instruction and those that it consists of, each with its computation."""
        yield computation, instruction
        called = re.search(r"(?:calls|to_apply)=%?([\w.\-]+)", instruction.rest)
        if called and instruction.opcode in ("fusion", "call", "async-start"):
            inner = self.module.computations.get(called[1], {})
            for one in inner.values():
                yield from self._inside(inner, one)


def _kind(inside: list[Instruction]) -> str:
    """Returns the kind of an operation that consists of these instructions."""
    opcodes = {one.opcode for one in inside} - {"fusion", "call"}
    if any(opcode.removesuffix("-start").removesuffix("-done") in COLLECTIVES for opcode in opcodes):
        return "collectives"
    if opcodes & {"send", "recv", "send-done", "recv-done"}:
        return "collectives"
    if any(map(_is_product, inside)):
        return "products"
    return "copies" if opcodes <= _MOVES else "other"


def _kernel(name: str) -> Operation:
    """Returns the `Operation` of a GPU's kernel that has no operation of the program."""
    lower = name.lower()
    if "nccl" in lower:
        return _OTHER._replace(kind="collectives")
    if re.search("gemm|cutlass|cublas|xmma|nvjet|flash|fmha|cudnn", lower):
        return _OTHER._replace(kind="products")
    return _OTHER._replace(kind="copies") if re.search("memcpy|memset", lower) else _OTHER


def _is_product(instruction: Instruction) -> bool:
    if instruction.opcode == "custom-call":
        return bool(_PRODUCT_TARGETS.search(instruction.rest))
    return instruction.opcode in ("dot", "convolution", "ragged-dot")


def _product_flops(computation: Computation, instruction: Instruction) -> float:
    """Returns 2 x multiply-adds of a product; 0 of a kernel whose text has no dimensions."""
    out = math.prod(_dimensions(instruction.shape))
    sources = [_dimensions(computation[name].shape) if name in computation else [] for name in instruction.operands]
    if instruction.opcode == "ragged-dot":
        return 2.0 * math.prod(sources[0]) * _dimensions(instruction.shape)[-1]
    if instruction.opcode == "convolution":
        labels = re.search(r"dim_labels=\w+_(\w+)->", instruction.rest)
        features = sources[1][labels[1].index("o")] if labels else 1
        return 2.0 * out * math.prod(sources[1]) / max(features, 1)
    contracted = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)', instruction.rest)
    if contracted is None:
        return 0.0
    return 2.0 * out * math.prod(sources[0][int(axis)] for axis in re.findall(r"\d+", contracted[1]))


def _dimensions(shape: str) -> list[int]:
    """Returns the sizes of an array's axes; of a tuple, those of its first array."""
    found = re.search(r"\[([\d,]*)\]", shape)
    return [int(size) for size in found[1].split(",") if size] if found else []


def _place(instructions: list[Instruction]) -> tuple[str, str]:
    """Returns (module, direction) of an operation: those that most of its instructions name."""
    places = [place_of(match[1]) for one in instructions if (match := re.search(r'op_name="([^"]*)"', one.rest))]
    named = [place for place in places if place[0] not in (LAYERS, UPDATE)]
    places = named or places or [place for one in instructions for place in _places_of_state(one)]
    return Counter(places or [(UNNAMED, "forward")]).most_common(1)[0][0]


def _places_of_state(instruction: Instruction) -> Iterator[tuple[str, str]]:
    """Yields the place of each operand that is an argument of the step: the compiler's copies have no other name."""
    for operand in instruction.operands:
        if operand.startswith("state_"):
            yield UPDATE if operand.startswith("state_opt_state") else "parameters", "update"


def place_of(op_name: str) -> tuple[str, str]:
    """Returns (module, direction) of an operation's name, such as "jit(train_step)/jvp(Embedding)/add".

    A name consists of the transformations, control flow, modules and named scopes that an operation is in, and ends
    with its primitive. What is in no gradient is the update.
    """
    # The first of the names that a fusion joined.
    parts = _split(op_name.partition(";")[0])
    in_gradient = any("jvp(" in part for part in parts)
    backward = any(part.startswith("transpose(") for part in parts)
    direction = "backward" if backward else "forward" if in_gradient else "update"
    names = [name for part in parts[:-1] if (name := _module(part))]
    if not names:
        return (LAYERS if "while" in parts else "loss" if in_gradient else UPDATE), direction
    # A rematerialized module is inside itself: Block/mlp/Block/mlp.
    last = len(names) - 1 - names[::-1].index(names[0])
    names = names[last:]
    if names[0].startswith("Block"):
        names = names[1:] or [LAYERS]
    return "/".join(names[:2]), direction


def _split(op_name: str) -> list[str]:
    """Returns the parts of a name; a slash in parentheses belongs to its part."""
    parts, depth, current = [], 0, ""
    for character in op_name:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "/" and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += character
    return [*parts, current]


def _module(part: str) -> str:
    """Returns the module or scope that a part of a name names, or ""."""
    while match := _WRAPPERS.match(part):
        part = match[1]
    # Einsum names its operands, jit its function, and a method of a module that of its caller.
    if "->" in part or "(" in part or "." in part or part in _CONTROL or part.startswith("branch_"):
        return ""
    return part
