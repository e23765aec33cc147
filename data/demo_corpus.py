"""The corpus of `rootstock demo`: the docstrings of the standard library and of every installed package.

Files are parsed, never imported. The size depends on the installed packages: about 15 MB with JAX and SciPy.
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
from data.storage.paths import at

Progress = Callable[[str, int, int | None], None]

STANDARD_LIBRARY = "python"
_SKIPPED_FOLDERS = {"test", "tests", "_vendor", "__pycache__", "site-packages", "dist-packages", "node_modules"}
_TEST_MODULE = re.compile(r"(test_.*|.*_test|tests?|conftest)\.py")
_OWN_FOLDERS = ("configs", "data", "model", "train")
_FILES_PER_JOB = 64
_WORKERS = 2
MIN_LABELED_CHARACTERS = 80
MAX_LABELED_CHARACTERS = 600
_MAX_CLASSES = 8
_HELD_OUT_FRACTION = 0.3  # of the modules
_ROWS_PER_CLASS = {"train": 150, "test": 150}


@dataclasses.dataclass(frozen=True)
class Docstring:
    """A docstring and its origin.

    Attributes:
        library: top-level package, or "python" for the standard library.
        module: dotted name of the module or help topic.
        text: the docstring without indentation.
    """

    library: str
    module: str
    text: str


def _silent(stage: str, done: int, total: int | None) -> None:
    pass


def collect_docstrings(progress: Progress = _silent) -> list[Docstring]:
    """Returns the docstrings of all modules, classes and functions, and Python's help topics, in a stable order.

    Args:
        progress: called with ("reading docstrings", files done, files).
    """
    files = list(_python_files())
    jobs = [files[i : i + _FILES_PER_JOB] for i in range(0, len(files), _FILES_PER_JOB)]
    found = _topics()
    # Spawned, because forking a process in which JAX has started threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(_WORKERS, mp_context=context) as pool:
        for number, part in enumerate(pool.map(_parse_files, jobs), 1):
            found += part
            progress("reading docstrings", min(number * _FILES_PER_JOB, len(files)), len(files))
    return found


def _python_files() -> Iterator[tuple[str, str, str]]:
    """Yields (library, module, path) of each file to read, sorted by name within a directory."""
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
    except ImportError:  # missing from some distributions of Python
        return []
    return [Docstring(STANDARD_LIBRARY, f"pydoc_data.topics.{name}", topics[name].strip()) for name in sorted(topics)]


def _parse_files(files: list[tuple[str, str, str]]) -> list[Docstring]:
    # Syntax trees contain no reference cycles, and garbage collection takes time.
    gc.disable()
    found = []
    for library, module, path in files:
        try:
            # The parser warns about invalid escapes in old code.
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
    """Yields docstrings in file order; only statements are visited, because definitions are statements."""
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
    directory: str | Path, progress: Progress = _silent, docstrings: Iterable[Docstring] | None = None
) -> dict[str, Any]:
    """Writes text for pre-training and labeled rows for the task "which library does this docstring belong to?".

    `unlabeled.jsonl` has the column "text"; `labeled_train.jsonl` and `labeled_test.jsonl` have "text" and "label".
    Duplicates are removed first; then modules are held out by the hash of their names. All test rows are from held-out
    modules, and no text of these is in the other two files. The labels are the libraries with the most docstrings.
    Their names are replaced in the labeled texts, which are cut to `MAX_LABELED_CHARACTERS`.

    Args:
        directory: created if it does not exist.
        progress: see `collect_docstrings`.
        docstrings: used instead of the docstrings installed on this machine.

    Returns:
        {"docstrings", "bytes", "modules", "held_out_modules", "unlabeled", "train", "test", "classes": [names]}.

    Raises:
        UserError: fewer than two libraries have enough docstrings.
    """
    directory = at(directory)
    collected = collect_docstrings(progress) if docstrings is None else docstrings
    unique = list({_fold(item.text): item for item in reversed(list(collected))}.values())[::-1]
    held_out = {item.module for item in unique if _hash(item.module) < _HELD_OUT_FRACTION * 2**64}
    sides = {
        "train": [item for item in unique if item.module not in held_out],
        "test": [item for item in unique if item.module in held_out],
    }
    labels = _largest_libraries(sides)
    labeled = _labeled_rows(sides, labels)
    directory.mkdir(parents=True, exist_ok=True)
    _write_jsonl(directory / "unlabeled.jsonl", ({"text": item.text} for item in sides["train"]))
    for side, rows in labeled.items():
        _write_jsonl(directory / f"labeled_{side}.jsonl", rows)
    return {
        "docstrings": len(unique),
        "bytes": sum(len(item.text.encode("utf-8", "replace")) for item in unique),
        "modules": len({item.module for item in unique}),
        "held_out_modules": len(held_out),
        "unlabeled": len(sides["train"]),
        **{side: len(rows) for side, rows in labeled.items()},
        "classes": labels,
    }


def _fold(text: str) -> str:
    return " ".join(text.lower().split())


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8], "big")


def _largest_libraries(sides: dict[str, list[Docstring]]) -> list[str]:
    """Returns the libraries with the most docstrings among those with enough of them on both sides."""
    # The margins allow for the removal of names, which shortens texts and can make them equal.
    long_enough = {
        side: Counter(item.library for item in items if len(item.text) >= 1.25 * MIN_LABELED_CHARACTERS)
        for side, items in sides.items()
    }
    total = long_enough["train"] + long_enough["test"]
    fit = [
        name for name in sorted(total, key=lambda name: (-total[name], name))
        if all(long_enough[side][name] >= 1.1 * _ROWS_PER_CLASS[side] for side in sides)
    ]  # fmt: skip
    if len(fit) < 2:
        raise UserError(f"{len(fit)} installed libraries have enough docstrings for the demo; expected at least 2")
    return sorted(fit[:_MAX_CLASSES])


def _labeled_rows(sides: dict[str, list[Docstring]], labels: list[str]) -> dict[str, list[dict[str, str]]]:
    """Returns the rows of each side, the same number per class if there are enough, and no text twice."""
    names = _names_of(labels)
    pattern = re.compile("|".join(re.escape(name) for name in names), re.IGNORECASE)
    seen: set[str] = set()
    rows: dict[str, list[dict[str, str]]] = {}
    # Training first: a held-out text that equals a training text after cutting must not be a test row.
    for side in ("train", "test"):
        by_class: dict[str, list[str]] = defaultdict(list)
        for item in sides[side]:
            if item.library not in labels:
                continue
            text = _cut(pattern.sub("it", item.text))
            if len(text) < MIN_LABELED_CHARACTERS or pattern.search(text) or _fold(text) in seen:
                continue
            seen.add(_fold(text))
            by_class[item.library].append(text)
        chosen = [
            (label, text) for label in labels for text in sorted(by_class[label], key=_hash)[: _ROWS_PER_CLASS[side]]
        ]
        rows[side] = [
            {"text": text, "label": label} for label, text in sorted(chosen, key=lambda row: (_hash(row[1]), row))
        ]
    return rows


def _names_of(labels: list[str]) -> list[str]:
    """Returns the labels and the names of their distributions ("scikit-learn"), longest first."""
    distributions = importlib.metadata.packages_distributions()
    names = {name.lower() for label in labels for name in (label, *distributions.get(label, []))}
    return sorted(names, key=lambda name: (-len(name), name))


def _cut(text: str) -> str:
    """Returns the text up to the last word that ends within `MAX_LABELED_CHARACTERS`."""
    if len(text) <= MAX_LABELED_CHARACTERS:
        return text.strip()
    return text[:MAX_LABELED_CHARACTERS].rsplit(None, 1)[0].strip()


def _write_jsonl(path: Path, rows: Iterable[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
