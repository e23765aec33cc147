"""Injects all faults and prints one line per fault: `make faults`."""

import argparse
import importlib
import os
import pkgutil
import sys
import tempfile
import time
from pathlib import Path

from tests import faults
from tests.faults.contract import Fault, Outcome


def all_faults() -> list[Fault]:
    """Returns the faults of all modules of this package."""
    names = sorted(module.name for module in pkgutil.iter_modules(faults.__path__) if not module.name.startswith("__"))
    modules = [importlib.import_module(f"tests.faults.{name}") for name in names]
    return [fault for module in modules for fault in getattr(module, "FAULTS", ())]


def inject(fault: Fault, short: bool) -> Outcome:
    """Injects a fault into a run in a temporary directory."""
    with tempfile.TemporaryDirectory() as directory:
        return fault.inject(Path(directory), short)


def main() -> int:
    """Returns 1 if a run did not survive a fault."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--only", default="", help="run only the faults whose name contains this")
    parser.add_argument("--short", action="store_true", help="run the short form, as the test suite does")
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
            f"{fault.name:28} {verdict:9} injected: {outcome.injected}; repeated steps: {outcome.lost_steps}; "
            f"{outcome.seen} ({took:.0f} s)",
            flush=True,
        )
    return 1 if lost else 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Where a directory could not be made, threads of Orbax wait for it for minutes; `rootstock` ends like this too.
    os._exit(code)
