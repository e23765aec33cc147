"""Labelled rows: read, cleaned of duplicates and split by content, so that nothing held out was trained on."""

import dataclasses
import hashlib
import json
import string
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from configs.errors import UserError
from data.readers import Row, read_rows
from data.sources import Inventory, inventory


@dataclasses.dataclass(frozen=True)
class Example:
    """A labelled row as its task reads it.

    Attributes:
        content: rows of the same content, case and white space aside, are duplicates; the first one stays.
        group: rows of one group stay on one side of every split.
        fields: what the task's functions read; JSON values.
        row: its number among the rows that could be read, from 1; 0: it was not read from rows.
    """

    content: str
    group: str
    fields: Mapping[str, Any]
    row: int = 0


@dataclasses.dataclass(frozen=True)
class Splits:
    """Examples that share neither content nor group between the parts.

    Attributes:
        train: what is trained on.
        validation: what is looked at while training, to stop early or to keep the best checkpoint.
        test: what the proof is given on; nothing is chosen by it.
        duplicates: rows that repeated another and were dropped.
        skipped: bad rows that were passed over, by kind.
        files: what was read.
    """

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    duplicates: int
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    files: Inventory = dataclasses.field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """Names the training examples, in order."""
        digest = hashlib.sha256()
        for example in self.train:
            digest.update(json.dumps([example.content, example.fields], sort_keys=True, default=str).encode())
        return digest.hexdigest()


def fill(pattern: str, row: Row, option: str) -> str:
    """Returns `pattern` with the columns that stand in braces filled in; `option` is the config field it comes from.

    Raises:
        UserError: the row lacks a column, names those found; or all columns are empty.
    """
    parts = list(string.Formatter().parse(pattern))
    values = [str(column(row, name, option)) for _, name, _, _ in parts if name is not None]
    if values and not "".join(values).strip():
        raise UserError(f"{', '.join(repr(name) for _, name, _, _ in parts if name)} is empty; legal: a text")
    rest = iter(values)
    return "".join(text + (next(rest) if name is not None else "") for text, name, _, _ in parts)


def column(row: Row, name: str, option: str) -> Any:  # noqa: ANN401 - whatever the row holds
    """Returns a row's value; see `fill` for `option` and errors."""
    if row.get(name) is None:
        raise UserError(f"no {name!r}; columns found: {', '.join(map(str, row))}; set {option}")
    return row[name]


def fold(text: str) -> str:
    """Returns the text as duplicates are compared: lower case, white space folded."""
    return " ".join(text.lower().split())


def read_examples(
    path: str, parse: Callable[[Row], Example], strict: bool = True, report: Counter[str] | None = None
) -> list[Example]:
    """Returns the examples of JSONL, CSV, Parquet or a Hugging Face dataset.

    Args:
        path: see `read_rows`.
        parse: row -> example.
        strict: raise at the first bad row; otherwise skip it.
        report: counts what was skipped, by kind of fault.

    Raises:
        UserError: no rows; if strict, a fault of the file, or what `parse` says of a row, with the row's number.
    """
    examples = []
    skipped: Counter[str] = Counter() if report is None else report
    for number, row in enumerate(read_rows(path, strict, skipped), 1):
        try:
            examples.append(dataclasses.replace(parse(row), row=number))
        except UserError as error:
            if strict:
                raise UserError(f"{path}: row {number}: {error}") from None
            skipped["not a row of the task"] += 1
            last = str(error)
    if not examples:
        found = ", ".join(f"{count} {kind}" for kind, count in skipped.items())
        why = f" ({last})" if skipped["not a row of the task"] else ""
        raise UserError(f"{path}: no rows{f' but {found}{why}' if found else ''}")
    return examples


def read_splits(
    path: str,
    test_path: str,
    parse: Callable[[Row], Example],
    validation_fraction: float,
    test_fraction: float,
    test_rows: int = 0,
    strict: bool = True,
) -> Splits:
    """Returns the rows of `path`, duplicates removed, split by the hash of their groups: a new row moves no other.

    With `test_path` its rows are held out, and rows of `path` that share content or group with one are dropped. Of more
    than `test_rows` held-out rows, if that is not 0, so many are drawn.

    Raises:
        UserError: see `read_examples`; or a part that came out empty.
    """
    skipped: Counter[str] = Counter()
    read = read_examples(path, parse, strict, skipped)
    rest = _unique(read)
    if test_path:
        test = _unique(read_examples(test_path, parse, strict, skipped))
        held_out = {fold(text) for example in test for text in (example.content, example.group)}
        rest = [e for e in rest if fold(e.content) not in held_out and fold(e.group) not in held_out]
        test_fraction = 0.0
    else:
        test = [example for example in rest if _place(example) < test_fraction]
    end = test_fraction + validation_fraction * (1.0 - test_fraction)
    splits = Splits(
        train=[example for example in rest if _place(example) >= end],
        validation=[example for example in rest if test_fraction <= _place(example) < end],
        test=draw(test, test_rows or len(test)),
        duplicates=len(read) - len(rest),
        skipped=dict(skipped),
        files=inventory(path),
    )
    counts = {"training": len(splits.train), "validation": len(splits.validation), "held-out": len(splits.test)}
    if not all(counts.values()):
        found = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise UserError(
            f"{path}: {found} rows; legal: at least one each (config.task.validation_fraction, "
            "config.task.test_fraction or config.task.test_path)"
        )
    return splits


def draw(examples: list[Example], count: int) -> list[Example]:
    """Returns `count` of the examples, or all, drawn by the hash of their content, in the order in which they stood."""
    if count >= len(examples):
        return examples
    order = sorted(examples, key=lambda e: hashlib.sha256(e.content.encode()).digest())
    chosen = {id(example) for example in order[:count]}
    return [example for example in examples if id(example) in chosen]


def _unique(examples: list[Example]) -> list[Example]:
    """Returns the first example of each content."""
    return list({fold(example.content): example for example in reversed(examples)}.values())[::-1]


def _place(example: Example) -> float:
    """Returns where in [0, 1) the example's group falls."""
    return int.from_bytes(hashlib.sha256(fold(example.group).encode()).digest()[:6], "big") / 2**48
