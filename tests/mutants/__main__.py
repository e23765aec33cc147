"""Plants each mutant of the table in a copy of the project and expects its test to fail: `make mutants`."""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants.table import MUTANTS, Mutant
from train.compilation_cache import folder_name

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "testing.md"
BEGIN, END = "<!-- kill matrix: python -m tests.mutants --write -->", "<!-- end of the kill matrix -->"
_COPIED = ("configs", "model", "data", "train", "tests")
_WORKERS = 2
_LIMIT_SECONDS = 120
# A mutant that breaks the program itself proves nothing about the test.
_NO_PROOF = re.compile(r"\b(NameError|SyntaxError|ImportError|ModuleNotFoundError|UnboundLocalError)\b")


def copy_project(to: Path) -> None:
    """Copies what the tests import, without bytecode, which could hide the planted change."""
    for name in _COPIED:
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", to)


def plant(mutant: Mutant, copy: Path) -> None:
    """Applies a mutant to a copy."""
    path = copy / mutant.file
    path.write_text(path.read_text().replace(mutant.find, mutant.replace, 1))


def run_tests(copy: Path, tests: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs tests of a copy in a new process."""
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "JAX_PLATFORMS": "cpu"}
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / folder_name()))
    options = ["-n", "0", "-x", "--tb=line", "-p", "no:cacheprovider", "-m", ""]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    return subprocess.run(
        command, cwd=copy, env=environment, capture_output=True, text=True, timeout=_LIMIT_SECONDS * len(tests)
    )


def passes(tests: list[str]) -> bool:
    """Returns whether all tests pass without a mutant, none of them skipped; prints their output if not."""
    with tempfile.TemporaryDirectory() as directory:
        copy_project(Path(directory))
        done = run_tests(Path(directory), tests)
    if done.returncode == 0 and "skipped" not in done.stdout.splitlines()[-1]:
        return True
    print(done.stdout, done.stderr)
    return False


def verdict(done: subprocess.CompletedProcess[str]) -> tuple[bool, str]:
    """Returns whether a test ran and failed, and its failure message.

    Errors during collection, in a fixture or from broken code do not count as failures.
    """
    lines = done.stdout.strip().splitlines() or [""]
    why = next((line.partition(": ")[2] for line in lines if re.search(r"\.py:\d+: ", line)), "no failure")
    failed = done.returncode == 1 and re.search(r"\b\d+ failed", lines[-1]) and "error" not in lines[-1]
    return bool(failed) and not _NO_PROOF.search(why), why


def try_mutant(mutant: Mutant) -> tuple[Mutant, bool, float]:
    """Returns (the mutant, whether its test failed, seconds) and prints a line."""
    with tempfile.TemporaryDirectory() as directory:
        copy_project(Path(directory))
        plant(mutant, Path(directory))
        begin = time.perf_counter()
        try:
            killed, why = verdict(run_tests(Path(directory), [mutant.test]))
        except subprocess.TimeoutExpired:
            killed, why = False, f"timeout after {_LIMIT_SECONDS} s"
    took = time.perf_counter() - begin
    end = "killed" if killed else "SURVIVED"
    print(f"{end:8} {took:5.1f} s  {mutant.name}: {mutant.test}: {why[:100]}", flush=True)
    return mutant, killed, took


def matrix(results: list[tuple[Mutant, bool, float]]) -> str:
    """Returns the kill matrix as Markdown."""
    killed = sum(result[1] for result in results)
    lines = [
        f"{killed} of {len(results)} killed, in {sum(result[2] for result in results):.0f} s of processes.",
        "",
        "| mutant | planted in | test that fails | s |",
        "|---|---|---|---:|",
    ]
    for mutant, dead, took in results:
        file, _, test = mutant.test.partition("::")
        name = f"`{file}` {test.partition('[')[0]}" if dead else "**none: it survived**"
        lines.append(f"| {mutant.name} | `{mutant.file}` | {name} | {took:.1f} |")
    return "\n".join(lines)


def main() -> int:
    """Returns 1 if a mutant survived or a test fails without one."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("--only", default="", help="run only the mutants whose name contains this")
    parser.add_argument("--write", action="store_true", help="write the kill matrix of all mutants to docs/testing.md")
    flags = parser.parse_args()
    if flags.write and flags.only:
        parser.error("--write needs all mutants and cannot be combined with --only")
    mutants = [mutant for mutant in MUTANTS if flags.only in mutant.name]
    if not mutants:
        names = "; ".join(mutant.name for mutant in MUTANTS)
        parser.error(f"--only={flags.only!r} matches no mutant; expected a part of one of: {names}")
    if not passes(sorted({mutant.test for mutant in mutants})):
        print("a test fails or is skipped without any mutant: nothing was planted")
        return 1
    with ThreadPoolExecutor(_WORKERS) as pool:
        results = list(pool.map(try_mutant, mutants))
    killed = sum(result[1] for result in results)
    print(f"{killed} of {len(results)} killed")
    if flags.write:
        before, _, rest = DOCUMENT.read_text().partition(BEGIN)
        DOCUMENT.write_text(f"{before}{BEGIN}\n\n{matrix(results)}\n\n{END}{rest.partition(END)[2]}")
    return 0 if killed == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
