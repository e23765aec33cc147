"""The embedded corpus: the docstrings of the standard library and of every installed package.

Files are parsed, never imported. The corpus is as large as what is installed: some 15 MB beside JAX and SciPy.
"""

import ast
import dataclasses
import gc
import hashlib
import importlib.metadata
import inspect
import json
import multiprocessing
import os
import re
import sysconfig
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from configs.errors import UserError

Progress = Callable[[str, int, int | None], None]

STANDARD_LIBRARY = "python"
_SKIPPED_FOLDERS = {"test", "tests", "_vendor", "__pycache__", "site-packages", "dist-packages", "node_modules"}
_TEST_MODULE = re.compile(r"(test_.*|.*_test|tests?|conftest)\.py")
_OWN_FOLDERS = ("configs", "data", "model", "train")
_FILES_A_JOB = 64
SHORTEST_LABELLED = 80  # characters
LABELLED_CHARACTERS = 600
_WORKERS = 2


@dataclasses.dataclass(frozen=True)
class Docstring:
    """A docstring, its indentation removed, and where it is from.

    Attributes:
        library: top-level package, or "python" for the standard library.
        module: dotted name of the file, or of the help topic.
        text: the docstring.
    """

    library: str
    module: str
    text: str


def _silent(stage: str, done: int, total: int | None) -> None:
    pass


def collect_docstrings(progress: Progress = _silent) -> list[Docstring]:
    """Returns every docstring of modules, classes and functions, and Python's help topics, in a stable order.

    Args:
        progress: called with ("reading docstrings", files done, files).
    """
    files = list(_python_files())
    jobs = [files[i : i + _FILES_A_JOB] for i in range(0, len(files), _FILES_A_JOB)]
    found = _topics()
    # Spawned, because a fork of a process in which JAX runs threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(_WORKERS, mp_context=context) as pool:
        for number, part in enumerate(pool.map(_parse_files, jobs), 1):
            found += part
            progress("reading docstrings", min(number * _FILES_A_JOB, len(files)), len(files))
    return found


def _python_files() -> Iterator[tuple[str, str, str]]:
    """Yields (library, module, path) of each file to read, sorted within a folder."""
    paths = sysconfig.get_paths()
    own = {Path(__file__).resolve().parents[1] / folder for folder in _OWN_FOLDERS}
    for root in dict.fromkeys(paths[key] for key in ("stdlib", "purelib", "platlib")):
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(
                name for name in folders if name not in _SKIPPED_FOLDERS and Path(folder, name).resolve() not in own
            )
            for name in sorted(names):
                if name.endswith(".py") and not _TEST_MODULE.fullmatch(name):
                    parts = Path(folder, name).relative_to(root).with_suffix("").parts
                    module = ".".join(parts).removesuffix(".__init__")
                    library = STANDARD_LIBRARY if root == paths["stdlib"] else parts[0]
                    yield library, module, str(Path(folder, name))


def _topics() -> list[Docstring]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions of Python leave it out
        return []
    return [Docstring(STANDARD_LIBRARY, f"pydoc_data.topics.{name}", topics[name].strip()) for name in sorted(topics)]


def _parse_files(files: list[tuple[str, str, str]]) -> list[Docstring]:
    # Syntax trees have no cycles to look for, and looking takes time.
    gc.disable()
    found = []
    for library, module, path in files:
        try:
            # Old code has escapes that the parser warns of.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                source = Path(path).read_bytes()
                if b'"""' not in source and b"'''" not in source:
                    continue
                tree = ast.parse(source)
        except (SyntaxError, ValueError, OSError, RecursionError):
            continue  # templates and files for other versions of Python
        found += [Docstring(library, module, text) for text in _docstrings(tree)]
    return found


