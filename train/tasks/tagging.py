"""Sequence tagging: a class for each word of a sentence, such as names, parts of speech or slots."""

import dataclasses
from collections.abc import Sequence
from typing import Self

import numpy as np

from configs.errors import UserError
from data.examples import Rendered, labeled_segment
from data.labeled import Example, column, fill
from data.readers import Row
from data.seams import encode_words
from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.heads import Objective, classifier
from train.evaluation import metrics as scores
from train.evaluation.interval import Interval
from train.evaluation.metrics import OUTSIDE
from train.settings import LossSettings, TaskSettings
from train.tasks.task import Task

_WORDS = "tokens"  # the column of the words


@dataclasses.dataclass(frozen=True)
class Tagging(Task[list[str]]):
    """Predicts a tag per word.

    Attributes:
        classes: the tags in alphabetical order.
    """

    classes: tuple[str, ...]

    @classmethod
    def parse(cls, row: Row, settings: TaskSettings) -> Example:
        """Returns fields {"words", "tags"} of two lists, or of two texts that are split at spaces."""
        words, tags = (_words(column(row, name, "config.task.target")) for name in (_WORDS, settings.target))
        if not words or len(words) != len(tags):
            raise UserError(
                f"the row has {len(words)} {_WORDS!r} and {len(tags)} {settings.target!r}; "
                "expected one tag per word, and at least one word"
            )
        text = " ".join(words)
        group = fill(settings.group, row, "config.task.group") if settings.group else text
        return Example(text, group, {"words": words, "tags": tags})

    @classmethod
    def fit(cls, examples: Sequence[Example], settings: TaskSettings) -> Self:
        """Returns the task with the tags of the examples.

        Raises:
            UserError: there is only one tag.
        """
        classes = tuple(sorted({tag for example in examples for tag in example.fields["tags"]}))
        if len(classes) < 2:
            raise UserError(f"config.data.path contains one tag only ({classes[0]!r}); expected at least two")
        return cls(classes)

    def encode(self, example: Example, tokenizer: Tokenizer, length: int) -> Rendered:
        """Returns `bos words eos` with each word's tag as the target of its last token.

        Raises:
            UserError: a tag is not one of the classes.
        """
        index = {name: i for i, name in enumerate(self.classes)}
        words, tags = example.fields["words"], example.fields["tags"]
        unknown = [tag for tag in tags if tag not in index]
        if unknown:
            raise UserError(f"tag {unknown[0]!r} is unknown to the model; its tags are {', '.join(self.classes)}")
        ids, ends = encode_words(tokenizer, words)
        kept = max((end for end in ends if end <= length - 2), default=0)
        targets = {
            end: index[tag] for end, start, tag in zip(ends, [0, *ends], tags, strict=False) if start < end <= kept
        }
        weights = dict.fromkeys(targets, 1.0)
        tokens = [tokenizer.bos_id, *ids[:kept], tokenizer.eos_id]
        return Rendered((labeled_segment(tokens, dict(targets), weights, np.int32),), kept < ends[-1])

    def objective(self, model: ModelConfig, loss: LossSettings) -> Objective:
        """Returns a linear layer on the state of each token."""
        return classifier(model, len(self.classes), "none", smoothing=loss.label_smoothing)

    def decode(
        self, example: Example, outputs: tuple[np.ndarray, ...], encoded: Rendered, tokenizer: Tokenizer
    ) -> list[str]:
        """Returns a tag per word; `OUTSIDE` for words that were cut off or have no tokens."""
        _, ends = encode_words(tokenizer, example.fields["words"])
        last = len(encoded.segments[0]["tokens"]) - 2
        return [
            self.classes[outputs[0][end].argmax()] if start < end <= last else OUTSIDE
            for start, end in zip([0, *ends], ends, strict=False)
        ]

    def metrics(self, examples: Sequence[Example], predictions: Sequence[list[str]]) -> dict[str, Interval]:
        """Returns accuracy over words and macro-F1 over the tags other than `OUTSIDE`."""
        return scores.tagging([example.fields["tags"] for example in examples], predictions)

    def expected(self, example: Example) -> str:
        """Returns the words with their tags."""
        return self.format(example, example.fields["tags"])

    def format(self, example: Example, prediction: list[str]) -> str:
        """Returns the words with the predicted tags."""
        tagged = zip(example.fields["words"], prediction, strict=True)
        return " ".join(word if tag == OUTSIDE else f"{word}/{tag}" for word, tag in tagged)

    @property
    def target_names(self) -> tuple[str, ...]:
        """Returns the tags."""
        return self.classes


def _words(value: object) -> list[str]:
    return [str(word) for word in value] if isinstance(value, list) else str(value).split()
