"""Runs the whole table and prints one line a fault: `make faults`."""

import argparse
import importlib
import pkgutil
import sys
import tempfile
import time
from pathlib import Path

from tests import faults
from tests.faults.contract import Fault, Outcome


def all_faults() -> list[Fault]:
    """Returns the faults of every module of this package."""
    names = sorted(module.name for module in pkgutil.iter_modules(faults.__path__) if not module.name.startswith("__"))
    modules = [importlib.import_module(f"tests.faults.{name}") for name in names]
    return [fault for module in modules for fault in getattr(module, "FAULTS", ())]


def inject(fault: Fault, short: bool) -> Outcome:
    """Causes a fault in a directory of its own."""
    with tempfile.TemporaryDirectory() as directory:
        return fault.inject(Path(directory), short)


def main() -> int:
    """Returns 1 when a fault was not survived."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--only", default="", help="faults whose name contains this")
    parser.add_argument("--short", action="store_true", help="the form of seconds that `make test` runs")
    flags = parser.parse_args()
    lost = 0
    for fault in all_faults():
        if flags.only not in fault.name:
            continue
        begin = time.perf_counter()
        outcome = inject(fault, flags.short)
        lost += not outcome.survived
        verdict = "survived" if outcome.survived else "LOST"
        took = time.perf_counter() - begin
        print(
            f"{fault.name:28} {verdict:9} injected: {outcome.injected}; steps done again: {outcome.lost_steps}; "
            f"{outcome.seen} ({took:.0f} s)",
            flush=True,
        )
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
