"""The table of faults fits the code and the tests as they are; whether the tests see them, `make mutants` says."""

import subprocess
import sys

import pytest

from tests.mutants.__main__ import BEGIN, DOCUMENT, END, ROOT
from tests.mutants.table import MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_fault_is_one_line_of_the_code_and_leaves_it_python(mutant):
    source = (ROOT / mutant.file).read_text()
    assert mutant.file.split("/")[0] in ("model", "train", "data")
    assert source.count(mutant.find) == 1, f"{mutant.file} has {mutant.find!r} {source.count(mutant.find)} times"
    assert "\n" not in mutant.find + mutant.replace and mutant.find != mutant.replace
    compile(source.replace(mutant.find, mutant.replace), mutant.file, "exec")


def test_every_fault_is_named_once_and_has_a_test_that_exists():
    names = [mutant.name for mutant in MUTANTS]
    assert len(names) == len(set(names)) >= 25
    tests = sorted({mutant.test for mutant in MUTANTS})
    command = [sys.executable, "-m", "pytest", "-n", "0", "--collect-only", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_kill_matrix_is_of_this_table_and_nothing_survived():
    found = DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0]
    rows = [line.split(" | ") for line in found.splitlines() if line.startswith("| ")][1:]
    expected = [(m.name, f"`{m.file}`", f"`{m.test.partition('::')[0]}`") for m in MUTANTS]
    assert [(row[0][2:], row[1], row[2].split(" ")[0]) for row in rows] == expected