def _docstrings(tree: ast.Module) -> Iterator[str]:
    """Yields docstrings in the order of the file; only statements are visited, which hold all definitions."""
    stack: list[Any] = [tree]
    while stack:
        node = stack.pop()
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and body:
            first = body[0]
            value = first.value if isinstance(first, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value.strip():
                yield inspect.cleandoc(value.value)
        inner = [*body, *getattr(node, "orelse", []), *getattr(node, "handlers", []), *getattr(node, "finalbody", [])]
        stack.extend(reversed(inner))


def write_demo_corpus(
    directory: str | Path,
    progress: Progress = _silent,
    *,
    classes: int = 8,
    train_rows: int = 150,
    test_rows: int = 150,
    held_out_fraction: float = 0.3,
    docstrings: Iterable[Docstring] | None = None,
) -> dict[str, Any]:
    """Writes text to pre-train on and labelled rows: which library does a docstring belong to?

    `unlabelled.jsonl` has "text"; `labelled_train.jsonl` and `labelled_test.jsonl` have "text" and "label". Exact
    duplicates go first; then modules are held out by the hash of their names. The test rows are from held-out modules,
    of which nothing stands in the other two files. The names of all libraries that are labels are replaced in labelled
    texts, which are cut to `LABELLED_CHARACTERS`.

    Args:
        directory: made if need be.
        progress: see `collect_docstrings`.
        classes: libraries at most: those with most docstrings among those with rows enough.
        train_rows: of each class.
        test_rows: of each class.
        held_out_fraction: part of the modules.
        docstrings: to take in place of those of this machine.

    Returns:
        {"docstrings", "bytes", "modules", "held_out_modules", "unlabelled", "train", "test", "classes": [names]}.

    Raises:
        UserError: fewer than two libraries have rows enough.
    """
    directory = Path(directory)
    collected = collect_docstrings(progress) if docstrings is None else docstrings
    unique = list({_fold(item.text): item for item in reversed(list(collected))}.values())[::-1]
    held_out = {item.module for item in unique if _hash(item.module) < held_out_fraction * 2**64}
    sides = {
        "train": [item for item in unique if item.module not in held_out],
        "test": [item for item in unique if item.module in held_out],
    }
    rows_a_class = {"train": train_rows, "test": test_rows}
    labels = _largest_libraries(sides, rows_a_class, classes)
    labelled = _labelled_rows(sides, labels, rows_a_class)
    directory.mkdir(parents=True, exist_ok=True)
    _write_jsonl(directory / "unlabelled.jsonl", ({"text": item.text} for item in sides["train"]))
    for side, rows in labelled.items():
        _write_jsonl(directory / f"labelled_{side}.jsonl", rows)
    return {
        "docstrings": len(unique),
        "bytes": sum(len(item.text.encode("utf-8", "replace")) for item in unique),
        "modules": len({item.module for item in unique}),
        "held_out_modules": len(held_out),
        "unlabelled": len(sides["train"]),
        **{side: len(rows) for side, rows in labelled.items()},
        "classes": labels,
    }


def _fold(text: str) -> str:
    return " ".join(text.lower().split())


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8], "big")


def _largest_libraries(sides: dict[str, list[Docstring]], needed: dict[str, int], classes: int) -> list[str]:
    """Returns the libraries with most docstrings that have the needed number on each side, and some to spare."""
    # Names are not removed yet, which shortens texts: hence the margin.
    long_enough = {
        side: Counter(item.library for item in items if len(item.text) >= 1.25 * SHORTEST_LABELLED)
        for side, items in sides.items()
    }
    total = long_enough["train"] + long_enough["test"]
    fit = [
        name for name in sorted(total, key=lambda name: (-total[name], name))
        if all(long_enough[side][name] >= 1.1 * needed[side] for side in sides)
    ]  # fmt: skip
    if len(fit) < 2:
        raise UserError(f"{len(fit)} installed libraries have docstrings enough for the demo; legal: at least 2")
    return sorted(fit[:classes])


def _labelled_rows(
    sides: dict[str, list[Docstring]], labels: list[str], needed: dict[str, int]
) -> dict[str, list[dict[str, str]]]:
    """Returns the rows of each side, the same number of each class where there are as many, and no text twice."""
    names = _names_of(labels)
    pattern = re.compile("|".join(re.escape(name) for name in names), re.IGNORECASE)
    seen: set[str] = set()
    rows: dict[str, list[dict[str, str]]] = {}
    # Training first: a held-out text that reads the same once it is cut must not be tested on.
    for side in ("train", "test"):
        by_class: dict[str, list[str]] = defaultdict(list)
        for item in sides[side]:
            if item.library not in labels:
                continue
            text = _cut(pattern.sub("it", item.text))
            if len(text) < SHORTEST_LABELLED or pattern.search(text) or _fold(text) in seen:
                continue
            seen.add(_fold(text))
            by_class[item.library].append(text)
        chosen = [(label, text) for label in labels for text in sorted(by_class[label], key=_hash)[: needed[side]]]
        rows[side] = [
            {"text": text, "label": label} for label, text in sorted(chosen, key=lambda row: (_hash(row[1]), row))
        ]
    return rows


def _names_of(labels: list[str]) -> list[str]:
    """Returns the labels and the names under which they are installed ("scikit-learn"), longest first."""
    distributions = importlib.metadata.packages_distributions()
    names = {name.lower() for label in labels for name in (label, *distributions.get(label, []))}
    return sorted(names, key=lambda name: (-len(name), name))


def _cut(text: str) -> str:
    """Returns the text up to the last word that ends within `LABELLED_CHARACTERS`."""
    if len(text) <= LABELLED_CHARACTERS:
        return text.strip()
    return text[:LABELLED_CHARACTERS].rsplit(None, 1)[0].strip()


def _write_jsonl(path: Path, rows: Iterable[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
