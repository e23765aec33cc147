"""Measures one GPU or TPU machine: products, training, decoding, checkpoints, LoRA, fine-tuning, equal runs.

    python -m benchmarks.accelerator --minutes=8 --output=DIR [--peer_python=PYTHON]

Installs nothing and needs no data. Each part runs in a process of its own and is written to DIR/results.json and
DIR/summary.md as it ends, so a run that is cut off keeps what it has. Run it again with the same DIR to add the parts
that are missing. --peer_python is a Python with transformers and torch, which then do the same work.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.accelerator.parts import Part, part_named, parts_of, run_part
from benchmarks.accelerator.sizes import SHAPES, SIZES
from benchmarks.accelerator.tables import Results, markdown

_LEAST_SECONDS = 20  # a part that would have less time is not started


def main() -> None:
    """Runs the parts until the time is over."""
    arguments = _arguments()
    if arguments.part:
        print(json.dumps(run_part(part_named(arguments.size, arguments.part))))
        return
    deadline = time.monotonic() + 60 * arguments.minutes
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "results.json"
    results: Results = json.loads(path.read_text()) if path.exists() else {}
    for part in parts_of(SIZES[arguments.size]):
        left = deadline - time.monotonic()
        done = part.name in results and "error" not in results[part.name]
        if done or (part.peer and not arguments.peer_python) or (arguments.only and part.name not in arguments.only):
            continue
        if left < _LEAST_SECONDS:
            print(f"{part.name}: not started, {left:.0f} s are left", flush=True)
            continue
        start = time.monotonic()
        results[part.name] = _run(part, arguments, min(part.limit, left))
        path.write_text(json.dumps(results, indent=1))
        (arguments.output / "summary.md").write_text(markdown(results))
        outcome = results[part.name].get("error", "done")
        print(f"{part.name}: {time.monotonic() - start:.0f} s, {outcome}", flush=True)
    print(markdown(results))
    if any("error" in one for one in results.values()):
        sys.exit(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="no part is running after this time")
    parser.add_argument("--output", type=Path, default=Path("runs/accelerator"), help="folder of the results")
    parser.add_argument("--size", choices=SIZES, default="full", help="tiny: tries the program on a CPU")
    parser.add_argument("--only", nargs="*", default=[], help="names of parts")
    parser.add_argument("--peer_python", default="", help="a Python with transformers and torch")
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(part: Part, arguments: argparse.Namespace, limit: float) -> dict[str, Any]:
    """Returns what a part printed, or its error."""
    if part.peer:
        script = Path(__file__).parent / "peer.py"
        given = {name: value for name, value in part.arguments.items() if name != "model"}
        shape = {"shape": SHAPES[part.arguments["model"]]}
        command = [arguments.peer_python, str(script), part.function, json.dumps(shape | given)]
    else:
        command = [sys.executable, "-m", "benchmarks.accelerator", f"--size={arguments.size}", f"--part={part.name}"]
    # The largest models need more than JAX's default of three quarters of the memory.
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.94"} | os.environ
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"error": f"stopped after {limit:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"error": _reason(done.stderr)}
    return json.loads(lines[-1])


def _reason(errors: str) -> str:
    """Returns the last lines of an output that say something, in one line."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return " ".join(lines[-3:])[-600:] or "no output"


if __name__ == "__main__":
    main()
