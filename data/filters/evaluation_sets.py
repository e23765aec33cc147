"""Reads what `--avoid` names: files of evaluation rows, and tasks of configs/evals."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import configs
from configs.errors import UserError
from data.cleaning import clean
from data.columns import find
from data.filters.contamination import EvaluationSet, texts_of
from data.readers import read_documents, read_placed_rows
from data.sources import TEXT_SUFFIXES, HuggingFaceDataset, match_sources, suffix_of
from data.storage.files import exists, match_files
from data.storage.paths import at

TASK_FILES = Path(configs.__file__).parent / "evals"
_EXPECTED = "FILES, NAME=FILES or, to read only the columns of a task of configs/evals, TASK=FILES"


def read_evaluation_sets(avoid: Sequence[str]) -> list[EvaluationSet]:
    """Returns the evaluation sets that `--avoid` names.

    Args:
        avoid: FILES, a file, a glob or hf:NAME of rows or texts; NAME=FILES, which names them in reports; or
            TASK=FILES, of which only the columns that this task of configs/evals reads are searched for.

    Raises:
        UserError: a part names no files, files cannot be read or have no rows, or a column is missing.
    """
    found: dict[str, EvaluationSet] = {}
    for part in avoid:
        name, pattern = _name_and_files(part)
        if not pattern or not name:
            raise UserError(f"avoid={part!r} names no files; expected {_EXPECTED}")
        if name in found:
            raise UserError(f"avoid={part!r}: the name {name!r} is used twice; expected NAME=FILES with another name")
        found[name] = EvaluationSet(name, _read(pattern, task_columns(name)))
    return list(found.values())


def task_columns(name: str) -> tuple[str, ...]:
    """Returns the columns that a task of configs/evals reads; () if there is no such task."""
    import yaml

    path = TASK_FILES / f"{name}.yaml"
    if not path.is_file():
        return ()
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return tuple(config["metadata"]["columns"])


def _name_and_files(part: str) -> tuple[str, str]:
    """Returns (name, files) of a part; a path may contain "=", as in date=2024/a.jsonl."""
    name, separator, pattern = part.partition("=")
    if not separator or exists(at(part)) or match_files(part):
        return _name_of(part), part
    return name, pattern


def _name_of(part: str) -> str:
    """Returns the name of a set that has none: that of its file."""
    if task_columns(part):
        raise UserError(f"avoid={part}: the task has no rows of its own; expected --avoid={part}=FILES")
    return part if part.startswith("hf:") else Path(part).name


def _read(pattern: str, columns: Sequence[str]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for source in match_sources(pattern):
        if not isinstance(source, HuggingFaceDataset) and suffix_of(source) in TEXT_SUFFIXES:
            rows += [(clean(text),) for text in read_documents(str(source))]
            continue
        for place, row in read_placed_rows(str(source)):
            values: list[object] = list(row.values())
            if columns:
                values = [part for column in columns for part in find(row, column)[:1]]
                if len(values) < len(columns):
                    raise UserError(f"{place}: the row has the columns {', '.join(row)}; expected {', '.join(columns)}")
            rows.append(tuple(clean(text) for text in texts_of(values)))
    if not rows:
        raise UserError(f"avoid={pattern}: no rows; expected evaluation rows")
    return rows
