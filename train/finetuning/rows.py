"""The labeled rows of a task: read, split, encoded and packed into rows of tokens."""

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from configs.errors import UserError
from data.examples import ExampleRows, Rendered, Segment, pack
from data.labeled import Example, SplitOptions, Splits, fewer_labels, read_splits
from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.heads import Objective, language_model
from train.console import warn
from train.evaluation.scoring import head_outputs
from train.generation.language_model import LanguageModel
from train.settings import Settings
from train.tasks.loading import load_task
from train.tasks.task import Task, row_rules


@dataclasses.dataclass(frozen=True)
class TaskRows:
    """One part of the data (training, validation or test), ready for a model.

    Attributes:
        examples: the examples that have a target left after truncation.
        encoded: their segments.
        rows: the segments, packed.
        dropped: number of examples that had no target left after truncation.
    """

    examples: list[Example]
    encoded: list[Rendered]
    rows: ExampleRows
    dropped: int

    @property
    def truncated(self) -> int:
        """Number of examples that were truncated."""
        return sum(encoded.cut for encoded in self.encoded)


@dataclasses.dataclass(frozen=True)
class TaskData:
    """A task with its encoded rows.

    Attributes:
        task: the task.
        tokenizer: of the rows.
        parts: the rows for "train", "validation" and "test".
    """

    task: Task[Any]
    tokenizer: Tokenizer
    parts: Mapping[str, TaskRows]


def read_task(settings: Settings) -> tuple[Task[Any], Splits]:
    """Returns the task of a config, fitted to its training rows, and the rows.

    Raises:
        UserError: the task is unknown, or the rows are missing or cannot be used.
    """
    if not settings.data.path:
        raise UserError("config.data.path is empty; expected labeled rows as .jsonl, .csv, .parquet or hf:NAME")
    s = settings.task
    cls = load_task(s.name)
    first = row_rules(s).first_version
    options = SplitOptions(s.validation_fraction, s.test_fraction, s.test_path, s.test_rows, first)
    splits = read_splits(settings.data.path, lambda row: cls.parse(row, s), options, settings.data.strict)
    splits = fewer_labels(splits, s.labels_per_class, settings.seed)
    return cls.fit(splits.train, s), splits


def encode_rows(task: Task[Any], examples: Sequence[Example], tokenizer: Tokenizer, length: int, seed: int) -> TaskRows:
    """Returns the examples as packed rows of `length` tokens.

    Raises:
        UserError: see `Task.encode`; or no example has a target left after truncation.
    """
    pairs = [(example, task.encode(example, tokenizer, length)) for example in examples]
    kept = [(example, encoded) for example, encoded in pairs if encoded is not None]
    if not kept:
        raise UserError(
            f"none of the {len(pairs)} rows has a target within config.sequence_length={length} tokens; "
            "use a larger config.sequence_length or shorter inputs"
        )
    rows = pack([encoded.segments for _, encoded in kept], length, tokenizer.pad_id, seed)
    return TaskRows([e for e, _ in kept], [r for _, r in kept], rows, len(pairs) - len(kept))


def steps_of(settings: Settings, rows: int) -> int:
    """Returns the number of training steps: `config.num_steps`, or more to pass over the rows often enough.

    Args:
        settings: the config.
        rows: number of packed rows to train on.
    """
    return max(settings.num_steps, math.ceil(settings.task.min_epochs * rows / settings.batch_size))


def first_rows(part: TaskRows, count: int) -> TaskRows:
    """Returns the examples of the first `count` rows; all for 0."""
    if not count or count >= len(part.rows):
        return part
    chosen = sorted(example for row in part.rows.packed[:count] for example in row)
    encoded = [part.encoded[i] for i in chosen]
    rows = pack([r.segments for r in encoded], part.rows.sequence_length, part.rows.pad_id, seed=0)
    return TaskRows([part.examples[i] for i in chosen], encoded, rows, part.dropped)


def say_dropped(title: str, part: TaskRows, length: int) -> int:
    """Returns how many rows that should be scored have no target within the length of a row, with a warning."""
    if part.dropped:
        warn(
            f"{title}: {part.dropped:,} of {part.dropped + len(part.examples):,} rows have no target within "
            f"config.sequence_length={length} tokens and are not scored"
        )
    return part.dropped


def say_unseen(title: str, task: Task[Any], examples: Sequence[Example]) -> int:
    """Returns how many examples have labels that the training rows lack, with a warning that lists these labels."""
    labels = [task.unseen(example) for example in examples]
    count = sum(map(bool, labels))
    if count:
        counts = Counter(label for found in labels for label in dict.fromkeys(found))
        names = abbreviated([f"{name} ({number})" for name, number in counts.most_common()])
        warn(
            f"{title}: {count:,} of {len(examples):,} rows have labels that the training rows lack and count as "
            f"errors: {names}"
        )
    return count


def abbreviated(names: Sequence[str], most: int = 8) -> str:
    """Returns the names with commas, the first ones if there are many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def with_reference(part: TaskRows, reference: LanguageModel, batch_size: int) -> TaskRows:
    """Returns the rows with the log-probability of each segment's targets under a language model, as "reference"."""
    objective = _language_model(reference.model)
    found: dict[int, tuple[Segment, ...]] = {}
    for example, outputs in head_outputs(objective, reference.params, part.rows, batch_size, reference.mesh):
        segments = []
        for segment, nll in zip(part.rows.examples[example], outputs, strict=True):
            log_probability = np.zeros(len(nll), np.float32)
            log_probability[-1] = -(nll * segment["weights"]).sum()
            segments.append(segment | {"reference": log_probability})
        found[example] = tuple(segments)
    segments_of = [found[example] for example in range(len(part.examples))]
    encoded = [Rendered(s, r.cut) for s, r in zip(segments_of, part.encoded, strict=True)]
    return dataclasses.replace(part, encoded=encoded, rows=dataclasses.replace(part.rows, examples=segments_of))


@functools.lru_cache(maxsize=8)
def _language_model(model: ModelConfig) -> Objective:
    """Returns the objective of a model; cached, because jit compiles once per function object."""
    return language_model(model)


def with_shots(part: TaskRows, shown: Sequence[Example], task: Task[Any], tokenizer: Tokenizer) -> TaskRows:
    """Returns the rows with as many other answered examples before each text as fit; these are not in the loss."""
    length = part.rows.sequence_length
    shots = [encoded.segments[0] for e in shown if (encoded := task.encode(e, tokenizer, length)) is not None]
    special = set(tokenizer.special_tokens.values())
    made = []
    for encoded in part.encoded:
        segment = encoded.segments[0]
        before: list[int] = []
        for shot in shots:
            text = [*shot["tokens"].tolist(), int(shot["targets"][-1])]
            # Separately encoded texts meet at a special token.
            text += [tokenizer.eos_id] * (text[-1] not in special and text[0] not in special)
            if len(before) + len(text) + len(segment["tokens"]) <= length:
                before += text
        tokens, zeros = np.array(before, np.int32), np.zeros(len(before), np.float32)
        prefix = {"tokens": tokens, "targets": np.zeros_like(tokens), "weights": zeros}
        longer = {name: np.concatenate([prefix[name], segment[name]]) for name in segment}
        made.append(Rendered((longer,), encoded.cut))
    rows = pack([encoded.segments for encoded in made], length, tokenizer.pad_id, seed=0)
    return dataclasses.replace(part, encoded=made, rows=rows)
