"""The table of mutants matches the code and the tests; `make mutants` checks that the tests kill them."""

import ast

import pytest

from tests.mutants.__main__ import BEGIN, DOCUMENT, END, ROOT
from tests.mutants.table import MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_changes_one_line_and_leaves_valid_python(mutant):
    source = (ROOT / mutant.file).read_text()
    assert mutant.file.split("/")[0] in ("model", "train", "data")
    assert source.count(mutant.find) == 1, f"{mutant.file} has {mutant.find!r} {source.count(mutant.find)} times"
    assert "\n" not in mutant.find + mutant.replace and mutant.find != mutant.replace
    compile(source.replace(mutant.find, mutant.replace), mutant.file, "exec")


def test_every_mutant_has_a_unique_name():
    names = [mutant.name for mutant in MUTANTS]
    assert len(names) == len(set(names)) >= 25


@pytest.mark.parametrize("file", sorted({mutant.test.partition("::")[0] for mutant in MUTANTS}))
def test_every_test_in_the_table_exists(file):
    """`make mutants` checks the parameters too: it runs every test before it plants a mutant."""
    nodes = ast.walk(ast.parse((ROOT / file).read_text()))
    functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    named = {mutant.test.partition("::")[2].partition("[")[0] for mutant in MUTANTS if mutant.test.startswith(file)}
    assert named <= functions


def test_the_kill_matrix_lists_this_table_and_no_survivors():
    found = DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0]
    rows = [line.split(" | ") for line in found.splitlines() if line.startswith("| ")][1:]
    expected = [(m.name, f"`{m.file}`", f"`{m.test.partition('::')[0]}`") for m in MUTANTS]
    assert [(row[0][2:], row[1], row[2].split(" ")[0]) for row in rows] == expected
