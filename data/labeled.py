"""Labeled rows: read, deduplicated and split by content, so that no held-out text is trained on."""

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
    """A labeled row, parsed by its task.

    Attributes:
        content: rows with the same content, up to case and white space, are duplicates; the first one is kept.
        group: rows with the same group are never split between training, validation and test.
        fields: the values that the task reads; JSON values.
        row: number of the row in its source, counted from 1 over the readable rows; 0: not read from a source.
    """

    content: str
    group: str
    fields: Mapping[str, Any]
    row: int = 0


@dataclasses.dataclass(frozen=True)
class Splits:
    """Training, validation and test examples that share neither content nor group.

    Attributes:
        train: the examples to train on.
        validation: evaluated during training, for early stopping and the best checkpoint.
        test: held out for the final report; nothing is selected by it.
        duplicates: number of rows that were dropped because they repeated another.
        skipped: number of bad rows that were skipped, by kind of error.
        files: the inventory of the training source.
    """

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    duplicates: int
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    files: Inventory = dataclasses.field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """A SHA-256 of the training examples, in order."""
        digest = hashlib.sha256()
        for example in self.train:
            digest.update(json.dumps([example.content, example.fields], sort_keys=True, default=str).encode())
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class SplitOptions:
    """How rows are held out.

    Attributes:
        validation_fraction: fraction of the rows that are not test rows.
        test_fraction: fraction of all rows; not used with `test_path`.
        test_path: a source of test rows; rows of the training source that share content or group with one are dropped.
        test_rows: use at most this many test rows, selected by hash; 0: all.
    """

    validation_fraction: float
    test_fraction: float
    test_path: str = ""
    test_rows: int = 0


def fill(pattern: str, row: Row, option: str) -> str:
    """Returns `pattern` with each {column} replaced by the row's value.

    Args:
        pattern: text with column names in braces.
        row: the row.
        option: the config field that contains the pattern, for the error message.

    Raises:
        UserError: a column is missing (names those found), or all columns of the pattern are empty.
    """
    parts = list(string.Formatter().parse(pattern))
    values = [str(column(row, name, option)) for _, name, _, _ in parts if name is not None]
    if values and not "".join(values).strip():
        raise UserError(f"{', '.join(repr(name) for _, name, _, _ in parts if name)} is empty; expected text")
    remaining = iter(values)
    return "".join(text + (next(remaining) if name is not None else "") for text, name, _, _ in parts)


def column(row: Row, name: str, option: str) -> Any:  # noqa: ANN401 - whatever the row holds
    """Returns a row's value in a column; see `fill` for `option` and errors."""
    if row.get(name) is None:
        raise UserError(f"no {name!r}; columns found: {', '.join(map(str, row))}; set {option}")
    return row[name]


def fold(text: str) -> str:
    """Returns the text in lower case with white space collapsed, the form in which duplicates are compared."""
    return " ".join(text.lower().split())


def read_examples(
    path: str, parse: Callable[[Row], Example], strict: bool = True, skipped: Counter[str] | None = None
) -> list[Example]:
    """Returns the examples in JSONL, CSV or Parquet files or a Hugging Face dataset.

    Args:
        path: see `read_rows`.
        parse: row -> example; raises UserError for an invalid row.
        strict: raise at the first bad row; otherwise skip it.
        skipped: counts the skipped rows by kind of error.

    Raises:
        UserError: there are no rows; or, if strict, a file cannot be read or a row is invalid (names the row).
    """
    examples = []
    skipped = Counter() if skipped is None else skipped
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


def read_splits(path: str, parse: Callable[[Row], Example], options: SplitOptions, strict: bool = True) -> Splits:
    """Returns the rows of `path`, deduplicated and split by the hash of their groups: a new row never moves another.

    Raises:
        UserError: see `read_examples`; or a split is empty.
    """
    test_path, test_fraction = options.test_path, options.test_fraction
    skipped: Counter[str] = Counter()
    read = read_examples(path, parse, strict, skipped)
    rest = _unique(read)
    if test_path:
        test = _unique(read_examples(test_path, parse, strict, skipped))
        held_out = {fold(text) for example in test for text in (example.content, example.group)}
        rest = [e for e in rest if fold(e.content) not in held_out and fold(e.group) not in held_out]
        test_fraction = 0.0
    else:
        test = [example for example in rest if _fraction(example) < test_fraction]
    end = test_fraction + options.validation_fraction * (1.0 - test_fraction)
    splits = Splits(
        train=[example for example in rest if _fraction(example) >= end],
        validation=[example for example in rest if test_fraction <= _fraction(example) < end],
        test=draw(test, options.test_rows or len(test)),
        duplicates=len(read) - len(rest),
        skipped=dict(skipped),
        files=inventory(path),
    )
    counts = {"training": len(splits.train), "validation": len(splits.validation), "held-out": len(splits.test)}
    if not all(counts.values()):
        found = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise UserError(
            f"{path}: {found} rows; expected at least one each (config.task.validation_fraction, "
            "config.task.test_fraction or config.task.test_path)"
        )
    return splits


def draw(examples: list[Example], count: int) -> list[Example]:
    """Returns `count` examples (or all, if fewer), selected by the hash of their content, in their original order."""
    if count >= len(examples):
        return examples
    order = sorted(examples, key=lambda e: hashlib.sha256(e.content.encode()).digest())
    chosen = {id(example) for example in order[:count]}
    return [example for example in examples if id(example) in chosen]


def _unique(examples: list[Example]) -> list[Example]:
    """Returns the first example of each content."""
    return list({fold(example.content): example for example in reversed(examples)}.values())[::-1]


def _fraction(example: Example) -> float:
    """Returns the hash of the example's group as a number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(fold(example.group).encode()).digest()[:6], "big") / 2**48
