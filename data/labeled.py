"""Labeled rows: read, deduplicated and split by content, so that no held-out text is trained on."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from configs.errors import UserError
from data.columns import MissingValue, Row
from data.readers import read_placed_rows
from data.sources import Inventory, inventory
from data.stratify import Shares, stratified

# All rows together count as a class, so that a small data set without classes has no empty split either.
# Text has no control characters, so no class has this name.
_EVERY_ROW = "\0"


@dataclasses.dataclass(frozen=True)
class Example:
    """A labeled row, parsed by its task.

    Attributes:
        content: rows with the same content, up to case and white space, are duplicates; the first one is kept.
        group: rows with the same group are never split between training, validation and test.
        fields: the values that the task reads; JSON values.
        classes: the classes that occur in the row, if the task has classes: each is to be in every split.
        row: number of the row in its source, counted from 1 over the readable rows; 0: not read from a source.
        place: its file and the number of the row in it, as in "a.csv: row 7"; "": not read from a source.
    """

    content: str
    group: str
    fields: Mapping[str, Any]
    classes: tuple[str, ...] = ()
    row: int = 0
    place: str = ""


@dataclasses.dataclass(frozen=True)
class Splits:
    """Training, validation and test examples that share neither content nor group.

    Attributes:
        train: the examples to train on.
        validation: evaluated during training, for early stopping and the best checkpoint.
        test: held out for the final report; nothing is selected by it.
        repeated: the rows that were dropped because they repeated another.
        skipped: number of bad rows that were skipped, by kind of error.
        files: the inventory of the training source.
        rare: {class: number of its groups} of the classes that have too few groups to be in the test split.
    """

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    repeated: list[Example] = dataclasses.field(default_factory=list)
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    files: Inventory = dataclasses.field(default_factory=list)
    rare: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def duplicates(self) -> int:
        """Number of rows that were dropped because they repeated another."""
        return len(self.repeated)

    @property
    def fingerprint(self) -> str:
        """A SHA-256 of the training examples, in order."""
        return fingerprint(self.train)


def fingerprint(examples: Iterable[Example]) -> str:
    """Returns a SHA-256 of the content and the labels of examples, in order."""
    digest = hashlib.sha256()
    for example in examples:
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
        first_version: split by the hash alone, and read classes that a dataset stores as numbers as numbers
            (`data.columns.RowRules`).
    """

    validation_fraction: float
    test_fraction: float
    test_path: str = ""
    test_rows: int = 0
    first_version: bool = False


def fold(text: str) -> str:
    """Returns the text in lower case with white space collapsed, the form in which duplicates are compared."""
    return " ".join(text.lower().split())


def read_examples(
    path: str,
    parse: Callable[[Row], Example],
    strict: bool = True,
    skipped: Counter[str] | None = None,
    class_names: bool = True,
) -> list[Example]:
    """Returns the examples in JSONL, CSV or Parquet files or a Hugging Face dataset.

    Args:
        path: see `data.readers.read_documents`.
        parse: row -> example; raises UserError for an invalid row.
        strict: raise at the first bad row; otherwise skip it.
        skipped: counts the skipped rows by kind of error.
        class_names: see `read_placed_rows`.

    Raises:
        UserError: there are no rows; or, if strict, a file cannot be read or a row is invalid (names file and row).
    """
    examples = []
    skipped = Counter() if skipped is None else skipped
    last = ""
    for number, (place, row) in enumerate(read_placed_rows(path, strict, skipped, class_names), 1):
        try:
            examples.append(dataclasses.replace(parse(row), row=number, place=place))
        except UserError as error:
            if strict:
                raise UserError(f"{place}: {error}") from None
            skipped["missing value" if isinstance(error, MissingValue) else "not a row of the task"] += 1
            last = f" ({place}: {error})"
    if not examples:
        found = ", ".join(f"{count} {kind}" for kind, count in skipped.items())
        raise UserError(f"{path}: no rows{f' but {found}{last}' if found else ''}")
    return examples


