"""Train steps of the same Llama in Rootstock, transformers, MaxText and nanoGPT's model, on a CPU, turn by turn.

    python -m venv HF && HF/bin/pip install torch==2.13.0 transformers peft
    python3.12 -m venv MT && MT/bin/pip install 'maxtext[tpu]==0.2.5'
    python -m benchmarks.training --peer_python=HF/bin/python --maxtext_python=MT/bin/python --nanogpt=nanoGPT
    python -m benchmarks.training --peer_python=HF/bin/python --size=135M --rows=16 --length=64 --lora=8 [--answer=16]

Each program trains by AdamW with clipping at norm 1 on random tokens, in its own process, all of which are alive
together; in each round, each of them has one turn. The first rounds warm up. A ratio is the median of the rounds'
ratios, so that other programs on the machine disturb both sides of it. The initialization and the learning rate are
each one's own. Needs Linux.
"""

import argparse
import contextlib
import dataclasses
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.training.process import Program, Turn, running
from benchmarks.training.work import SIZES, Work

_FOLDER = Path(__file__).resolve().parent
_ROOT = _FOLDER.parents[1]
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class _Side:
    """How a program of the comparison is started."""

    command: list[str]
    dtype: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    root: Path = _ROOT


def sides_of(arguments: argparse.Namespace) -> dict[str, _Side]:
    """Returns all programs whose Pythons are given, by the name in the table."""
    found: dict[str, _Side] = {}
    tuning = arguments.lora or arguments.answer
    own = [sys.executable, "-m", "benchmarks.training.own"]
    peer = [arguments.peer_python or "", str(_FOLDER / "torch_program.py")]
    maxtext = [arguments.maxtext_python or "", str(_FOLDER / "maxtext_program.py")]
    for dtype in _DTYPES:
        roots = {"rootstock": _ROOT} | ({"earlier": Path(arguments.earlier).resolve()} if arguments.earlier else {})
        for name, root in roots.items():
            found[f"{name} {dtype}"] = _Side(own, dtype, root=root)
            found[f"{name} {dtype} unrolled"] = _Side(own, dtype, {"scan_layers": False}, root)
        if arguments.peer_python:
            found[f"torch {dtype}"] = _Side(peer, dtype)
            found[f"torch {dtype} compiled"] = _Side(peer, dtype, {"compiled": True})
            if arguments.nanogpt and not tuning:
                found[f"nanogpt {dtype}"] = _Side(peer, dtype, {"nanogpt": str(Path(arguments.nanogpt).resolve())})
        if arguments.maxtext_python and not tuning:
            found[f"maxtext {dtype}"] = _Side(maxtext, dtype)
    return found


def main(argv: list[str] | None = None) -> None:
    """Prints a row for each program, with the ratio of the first one's speed to its own."""
    arguments = parsed(argv)
    sides = sides_of(arguments)
    names = arguments.only or list(sides)
    if unknown := [name for name in names if name not in sides]:
        sys.exit(f"--only={unknown[0]!r} is none of {', '.join(sides)}; others need --peer_python and the like")
    with contextlib.ExitStack() as stack:
        programs: list[Program] = []
        rounds: list[list[Turn]] = []
        for name in names:
            side, shape = sides[name], (arguments.size, arguments.rows, arguments.length, arguments.steps)
            work = Work(*shape, side.dtype, arguments.lora, arguments.answer, side.options)
            environment = HUGE_PAGES if arguments.huge_pages else {}
            programs.append(stack.enter_context(running(name, side.command, work, side.root, environment)))
        for _ in range(arguments.warmup):
            one_round(programs)
        end = time.monotonic() + 60 * arguments.minutes
        while len(rounds) < arguments.rounds and (not rounds or time.monotonic() < end):
            rounds.append(one_round(programs))
        report(programs, rounds, work.tokens)


def one_round(programs: list[Program]) -> list[Turn]:
    """Returns each program's turn, and prints its seconds as it ends."""
    turns = []
    for program in programs:
        turns.append(program.turn())
        print(f"{program.name}: {turns[-1].seconds:.2f} s", file=sys.stderr, flush=True)
    return turns


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """Returns the arguments of the command."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer_python", help="a Python with torch and transformers, for --lora with peft")
    parser.add_argument("--maxtext_python", help="a Python with maxtext[tpu]")
    parser.add_argument("--nanogpt", help="a checkout of nanoGPT, whose model --peer_python trains")
    parser.add_argument("--earlier", help="another checkout of Rootstock, whose programs are called 'earlier'")
    parser.add_argument("--size", choices=SIZES, default="42M")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--lora", type=int, default=0, help="rank of LoRA on queries and values; 0: train everything")
    parser.add_argument("--answer", type=int, default=0, help="tokens at the end of a row that are in the loss; 0: all")
    parser.add_argument("--steps", type=int, default=1, help="per turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=60.0, help="no round starts later than this after the warm-up")
    parser.add_argument("--warmup", type=int, default=2, help="rounds that are not counted")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names of the programs to run, as in the table")
    parser.add_argument("--huge_pages", action="store_true", help="set GLIBC_TUNABLES=glibc.malloc.hugetlb=1 for all")
    return parser.parse_args(argv)


def report(programs: list[Program], rounds: list[list[Turn]], tokens: int) -> None:
    """Prints a table in Markdown."""
    print(
        "| program | tokens/s | ratio (rounds) | CPU s per turn | page faults per turn | peak GB | loss | parameters |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for index, program in enumerate(programs):
        turns = [turns[index] for turns in rounds]
        ratios = sorted(turns[index].seconds / turns[0].seconds for turns in rounds)
        ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})" if index else "1"
        seconds, cpu, faults = (
            statistics.median(getattr(turn, name) for turn in turns) for name in ("seconds", "cpu_seconds", "faults")
        )
        print(
            f"| {program.name} | {tokens / seconds:,.0f} | {ratio} | {cpu:.2f} | {faults:,.0f} | "
            f"{program.peak_bytes() / 1e9:.2f} | {turns[-1].loss:.3f} | {program.about['parameters']:,} |"
        )
    print(f"ratio: tokens/s of {programs[0].name} over those of the program; CPU seconds and page faults per turn")
    print("; ".join(dict.fromkeys(program.about["version"] for program in programs)))


if __name__ == "__main__":
    main()
