"""Sequence tagging: a class for each word of a sentence, such as names, parts of speech or slots."""

import dataclasses
from collections.abc import Sequence
from typing import Self

import numpy as np

from configs.errors import UserError
from data.examples import Rendered, labeled_segment
from data.labeled import Example, column, fill
from data.readers import Row
from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.heads import Objective, classifier
from train.evaluation import metrics as scores
from train.evaluation.interval import Interval
from train.evaluation.metrics import OUTSIDE
from train.settings import LossSettings, TaskSettings
from train.tasks.task import Task, in_order

_WORDS = "tokens"  # the column of the words


@dataclasses.dataclass(frozen=True)
class Tagging(Task[list[str]]):
    """Predicts a tag per word.

    Attributes:
        classes: the tags, in the order of `in_order`.
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
        classes = in_order(tag for example in examples for tag in example.fields["tags"])
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
        tokens, targets = [tokenizer.bos_id], {}
        pieces = tokenizer.encode_batch([word if i == 0 else f" {word}" for i, word in enumerate(words)])
        for ids, tag in zip(pieces, tags, strict=True):
            if not ids or len(tokens) + len(ids) >= length:
                break
            tokens += ids
            targets[len(tokens) - 1] = index[tag]
        weights = dict.fromkeys(targets, 1.0)
        segment = labeled_segment([*tokens, tokenizer.eos_id], dict(targets), weights, np.int32)
        return Rendered((segment,), len(targets) < len(words))

    def objective(self, model: ModelConfig, loss: LossSettings) -> Objective:
        """Returns a linear layer on the state of each token."""
        return classifier(model, len(self.classes), "none", smoothing=loss.label_smoothing)

    def decode(
        self, example: Example, outputs: tuple[np.ndarray, ...], encoded: Rendered, tokenizer: Tokenizer
    ) -> list[str]:
        """Returns a tag per word; `OUTSIDE` for words that were cut off."""
        segment = encoded.segments[0]
        tags = [self.classes[i] for i in outputs[0][segment["weights"] > 0].argmax(-1)]
        return tags + [OUTSIDE] * (len(example.fields["words"]) - len(tags))

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