def read_splits(path: str, parse: Callable[[Row], Example], options: SplitOptions, strict: bool = True) -> Splits:
    """Returns the rows of `path`, deduplicated and split by the hash of their groups, each class into every split.

    A new row moves no other, except groups of a class of which a split would have too few (`data.stratify`).

    Raises:
        UserError: see `read_examples`; or a split is empty.
    """
    skipped: Counter[str] = Counter()
    names = not options.first_version
    read = read_examples(path, parse, strict, skipped, names)
    rest = _unique(read)
    given = None
    if options.test_path:
        given = _unique(read_examples(options.test_path, parse, strict, skipped, names))
        held_out = {fold(text) for example in given for text in (example.content, example.group)}
        rest = [e for e in rest if fold(e.content) not in held_out and fold(e.group) not in held_out]
    test_fraction = 0.0 if given is not None else options.test_fraction
    validation_fraction = options.validation_fraction * (1.0 - test_fraction)
    shares = Shares(1.0 - test_fraction - validation_fraction, validation_fraction, test_fraction)
    split_of, rare = _assigned(rest, shares, by_class=not options.first_version)
    parts = {name: [e for e in rest if split_of[fold(e.group)] == name] for name in ("train", "validation", "test")}
    test = parts["test"] if given is None else given
    splits = Splits(
        train=parts["train"],
        validation=parts["validation"],
        test=draw(test, options.test_rows or len(test)),
        repeated=_without(read, rest),
        skipped=dict(skipped),
        files=inventory(path),
        rare=rare,
    )
    counts = {"training": len(splits.train), "validation": len(splits.validation), "held-out": len(splits.test)}
    if not all(counts.values()):
        found = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise UserError(
            f"{path}: {found} rows; expected at least one each (config.task.validation_fraction, "
            "config.task.test_fraction or config.task.test_path)"
        )
    return splits


def _assigned(examples: list[Example], shares: Shares, by_class: bool) -> tuple[dict[str, str], dict[str, int]]:
    """Returns ({folded group: its split}, {class: its groups} of the classes that are too rare to be tested)."""
    places: dict[str, float] = {}
    classes: dict[str, set[str]] = {}
    for example in examples:
        group = fold(example.group)
        places[group] = _fraction(group)
        classes.setdefault(group, set()).update({_EVERY_ROW, *example.classes} if by_class else ())
    split_of, rare = stratified(places, classes, shares)
    rare.pop(_EVERY_ROW, None)
    return split_of, rare


def draw(examples: list[Example], count: int) -> list[Example]:
    """Returns `count` examples (or all, if fewer), selected by the hash of their content, in their original order."""
    if count >= len(examples):
        return examples
    order = sorted(examples, key=lambda e: hashlib.sha256(e.content.encode()).digest())
    chosen = {id(example) for example in order[:count]}
    return [example for example in examples if id(example) in chosen]


def rows_per_class(splits: Splits) -> Counter[str]:
    """Returns the number of training rows of each class, as `fewer_labels` counts them."""
    single = _has_single_classes(splits)
    return Counter(example.classes[0] if single else _EVERY_ROW for example in splits.train)


def _has_single_classes(splits: Splits) -> bool:
    return all(len(example.classes) == 1 for example in (*splits.train, *splits.validation))


def fewer_labels(splits: Splits, per_class: int, seed: int) -> Splits:
    """Returns the splits with at most `per_class` training rows of each class, and validation rows in proportion.

    The rows of fewer labels are among those of more labels with the same seed. Each class keeps a validation row if it
    has one. Test rows stay. Of rows that have not one class each, all together count as a class.

    Args:
        splits: the rows.
        per_class: training rows of each class; 0: all rows.
        seed: decides which rows are drawn.
    """
    if not per_class:
        return splits
    kept = max(1, round(per_class * len(splits.validation) / len(splits.train)))
    single = _has_single_classes(splits)

    def drawn(examples: list[Example], most: int) -> list[Example]:
        order = sorted(examples, key=lambda e: hashlib.sha256(f"{seed} {e.content}".encode()).digest())
        counts: Counter[str] = Counter()
        chosen = set()
        for example in order:
            name = example.classes[0] if single else _EVERY_ROW
            counts[name] += 1
            if counts[name] <= most:
                chosen.add(id(example))
        return [example for example in examples if id(example) in chosen]

    train, validation = drawn(splits.train, per_class), drawn(splits.validation, kept)
    return dataclasses.replace(splits, train=train, validation=validation)


def _unique(examples: list[Example]) -> list[Example]:
    """Returns the first example of each content."""
    return list({fold(example.content): example for example in reversed(examples)}.values())[::-1]


def _without(examples: list[Example], kept: list[Example]) -> list[Example]:
    """Returns the examples that are not among those that were kept."""
    ids = {id(example) for example in kept}
    return [example for example in examples if id(example) not in ids]


def _fraction(group: str) -> float:
    """Returns the hash of a folded group as a number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:6], "big") / 2**48
