"""Labelled rows: read, cleaned of duplicates, split by content, tokenized and packed for a classification head."""

import dataclasses
import hashlib
from collections import Counter

import numpy as np

from configs.errors import UserError
from data.packing import pack_examples
from data.sources import read_rows
from data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Example:
    """A text and the name of its class."""

    text: str
    label: str


@dataclasses.dataclass(frozen=True)
class ClassificationData:
    """Held-out and training examples that share no text, and the classes in alphabetical order."""

    train: list[Example]
    test: list[Example]
    classes: list[str]

    @property
    def fingerprint(self) -> str:
        """Names the training examples, in order."""
        digest = hashlib.sha256()
        for example in self.train:
            digest.update(repr((example.text, example.label)).encode())
        return digest.hexdigest()


def fold(text: str) -> str:
    """Returns the text as duplicates are compared: lower case, white space folded."""
    return " ".join(text.lower().split())


def read_examples(path: str, text_field: str, label_field: str) -> list[Example]:
    """Returns the labelled rows of JSONL, CSV, Parquet or a Hugging Face dataset.

    Raises:
        UserError: a row lacks a field (the fields found are named), or a text or label is empty.
    """
    examples = []
    for number, row in enumerate(read_rows(path), 1):
        for field, option in ((text_field, "config.data.text_field"), (label_field, "config.task.label_field")):
            if row.get(field) in (None, ""):
                raise UserError(
                    f"{path}: row {number} has no {field!r}; fields found: {', '.join(map(str, row))}; set {option}"
                )
        examples.append(Example(str(row[text_field]), str(row[label_field])))
    if not examples:
        raise UserError(f"{path}: no rows")
    return examples


def classification_data(
    path: str, test_path: str, text_field: str, label_field: str, test_fraction: float
) -> ClassificationData:
    """Returns the task's data, split so that no text stands on both sides.

    With `test_path` its rows are the held-out ones and training rows that repeat one of them are dropped; without,
    a text is held out when its hash falls below `test_fraction`, so that adding rows never moves another.

    Raises:
        UserError: see `read_examples`; one class only; a class that only held-out rows have.
    """
    train = _unique(read_examples(path, text_field, label_field))
    if test_path:
        test = _unique(read_examples(test_path, text_field, label_field))
        held_out = {fold(example.text) for example in test}
        train = [example for example in train if fold(example.text) not in held_out]
    else:
        test = [example for example in train if _place(example.text) < test_fraction]
        train = [example for example in train if _place(example.text) >= test_fraction]
    if not train or not test:
        raise UserError(f"{path}: {len(train)} training and {len(test)} held-out rows; legal: at least one each")
    classes = sorted({example.label for example in train})
    if len(classes) < 2:
        raise UserError(f"{path}: one class only ({classes[0]!r}); legal: at least two")
    unseen = sorted({example.label for example in test} - set(classes))
    if unseen:
        raise UserError(
            f"{test_path or path}: label {unseen[0]!r} is only among held-out rows; known: {_some(classes)}"
        )
    return ClassificationData(train, test, classes)


def _unique(examples: list[Example]) -> list[Example]:
    """Returns the first example of each text."""
    return list({fold(example.text): example for example in reversed(examples)}.values())[::-1]


def _place(text: str) -> float:
    return int.from_bytes(hashlib.sha256(fold(text).encode()).digest()[:6], "big") / 2**48


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def majority_class(examples: list[Example]) -> str:
    """Returns the most frequent class."""
    return Counter(example.label for example in examples).most_common(1)[0][0]


@dataclasses.dataclass(frozen=True)
class ClassificationRows:
    """Examples packed into rows: each is `bos text eos` as a segment, with its class as the target of eos.

    Attributes:
        tokens: of each example, cut to the row's length, bos and eos kept.
        labels: class index of each example.
        packed: the examples in each row.
        sequence_length: T.
        pad_id: fills a row up.
        truncated: examples that were cut.
    """

    tokens: list[np.ndarray]
    labels: np.ndarray
    packed: list[list[int]]
    sequence_length: int
    pad_id: int
    truncated: int

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def order(self) -> list[int]:
        """Example numbers in the order in which the rows hold them."""
        return [example for row in self.packed for example in row]

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns tokens, targets, segment_ids, positions (int32) and weights (float32) of shape (rows, T)."""
        shape = (len(indices), self.sequence_length)
        batch = {name: np.zeros(shape, np.int32) for name in ("tokens", "targets", "segment_ids", "positions")}
        batch["tokens"] += self.pad_id
        batch["weights"] = np.zeros(shape, np.float32)
        for row, index in enumerate(indices):
            start = 0
            for segment, example in enumerate(self.packed[index], 1):
                tokens = self.tokens[example]
                place = slice(start, start + len(tokens))
                batch["tokens"][row, place] = tokens
                batch["segment_ids"][row, place] = segment
                batch["positions"][row, place] = np.arange(len(tokens))
                batch["targets"][row, place.stop - 1] = self.labels[example]
                batch["weights"][row, place.stop - 1] = 1.0
                start = place.stop
        return batch


def classification_rows(
    examples: list[Example], classes: list[str], tokenizer: Tokenizer, sequence_length: int, seed: int
) -> ClassificationRows:
    """Returns the examples as packed rows; texts beyond the row are cut at their end and counted.

    Raises:
        UserError: a label that is not among the classes.
    """
    index = {name: i for i, name in enumerate(classes)}
    unknown = sorted({example.label for example in examples} - index.keys())
    if unknown:
        raise UserError(f"label {unknown[0]!r} is unknown to the model; its classes: {_some(classes)}")
    encoded = tokenizer.encode_batch([example.text for example in examples])
    room = sequence_length - 2
    tokens = [np.array([tokenizer.bos_id, *ids[:room], tokenizer.eos_id], np.int32) for ids in encoded]
    packed = pack_examples(np.array([len(ids) for ids in tokens]), sequence_length, seed)
    labels = np.array([index[example.label] for example in examples])
    truncated = sum(len(ids) > room for ids in encoded)
    return ClassificationRows(tokens, labels, packed, sequence_length, tokenizer.pad_id, truncated)
