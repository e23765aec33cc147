import ast
import hashlib
import importlib.machinery
import json

import pytest

from configs.errors import UserError
from data import demo_corpus
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


def test_every_docstring_of_a_file_is_found():
    found = list(demo_corpus._docstrings(ast.parse(SOURCE)))
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
    """Two packages and a standard library, including files that must not be read."""
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
    monkeypatch.setattr(demo_corpus.sysconfig, "get_paths", lambda: paths)
    monkeypatch.setattr(demo_corpus, "_topics", lambda: [Docstring("python", "topics.if", "If.")])


def test_files_are_read_in_a_stable_order_and_test_files_skipped(small_machine):
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


def test_corpus_excludes_this_package(monkeypatch):
    root = str(demo_corpus.Path(demo_corpus.__file__).resolve().parents[1])
    paths = {"stdlib": root, "purelib": root, "platlib": root}
    monkeypatch.setattr(demo_corpus.sysconfig, "get_paths", lambda: paths)
    assert not [name for _, name, _ in demo_corpus._python_files() if name.split(".")[0] in ("data", "model", "train")]


def test_help_topics_are_read():
    topics = demo_corpus._topics()
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
        Docstring("tiny", "tiny.m", f"Too few of these for a class, so they are unlabeled, number {i}. " * 4)
        for i in range(9)
    ]
    items += [Docstring("jax", f"jax.short{i}", f"short {i}") for i in range(200)]
    return items


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    monkeypatch.setattr(demo_corpus, "_ROWS_PER_CLASS", {"train": 40, "test": 20})


def build(directory, corpus):
    summary = write_demo_corpus(directory, docstrings=corpus)
    names = ("unlabeled", "labeled_train", "labeled_test")
    return summary, *([json.loads(line) for line in (directory / f"{name}.jsonl").open()] for name in names)


def test_labeled_rows_have_balanced_classes_without_library_names(corpus, tmp_path):
    summary, unlabeled, train, test = build(tmp_path, corpus)
    assert summary["classes"] == ["flax", "jax", "scipy"]
    assert (summary["train"], summary["test"], summary["unlabeled"]) == (120, 60, len(unlabeled))
    for rows, number in ((train, 40), (test, 20)):
        for label in summary["classes"]:
            assert sum(row["label"] == label for row in rows) == number
        for row in rows:
            assert demo_corpus.MIN_LABELED_CHARACTERS <= len(row["text"]) <= demo_corpus.MAX_LABELED_CHARACTERS
            assert not any(label in row["text"].lower() for label in summary["classes"])
            assert row["text"].startswith("Import it.numpy as itlib to compute ")
    texts = [row["text"] for row in train + test]
    assert len(set(texts)) == len(texts)
    assert [row["label"] for row in train] != sorted(row["label"] for row in train)


def test_held_out_modules_appear_only_in_the_test_rows(corpus, tmp_path):
    summary, unlabeled, train, test = build(tmp_path, corpus)
    module_of = {item.text.split()[6]: item.module for item in reversed(corpus) if item.text.startswith("Import")}
    seen = {module_of[row["text"].split()[6]] for row in unlabeled + train if row["text"].startswith("Import")}
    held_out = {module_of[row["text"].split()[6]] for row in test}
    assert held_out and seen and not seen & held_out
    texts = [" ".join(row["text"].split()) for row in unlabeled]
    assert len(set(texts)) == len(texts)
    assert summary["docstrings"] == len({" ".join(item.text.split()) for item in corpus})


def test_adding_a_library_does_not_move_modules(corpus, tmp_path):
    _, before, _, _ = build(tmp_path / "a", corpus)
    extra = [doc for m in range(5) for doc in fake("optax", f"m{m}", 6)]
    _, after, _, _ = build(tmp_path / "b", corpus + extra)
    assert [row for row in after if "optax" not in row["text"].lower()] == before


def test_corpus_is_deterministic(corpus, tmp_path):
    assert build(tmp_path / "a", corpus) == build(tmp_path / "b", corpus)


def test_texts_that_are_equal_after_cutting_are_not_test_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_corpus, "_ROWS_PER_CLASS", {"train": 100, "test": 30})
    base = [doc for name in ("jax", "flax") for m in range(30) for doc in fake(name, f"m{m}", 6)]
    same = [Docstring("jax", f"jax.same{i}", f"The same beginning {i % 20}. " * 40 + str(i)) for i in range(400)]
    _, _, train, test = build(tmp_path, base + same)
    texts = [row["text"] for row in train + test]
    assert len(set(texts)) == len(texts) > 200


def test_too_few_libraries_is_an_error(tmp_path):
    with pytest.raises(UserError, match="1 installed libraries have enough docstrings"):
        write_demo_corpus(tmp_path, docstrings=[d for m in range(30) for d in fake("jax", f"m{m}", 6)])
    assert list(tmp_path.iterdir()) == []
