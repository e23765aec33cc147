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
from data.seams import encode_words
from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.heads import Objective, classifier
from train.evaluation import linear_svm
from train.evaluation import metrics as scores
from train.evaluation.calibration import UNSEEN, softmax
from train.evaluation.interval import Interval
from train.evaluation.metrics import OUTSIDE
from train.settings import LossSettings, TaskSettings
from train.tasks.classification import class_weights
from train.tasks.task import (
    Alternative,
    Answer,
    AnswerOptions,
    Attention,
    Fitted,
    Task,
    group_of,
    in_order,
    router_losses,
    row_rules,
)

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

    default_attention: ClassVar[Attention] = "bidirectional"
    list_separator: ClassVar[str] = " "
    unused_fields: ClassVar[tuple[str, ...]] = (
        *("task.input", "task.context", "task.pooling", "task.multi_label", "task.template", "task.metrics"),
        *("task.beta", "task.center", "task.out_of_scope", "loss.z_loss", "loss.chunk"),
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
    def parse_input(cls, row: Row, settings: TaskSettings) -> Example:
        """Returns fields {"words", "tags"} with `OUTSIDE` for every word."""
        words = _words(row, _WORDS, row_rules(settings))
        if not words:
            raise UserError(f"{_WORDS!r} has no words; expected at least one")
        text = " ".join(words)
        return Example(text, text, {"words": words, "tags": [OUTSIDE] * len(words)})

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
        ids, ends = encode_words(tokenizer, words)
        kept = max((end for end in ends if end <= length - 2), default=0)
        targets = {
            end: index[tag]
            for end, start, tag in zip(ends, [0, *ends], tags, strict=False)
            if start < end <= kept and tag in index
        }
        weights = {place: self.weights[target] if self.weights else 1.0 for place, target in targets.items()}
        tokens = [tokenizer.bos_id, *ids[:kept], tokenizer.eos_id]
        return Rendered((labeled_segment(tokens, dict(targets), weights, np.int32),), kept < ends[-1])

    def objective(self, model: ModelConfig, loss: LossSettings) -> Objective:
        """Returns a linear layer on the state of each token."""
        return classifier(model, len(self.classes), "none", loss.label_smoothing, router_losses(loss))

    def decode(
        self, example: Example, outputs: tuple[np.ndarray, ...], encoded: Rendered, tokenizer: Tokenizer
    ) -> list[str]:
        """Returns a tag per word; `OUTSIDE` for words that were cut off or have no tokens."""
        places = _places(example, encoded, tokenizer)
        return [OUTSIDE if place is None else self.classes[outputs[0][place].argmax()] for place in places]

    def decisions(
        self, example: Example, outputs: tuple[np.ndarray, ...], encoded: Rendered, tokenizer: Tokenizer
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the logits and the tag of each word that was not cut off and has tokens."""
        places = _places(example, encoded, tokenizer)
        found = [(p, tag) for p, tag in zip(places, example.fields["tags"], strict=True) if p is not None]
        labels = [self.classes.index(tag) if tag in self.classes else UNSEEN for _, tag in found]
        return outputs[0][[p for p, _ in found]], np.array(labels, int)

    def answer_columns(self, options: AnswerOptions) -> tuple[str, ...]:
        """Returns "prediction" and "probabilities": lists with an item per word."""
        return ("prediction", "probabilities")

    def answer(
        self, example: Example, outputs: tuple[np.ndarray, ...], encoded: Rendered, tokenizer: Tokenizer,
        options: AnswerOptions,
    ) -> Answer:  # fmt: skip
        """Returns a tag per word with its probability, None for words that were cut off or have no tokens."""
        places = _places(example, encoded, tokenizer)
        likely = [
            None if place is None else round(float(softmax(outputs[0][place] / options.temperature).max()), 6)
            for place in places
        ]
        return {"prediction": self.decode(example, outputs, encoded, tokenizer), "probabilities": likely}

    def metrics(self, examples: Sequence[Example], predictions: Sequence[list[str]]) -> dict[str, Interval]:
        """Returns accuracy over words and macro-F1 over the tags other than `OUTSIDE`."""
        return scores.tagging([example.fields["tags"] for example in examples], predictions)

    def alternatives(self) -> dict[str, Alternative]:
        """Returns a linear SVM on the words."""
        return {"word features + linear SVM": _svm}

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


def _places(example: Example, encoded: Rendered, tokenizer: Tokenizer) -> list[int | None]:
    """Returns the position of each word's last token, None for words that were cut off or have no tokens."""
    _, ends = encode_words(tokenizer, example.fields["words"])
    last = len(encoded.segments[0]["tokens"]) - 2
    return [end if start < end <= last else None for start, end in zip([0, *ends], ends, strict=False)]


def _svm(train: Sequence[Example], validation: Sequence[Example]) -> Fitted:
    words, tags = ([[e.fields[name] for e in part] for part in (train, validation)] for name in ("words", "tags"))

    def predict(test: Sequence[Example]) -> list[list[str]]:
        return linear_svm.tag_words((words[0], tags[0]), (words[1], tags[1]), [e.fields["words"] for e in test])

    return predict


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
