import ast
import hashlib
import importlib.machinery
import json

import pytest

from configs.errors import UserError
from data import demo_corpus as python_docs
from data.demo_corpus import Docstring, collect_docstrings, write_demo_corpus

SOURCE = '''
"""Of the module."""
import os
class A:
    r"""Of the class.

        Indented \\d.
    """
    async def method(self):
        "single quotes"
        def inner():
            """Of an inner function."""
if os.name:
    def conditional():
        """Of a conditional function."""
else:
    try:
        def other():
            """Of another."""
    except ValueError:
        def handler():
            """Of a handler."""
text = """not a docstring"""
def empty():
    """   """
def none():
    text = """not one either"""
'''


def test_all_docstrings_of_a_file():
    found = list(python_docs._docstrings(ast.parse(SOURCE)))
    assert found == [
        "Of the module.",
        "Of the class.\n\nIndented \\d.",
        "single quotes",
        "Of an inner function.",
        "Of a conditional function.",
        "Of another.",
        "Of a handler.",
    ]


@pytest.fixture
def small_machine(tmp_path, monkeypatch):
    """Two packages and a standard library, with files that must not be read among them."""
    site, standard = tmp_path / "site", tmp_path / "standard"
    files = {
        site / "pack/__init__.py": '"""Pack."""',
        site / "pack/sub/work.py": '"""Work."""\nraise SystemExit("parsed, never run")',
        site / "pack/broken.py": '"""Broken."""\n(',
        site / "pack/binary.py": '"""\x00"""',
        site / "pack/tests/helper.py": '"""Tests."""',
        site / "pack/test_it.py": '"""Test."""',
        site / "pack/it_test.py": '"""Test."""',
        site / "pack/_vendor/copied.py": '"""Vendored."""',
        site / "single.py": '"""Single."""',
        standard / "json/decoder.py": '"""Decoder."""',
    }
    for path, source in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    paths = {"stdlib": str(standard), "purelib": str(site), "platlib": str(site)}
    monkeypatch.setattr(python_docs.sysconfig, "get_paths", lambda: paths)
    monkeypatch.setattr(python_docs, "_topics", lambda: [Docstring("python", "topics.if", "If.")])


def test_files_are_parsed_in_a_stable_order_without_tests(small_machine):
    steps = []
    found = collect_docstrings(lambda *step: steps.append(step))
    assert found == [
        Docstring("python", "topics.if", "If."),
        Docstring("python", "json.decoder", "Decoder."),
        Docstring("single", "single", "Single."),
        Docstring("pack", "pack", "Pack."),
        Docstring("pack", "pack.sub.work", "Work."),
    ]
    assert steps[-1] == ("reading docstrings", 6, 6)


def test_own_files_are_not_part_of_the_corpus(monkeypatch):
    root = str(python_docs.Path(python_docs.__file__).resolve().parents[1])
    paths = {"stdlib": root, "purelib": root, "platlib": root}
    monkeypatch.setattr(python_docs.sysconfig, "get_paths", lambda: paths)
    assert not [name for _, name, _ in python_docs._python_files() if name.split(".")[0] in ("data", "model", "train")]


def test_help_topics():
    topics = python_docs._topics()
    if importlib.machinery.PathFinder.find_spec("pydoc_data") is None:
        pytest.skip("this Python has no help topics")
    assert len(topics) > 50 and {item.library for item in topics} == {"python"}


def fake(library, module, count):
    for i in range(count):
        filler = hashlib.sha256(f"{library}{module}{i}".encode()).hexdigest()
        name = library if i % 2 else library.upper()
        yield Docstring(library, f"{library}.{module}", f"Import {name}.numpy as {name}lib to compute {filler} " * 12)


@pytest.fixture(scope="module")
def corpus():
    items = [doc for name in ("jax", "flax", "scipy") for m in range(30) for doc in fake(name, f"m{m}", 6)]
    items += [Docstring("flax", "flax.copy", item.text + "\n") for item in items[:20]]  # duplicates of jax's
    items += [
        Docstring("tiny", "tiny.m", f"Too few of these, so they are only read, number {i}. " * 4) for i in range(9)
    ]
    items += [Docstring("jax", f"jax.short{i}", f"short {i}") for i in range(200)]
    return items


def build(directory, corpus, **options):
    options = {"train_rows": 40, "test_rows": 20} | options
    summary = write_demo_corpus(directory, docstrings=corpus, **options)
    names = ("unlabelled", "labelled_train", "labelled_test")
    return summary, *([json.loads(line) for line in (directory / f"{name}.jsonl").open()] for name in names)


def test_labelled_rows(corpus, tmp_path):
    summary, unlabelled, train, test = build(tmp_path, corpus)
    assert summary["classes"] == ["flax", "jax", "scipy"]
    assert (summary["train"], summary["test"], summary["unlabelled"]) == (120, 60, len(unlabelled))
    for rows, number in ((train, 40), (test, 20)):
        for label in summary["classes"]:
            assert sum(row["label"] == label for row in rows) == number
        for row in rows:
            assert python_docs.SHORTEST_LABELLED <= len(row["text"]) <= python_docs.LABELLED_CHARACTERS
            assert not any(label in row["text"].lower() for label in summary["classes"])
            assert row["text"].startswith("Import it.numpy as itlib to compute ")
    texts = [row["text"] for row in train + test]
    assert len(set(texts)) == len(texts)
    assert [row["label"] for row in train] != sorted(row["label"] for row in train)


def test_held_out_modules_stand_nowhere_else(corpus, tmp_path):
    summary, unlabelled, train, test = build(tmp_path, corpus)
    module_of = {item.text.split()[6]: item.module for item in reversed(corpus) if item.text.startswith("Import")}
    seen = {module_of[row["text"].split()[6]] for row in unlabelled + train if row["text"].startswith("Import")}
    held_out = {module_of[row["text"].split()[6]] for row in test}
    assert held_out and seen and not seen & held_out
    texts = [" ".join(row["text"].split()) for row in unlabelled]
    assert len(set(texts)) == len(texts)
    assert summary["docstrings"] == len({" ".join(item.text.split()) for item in corpus})


def test_adding_a_library_moves_no_module(corpus, tmp_path):
    _, before, _, _ = build(tmp_path / "a", corpus)
    extra = [doc for m in range(5) for doc in fake("optax", f"m{m}", 6)]
    _, after, _, _ = build(tmp_path / "b", corpus + extra)
    assert [row for row in after if "optax" not in row["text"].lower()] == before


def test_deterministic(corpus, tmp_path):
    assert build(tmp_path / "a", corpus) == build(tmp_path / "b", corpus)


def test_texts_equal_once_cut_are_not_tested_on(tmp_path):
    base = [doc for name in ("jax", "flax") for m in range(30) for doc in fake(name, f"m{m}", 6)]
    same = [Docstring("jax", f"jax.same{i}", f"The same beginning {i % 20}. " * 40 + str(i)) for i in range(400)]
    _, _, train, test = build(tmp_path, base + same, train_rows=100, test_rows=30)
    texts = [row["text"] for row in train + test]
    assert len(set(texts)) == len(texts) > 200


def test_too_few_libraries(tmp_path):
    with pytest.raises(UserError, match="1 installed libraries have docstrings enough"):
        write_demo_corpus(
            tmp_path, docstrings=[d for m in range(30) for d in fake("jax", f"m{m}", 6)], train_rows=9, test_rows=9
        )
    assert list(tmp_path.iterdir()) == []
