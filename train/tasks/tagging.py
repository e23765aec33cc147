"""Sequence tagging: a class for each word of a sentence, such as names, parts of speech or slots."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np

from configs.errors import UserError
from data.columns import Row, RowRules, column, text_of, texts_of
from data.examples import Rendered, labeled_segment
from data.labeled import Example
from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.heads import Objective, classifier
from train.evaluation import metrics as scores
from train.evaluation.interval import Interval
from train.evaluation.metrics import OUTSIDE
from train.settings import LossSettings, TaskSettings
from train.tasks.classification import class_weights
from train.tasks.task import Task, group_of, in_order, row_rules

_WORDS = "tokens"  # the column of the words


@dataclasses.dataclass(frozen=True)
class Tagging(Task[list[str]]):
    """Predicts a tag per word.

    Attributes:
        classes: the tags, in the order of `in_order`.
        weights: weight of each tag in the loss; empty: 1, as in runs of earlier versions.
    """

    classes: tuple[str, ...]
    weights: tuple[float, ...] = ()

    unused_fields: ClassVar[tuple[str, ...]] = (
        *("task.input", "task.context", "task.pooling", "task.multi_label", "task.template", "task.metrics"),
        *("task.beta", "loss.z_loss", "loss.chunk"),
    )

    @classmethod
    def parse(cls, row: Row, settings: TaskSettings) -> Example:
        """Returns fields {"words", "tags"} of two lists, or of two texts that are split at spaces."""
        rules = row_rules(settings)
        words, tags = (_words(row, name, rules) for name in (_WORDS, settings.target))
        if not words or len(words) != len(tags):
            raise UserError(
                f"the row has {len(words)} {_WORDS!r} and {len(tags)} {settings.target!r}; "
                "expected one tag per word, and at least one word"
            )
        text = " ".join(words)
        fields = {"words": words, "tags": tags}
        return Example(text, group_of(row, settings, text), fields, tuple(sorted(set(tags))))

    @classmethod
    def fit(cls, examples: Sequence[Example], settings: TaskSettings) -> Self:
        """Returns the task with the tags of the examples and their weights in the loss.

        Raises:
            UserError: there is only one tag.
        """
        counts = Counter(tag for example in examples for tag in example.fields["tags"])
        classes = in_order(counts)
        if len(classes) < 2:
            raise UserError(f"config.data.path contains one tag only ({classes[0]!r}); expected at least two")
        return cls(classes, class_weights(counts, classes, settings.class_weights))

    def encode(self, example: Example, tokenizer: Tokenizer, length: int) -> Rendered:
        """Returns `bos words eos` with each word's tag as the target of its last token; an unseen tag is in no loss."""
        index = {name: i for i, name in enumerate(self.classes)}
        words, tags = example.fields["words"], example.fields["tags"]
        tokens, ends = _word_tokens(words, tokenizer, length)
        targets = {end: index[tag] for end, tag in zip(ends, tags, strict=False) if tag in index}
        weights = {place: self.weights[target] if self.weights else 1.0 for place, target in targets.items()}
        segment = labeled_segment(tokens, dict(targets), weights, np.int32)
        return Rendered((segment,), len(ends) < len(words))

    def objective(self, model: ModelConfig, loss: LossSettings) -> Objective:
        """Returns a linear layer on the state of each token."""
        return classifier(model, len(self.classes), "none", smoothing=loss.label_smoothing)

    def decode(
        self, example: Example, outputs: tuple[np.ndarray, ...], encoded: Rendered, tokenizer: Tokenizer
    ) -> list[str]:
        """Returns a tag per word; `OUTSIDE` for words that were cut off."""
        words = example.fields["words"]
        _, ends = _word_tokens(words, tokenizer, len(encoded.segments[0]["tokens"]))
        tags = [self.classes[i] for i in outputs[0][ends].argmax(-1)]
        return tags + [OUTSIDE] * (len(words) - len(tags))

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

    def unseen(self, example: Example) -> list[str]:
        """Returns the tags that are not among the classes."""
        return [tag for tag in example.fields["tags"] if tag not in self.classes]

    @property
    def target_names(self) -> tuple[str, ...]:
        """Returns the tags."""
        return self.classes


def _words(row: Row, name: str, rules: RowRules) -> list[str]:
    """Returns the words or tags in a column: a list, or a text that is split at spaces.

    Raises:
        UserError: the column is missing, or a word is empty: it would have no token.
    """
    value = column(row, name, "config.task.target")
    if not isinstance(value, list):
        return text_of(value, repr(name), rules).split()
    words = texts_of(value, repr(name), rules)
    if "" in words:
        raise UserError(f"value {words.index('') + 1} of {name!r} is empty; expected a word or tag")
    return words


def _word_tokens(words: Sequence[str], tokenizer: Tokenizer, length: int) -> tuple[list[int], list[int]]:
    """Returns (`bos words eos` with as many words as fit into `length` tokens, the place of each word's last token)."""
    tokens, ends = [tokenizer.bos_id], []
    for ids in tokenizer.encode_batch([word if i == 0 else f" {word}" for i, word in enumerate(words)]):
        if not ids or len(tokens) + len(ids) >= length:
            break
        tokens += ids
        ends.append(len(tokens) - 1)
    return [*tokens, tokenizer.eos_id], ends
