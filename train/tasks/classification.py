"""Text classification: one class per text or, with `multi_label`, any number of classes."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Literal, Self

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
from train.settings import LossSettings, TaskSettings
from train.tasks.task import Task, in_order

# Separates the classes of a row where a file can only hold text.
_SEPARATOR = "|"


@dataclasses.dataclass(frozen=True)
class Classification(Task[list[str]]):
    """Predicts the classes, most likely first; with `multi_label` those with a probability above 1/2.

    Attributes:
        classes: names, in the order of `in_order`.
        weights: weight of each class in the loss.
        multi_label: an example has any number of classes.
        pooling: which state the head reads.
        prompt: the question for zero-shot scoring, with {input}.
    """

    classes: tuple[str, ...]
    weights: tuple[float, ...]
    multi_label: bool
    pooling: Literal["last", "mean"]
    prompt: str

    zero_shot: ClassVar[Literal["none", "prompt", "head"]] = "prompt"
    baseline_name: ClassVar[str] = "majority-class baseline"

    @classmethod
    def parse(cls, row: Row, settings: TaskSettings) -> Example:
        """Returns fields {"text", "labels"}."""
        text = fill(settings.input, row, "config.task.input")
        value = column(row, settings.target, "config.task.target")
        if settings.multi_label:
            labels = [str(v) for v in value] if isinstance(value, list) else str(value).split(_SEPARATOR)
            labels = [label.strip() for label in labels if label.strip()]
        elif isinstance(value, list | dict) or str(value).strip() == "":
            raise UserError(
                f"{settings.target!r} is {value!r}; expected the name of a class, or set config.task.multi_label=True"
            )
        else:
            labels = [str(value)]
        group = fill(settings.group, row, "config.task.group") if settings.group else text
        return Example(text, group, {"text": text, "labels": labels})

    @classmethod
    def fit(cls, examples: Sequence[Example], settings: TaskSettings) -> Self:
        """Returns the task with the classes of the examples and their weights in the loss.

        Raises:
            UserError: there is only one class.
        """
        counts = Counter(label for example in examples for label in example.fields["labels"])
        classes = in_order(counts)
        if len(classes) < 2:
            raise UserError(f"config.data.path contains one class only ({', '.join(classes)!r}); expected at least two")
        balanced = settings.class_weights == "balanced"
        # Weights whose mean over the rows is 1, as scikit-learn's "balanced" (King and Zeng 2001).
        weights = tuple(counts.total() / (len(classes) * counts[name]) if balanced else 1.0 for name in classes)
        return cls(classes, weights, settings.multi_label, settings.pooling, settings.prompt)

    def encode(self, example: Example, tokenizer: Tokenizer, length: int) -> Rendered:
        """Returns `bos text eos` with the class as the target of its last token.

        Raises:
            UserError: a label is not one of the classes.
        """
        index = {name: i for i, name in enumerate(self.classes)}
        labels = example.fields["labels"]
        unknown = [label for label in labels if label not in index]
        if unknown:
            raise UserError(
                f"label {unknown[0]!r} is unknown to the model; its classes are {_abbreviated(self.classes)}"
            )
        ids = tokenizer.encode(example.fields["text"])
        tokens = [tokenizer.bos_id, *ids[: length - 2], tokenizer.eos_id]
        last = len(tokens) - 1
        if not self.multi_label:
            target = index[labels[0]]
            segment = labeled_segment(tokens, {last: target}, {last: self.weights[target]}, np.int32)
            return Rendered((segment,), len(ids) > length - 2)
        segment = labeled_segment(tokens, {}, {last: 1.0}, np.float32)
        targets = np.zeros((len(tokens), len(index)), np.float32)
        targets[last, [index[label] for label in labels]] = 1.0
        return Rendered((segment | {"targets": targets},), len(ids) > length - 2)

    def objective(self, model: ModelConfig, loss: LossSettings) -> Objective:
        """Returns a linear layer on the pooled states, with one output per class."""
        return classifier(model, len(self.classes), self.pooling, self.multi_label, loss.label_smoothing)

    def decode(
        self, example: Example, outputs: tuple[np.ndarray, ...], encoded: Rendered, tokenizer: Tokenizer
    ) -> list[str]:
        """Returns the classes, most likely first; with `multi_label` those with a probability above 1/2."""
        logits = outputs[0][-1]
        if self.multi_label:
            return [name for name, z in zip(self.classes, logits, strict=True) if z > 0]
        return [self.classes[i] for i in np.argsort(-logits, kind="stable")]

    def metrics(self, examples: Sequence[Example], predictions: Sequence[list[str]]) -> dict[str, Interval]:
        """Returns accuracy, macro-F1 and, for more than five classes, top-3; multi-label: F1 and exact match."""
        labels = [example.fields["labels"] for example in examples]
        if self.multi_label:
            return scores.multi_label([set(names) for names in labels], [set(names) for names in predictions])
        found = scores.classification([names[0] for names in labels], predictions)
        return found if len(self.classes) > 5 else {name: found[name] for name in ("accuracy", "macro_f1")}

    def expected(self, example: Example) -> str:
        """Returns the class or classes."""
        return self.format(example, example.fields["labels"])

    def format(self, example: Example, prediction: list[str]) -> str:
        """Returns the most likely class, or the predicted classes."""
        return ", ".join(prediction if self.multi_label else prediction[:1])

    def baseline_prediction(self, examples: Sequence[Example]) -> list[str]:
        """Returns the classes by frequency; with `multi_label` the most frequent one."""
        counts = Counter(label for example in examples for label in example.fields["labels"])
        ranking = [name for name, _ in counts.most_common()]
        return ranking[:1] if self.multi_label else ranking

    def question(self, example: Example) -> tuple[str, str]:
        """Returns the prompt with the text filled in, and the classes in words."""
        answer = ", ".join(map(_in_words, example.fields["labels"])) or "none"
        return self.prompt.replace("{input}", example.fields["text"]), answer

    def choices(self) -> list[str]:
        """Returns the classes in words."""
        return [_in_words(name) for name in self.classes]

    def read_answers(self, answers: list[str]) -> list[str]:
        """Returns the classes of the answers; with `multi_label` the most likely one."""
        names = {_in_words(name): name for name in self.classes}
        ranking = [names[answer] for answer in answers]
        return ranking[:1] if self.multi_label else ranking

    @property
    def target_names(self) -> tuple[str, ...]:
        """Returns the classes."""
        return self.classes


def _abbreviated(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _in_words(label: str) -> str:
    return label.replace("_", " ")
