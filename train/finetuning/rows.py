"""A task's examples as rows of tokens, and a model's predictions of them."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from configs.errors import UserError
from data.examples import ExampleRows, Rendered, Segment, pack
from data.labeled import Example, SplitOptions, Splits, read_splits
from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.heads import language_model
from model.transformer import Params
from train.evaluation.scoring import head_outputs
from train.settings import Settings
from train.tasks.task import Facts, Task, load


@dataclasses.dataclass(frozen=True)
class TaskRows:
    """A part of the data, ready for a model.

    Attributes:
        examples: those that something was left of.
        rendered: their tokens.
        rows: these, packed.
        dropped: examples of which nothing to learn was left after they were cut.
    """

    examples: list[Example]
    rendered: list[Rendered]
    rows: ExampleRows
    dropped: int

    @property
    def cut(self) -> int:
        """Examples that were cut to fit."""
        return sum(rendered.cut for rendered in self.rendered)


def read_task(settings: Settings) -> tuple[Task, Splits, Facts]:
    """Returns the task of a config, its rows and what they say of it.

    Raises:
        UserError: an unknown task, no rows, or a fault in them.
    """
    if not settings.data.path:
        raise UserError("config.data.path is empty; legal: labelled rows as .jsonl, .csv, .parquet or hf:NAME")
    s = settings.task
    task = load(s.name)
    options = SplitOptions(s.validation_fraction, s.test_fraction, s.test_path, s.test_rows)
    splits = read_splits(settings.data.path, lambda row: task.parse(row, s), options, settings.data.strict)
    return task, splits, {"name": s.name, **task.facts(splits.train, s)}


def render_rows(
    task: Task, facts: Facts, examples: Sequence[Example], tokenizer: Tokenizer, length: int, seed: int
) -> TaskRows:
    """Returns the examples as packed rows of `length` tokens.

    Raises:
        UserError: see `Task.render`; or nothing was left of any example.
    """
    pairs = [(example, task.render(example, facts, tokenizer, length)) for example in examples]
    kept = [(example, rendered) for example, rendered in pairs if rendered is not None]
    if not kept:
        raise UserError(
            f"of {len(pairs)} rows none has anything left to learn in {length} tokens; "
            "legal: a larger config.sequence_length, or shorter inputs"
        )
    rows = pack([rendered.segments for _, rendered in kept], length, tokenizer.pad_id, seed)
    return TaskRows([e for e, _ in kept], [r for _, r in kept], rows, len(pairs) - len(kept))


def with_reference(part: TaskRows, model: ModelConfig, params: Params, batch_size: int, mesh: Mesh) -> TaskRows:
    """Returns the rows with the log-probability that a language model gives each segment's targets, as "reference"."""
    objective = language_model(model)
    found: dict[int, tuple[Segment, ...]] = {}
    for example, outputs in head_outputs(objective, params, part.rows, batch_size, mesh):
        segments = []
        for segment, nll in zip(part.rows.examples[example], outputs, strict=True):
            reference = np.zeros(len(nll), np.float32)
            reference[-1] = -(nll * segment["weights"]).sum()
            segments.append(segment | {"reference": reference})
        found[example] = tuple(segments)
    segments_of = [found[example] for example in range(len(part.examples))]
    rendered = [Rendered(s, r.cut) for s, r in zip(segments_of, part.rendered, strict=True)]
    return dataclasses.replace(part, rendered=rendered, rows=dataclasses.replace(part.rows, examples=segments_of))


def with_shots(part: TaskRows, shown: Sequence[Example], task: Task, facts: Facts, tokenizer: Tokenizer) -> TaskRows:
    """Returns the rows with other examples, answers included, before each text, as many as fit; they do not count."""
    length = part.rows.sequence_length
    shots = [rendered.segments[0] for e in shown if (rendered := task.render(e, facts, tokenizer, length)) is not None]
    made = []
    for rendered in part.rendered:
        segment = rendered.segments[0]
        before: list[int] = []
        for shot in shots:
            whole = [*shot["tokens"].tolist(), int(shot["targets"][-1])]
            if len(before) + len(whole) + len(segment["tokens"]) <= length:
                before += whole
        tokens, nothing = np.array(before, np.int32), np.zeros(len(before), np.float32)
        longer = {"tokens": tokens, "targets": np.zeros_like(tokens), "weights": nothing}
        made.append(
            Rendered(({name: np.concatenate([longer[name], segment[name]]) for name in segment},), rendered.cut)
        )
    rows = pack([rendered.segments for rendered in made], length, tokenizer.pad_id, seed=0)
    return dataclasses.replace(part, rendered=made, rows=rows)
