"""Text classification: one class per text or, with `multi_label`, any number of classes."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import numpy as np

from configs.errors import UserError
from data.columns import Row, column, described, fill, text_of, texts_of
from data.examples import Rendered, labeled_segment
from data.labeled import Example
from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.heads import Objective, classifier, multi_label_classifier
from train.evaluation import linear_svm
from train.evaluation import metrics as scores
from train.evaluation.calibration import UNSEEN, sigmoid, softmax
from train.evaluation.interval import Interval, mean_interval
from train.evaluation.linear_text import LinearText, fit_linear_text
from train.settings import LossSettings, TaskSettings
from train.tasks.task import (
    Alternative,
    Answer,
    AnswerOptions,
    Attention,
    Fitted,
    Task,
    filled_prompt,
    group_of,
    in_order,
    pooling_of,
    router_losses,
    row_rules,
)

LINEAR = "TF-IDF + linear SVM"
# Separates the classes of a row where a file can only hold text.
_SEPARATOR = "|"
_DIGITS = 6  # of probabilities in files


@dataclasses.dataclass(frozen=True)
class Classification(Task[list[str]]):
    """Predicts the classes, most likely first; with `multi_label` those with a probability above 1/2.

    Attributes:
        classes: names, in the order of `in_order`.
        weights: weight of each class in the loss; with `multi_label`, where an example has the class.
        multi_label: an example has any number of classes.
        pooling: which state the head reads.
        prompt: the question for zero-shot scoring, with {input}.
        out_of_scope: the class of rows that are none of the others, which are scored apart; "": none.
        absent_weights: with `multi_label`, weight of each class in the loss where an example does not have it; empty:
            no weights, whatever `weights` says, as in runs of earlier versions.
    """

    classes: tuple[str, ...]
    weights: tuple[float, ...]
    multi_label: bool
    pooling: Literal["last", "mean"]
    prompt: str
    absent_weights: tuple[float, ...] = ()
    out_of_scope: str = ""

    zero_shot: ClassVar[Literal["none", "prompt", "head"]] = "prompt"
    default_attention: ClassVar[Attention] = "bidirectional"
    ensembles: ClassVar[bool] = True
    baseline_name: ClassVar[str] = "majority-class baseline"
    unused_fields: ClassVar[tuple[str, ...]] = (
        *("task.context", "task.template", "task.metrics", "task.max_new_tokens", "task.beta"),
        *("task.center", "loss.z_loss", "loss.chunk"),
    )

    @classmethod
    def parse(cls, row: Row, settings: TaskSettings) -> Example:
        """Returns fields {"text", "labels"}."""
        rules = row_rules(settings)
        text = fill(settings.input, row, "config.task.input", rules)
        value = column(row, settings.target, "config.task.target")
        if settings.multi_label:
            labels = texts_of(value, repr(settings.target), rules)
            if not isinstance(value, list):
                labels = labels[0].split(_SEPARATOR)
            labels = [label.strip() for label in labels if label.strip()]
            if not rules.first_version:
                # A label that a row repeats counts once.
                labels = list(dict.fromkeys(labels))
        elif isinstance(value, list | dict):
            raise UserError(
                f"{settings.target!r} is {described(value)}; expected the name of a class, or set "
                "config.task.multi_label=True"
            )
        else:
            label = text_of(value, repr(settings.target), rules)
            if not label.strip():
                raise UserError(f"{settings.target!r} is {value!r}; expected the name of a class")
            labels = [label if rules.first_version else label.strip()]
        classes = tuple(sorted(set(labels)))
        return Example(text, group_of(row, settings, text), {"text": text, "labels": labels}, classes)

    @classmethod
    def parse_input(cls, row: Row, settings: TaskSettings) -> Example:
        """Returns fields {"text", "labels": []}."""
        text = fill(settings.input, row, "config.task.input", row_rules(settings))
        return Example(text, text, {"text": text, "labels": []})

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
        if settings.multi_label and settings.class_weights == "balanced":
            # Each class is a decision of its own, between the rows that have it and those that do not.
            rows = len(examples)
            weights = tuple(rows / (2 * counts[name]) for name in classes)
            absent = tuple(rows / (2 * max(rows - counts[name], 1)) for name in classes)
            return cls(classes, weights, True, pooling_of(settings), settings.prompt, absent)
        weights = class_weights(counts, classes, settings.class_weights)
        pooling, prompt, outside = pooling_of(settings), settings.prompt, settings.out_of_scope
        return cls(classes, weights, settings.multi_label, pooling, prompt, out_of_scope=outside)

    def encode(self, example: Example, tokenizer: Tokenizer, length: int) -> Rendered:
        """Returns `bos text eos` with the class as the target of its last token; an unseen label is in no loss."""
        index = {name: i for i, name in enumerate(self.classes)}
        targets = [index[label] for label in example.fields["labels"] if label in index]
        ids = tokenizer.encode(example.fields["text"])
        tokens = [tokenizer.bos_id, *ids[: length - 2], tokenizer.eos_id]
        last = len(tokens) - 1
        if not self.multi_label:
            target = targets[0] if targets else 0
            weight = self.weights[target] if targets else 0.0
            segment = labeled_segment(tokens, {last: target}, {last: weight}, np.int32)
            return Rendered((segment,), len(ids) > length - 2)
        segment = labeled_segment(tokens, {}, {last: 1.0}, np.float32)
        ones = np.zeros((len(tokens), len(index)), np.float32)
        ones[last, targets] = 1.0
        return Rendered((segment | {"targets": ones},), len(ids) > length - 2)

    def objective(self, model: ModelConfig, loss: LossSettings) -> Objective:
        """Returns a linear layer on the pooled states, with one output per class."""
        shape, router = (model, len(self.classes), self.pooling, loss.label_smoothing), router_losses(loss)
        if not self.multi_label:
            return classifier(*shape, router)
        weights_2V = np.array([self.absent_weights, self.weights], np.float32) if self.absent_weights else None
        return multi_label_classifier(*shape, weights_2V, router)

    def decode(
        self, example: Example, outputs: tuple[np.ndarray, ...], encoded: Rendered, tokenizer: Tokenizer
    ) -> list[str]:
        """Returns the classes, most likely first; with `multi_label` those with a probability above 1/2."""
        logits = outputs[0][-1]
        if self.multi_label:
            return [name for name, z in zip(self.classes, logits, strict=True) if z > 0]
        return [self.classes[i] for i in np.argsort(-logits, kind="stable")]

    def decisions(
        self, example: Example, outputs: tuple[np.ndarray, ...], encoded: Rendered, tokenizer: Tokenizer
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the logits and the class; with `multi_label`, of the choice between no and yes for each class."""
        logits, labels = outputs[0][-1], example.fields["labels"]
        if self.multi_label:
            return np.stack([np.zeros_like(logits), logits], -1), np.array(
                [name in labels for name in self.classes], int
            )
        return logits[None], np.array([self.classes.index(labels[0]) if labels[0] in self.classes else UNSEEN])

    @property
    def answer_options(self) -> tuple[str, ...]:
        """All options; with `multi_label`, "top_k"."""
        return ("top_k",) if self.multi_label else ("top_k", "abstain_below", "coverage")

    def answer_columns(self, options: AnswerOptions) -> tuple[str, ...]:
        """Returns "prediction", "probability", "prediction_2", ...; with options also "set" and "abstained"."""
        if self.multi_label:
            return ("prediction", "probabilities", *(("top", "top_probabilities") if options.top_k > 1 else ()))
        numbers = [f"_{rank}" if rank > 1 else "" for rank in range(1, min(options.top_k, len(self.classes)) + 1)]
        columns = [f"{name}{number}" for number in numbers for name in ("prediction", "probability")]
        columns += ["set"] if options.set_threshold is not None else []
        return (*columns, *(("abstained",) if options.abstain_below else ()))

    def answer(
        self, example: Example, outputs: tuple[np.ndarray, ...], encoded: Rendered, tokenizer: Tokenizer,
        options: AnswerOptions,
    ) -> Answer:  # fmt: skip
        """Returns the first classes of `decode` with their probabilities, the first one None if it is too unlikely.

        With `multi_label`, the classes of `decode`; with `top_k` above 1 also the most likely ones.
        """
        ranking = self.decode(example, outputs, encoded, tokenizer)
        logits = outputs[0][-1] / options.temperature
        likely = dict(zip(self.classes, (sigmoid if self.multi_label else softmax)(logits).tolist(), strict=True))
        if self.multi_label:
            top = sorted(self.classes, key=lambda name: -likely[name])[: options.top_k]
            lists = {"prediction": ranking, "probabilities": ranking, "top": top, "top_probabilities": top}
            return {
                column: [round(likely[name], _DIGITS) if "prob" in column else name for name in lists[column]]
                for column in self.answer_columns(options)
            }
        found: list[object] = [v for name in ranking[: options.top_k] for v in (name, round(likely[name], _DIGITS))]
        # The number that is written decides, so that a reader can check it.
        sure = round(likely[ranking[0]], _DIGITS) >= options.abstain_below
        if not sure:
            found[0] = None
        if (threshold := options.set_threshold) is not None:
            found.append([name for name in ranking if likely[name] >= threshold or name == ranking[0]])
        if options.abstain_below:
            found.append(not sure)
        return dict(zip(self.answer_columns(options), found, strict=True))

    def metrics(self, examples: Sequence[Example], predictions: Sequence[list[str]]) -> dict[str, Interval]:
        """Returns accuracy, macro-F1 and, for more than five classes, top-3; multi-label: F1 and exact match.

        With `out_of_scope`, also the accuracy of the rows in scope, and the share of the others that is recognized.
        """
        labels = [example.fields["labels"] for example in examples]
        if self.multi_label:
            return scores.multi_label([set(names) for names in labels], [set(names) for names in predictions])
        found = scores.classification([names[0] for names in labels], predictions)
        if len(self.classes) <= 5:
            del found["top_3"]
        if not self.out_of_scope:
            return found
        outside = np.array([self.is_out_of_scope(example) for example in examples])
        right = np.array([names[0] == best[0] for names, best in zip(labels, predictions, strict=True)])
        parts = {"accuracy_in_scope": right[~outside], "recall_out_of_scope": right[outside]}
        return found | {name: mean_interval(rows) for name, rows in parts.items() if len(rows)}

    def is_out_of_scope(self, example: Example) -> bool:
        """Returns whether the class of an example is the one that stands for all other texts."""
        return self.out_of_scope in example.fields["labels"]

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

    def alternatives(self) -> dict[str, Alternative]:
        """Returns a linear SVM on TF-IDF features."""
        return {LINEAR: self._svm}

    def _svm(self, train: Sequence[Example], validation: Sequence[Example]) -> Fitted:
        texts, labels = (
            [[e.fields[name] for e in part] for part in (train, validation)] for name in ("text", "labels")
        )
        if not self.multi_label:
            first = [[names[0] for names in part] for part in labels]
            return LinearClassifier(fit_linear_text((texts[0], first[0]), (texts[1], first[1])))

        def predict(test: Sequence[Example]) -> list[list[str]]:
            held_out = [example.fields["text"] for example in test]
            return linear_svm.several_classes((texts[0], labels[0]), (texts[1], labels[1]), held_out)

        return predict

    def question(self, example: Example) -> tuple[str, str]:
        """Returns the prompt with the text filled in, and the classes in words."""
        answer = ", ".join(map(_in_words, example.fields["labels"])) or "none"
        return filled_prompt(self.prompt, input=example.fields["text"]), answer

    def choices(self) -> list[str]:
        """Returns the classes in words."""
        return [_in_words(name) for name in self.classes]

    def read_answers(self, answers: list[str]) -> list[str]:
        """Returns the classes of the answers; with `multi_label` the most likely one."""
        names = {_in_words(name): name for name in self.classes}
        ranking = [names[answer] for answer in answers]
        return ranking[:1] if self.multi_label else ranking

    def unseen(self, example: Example) -> list[str]:
        """Returns the labels that are not among the classes."""
        return [label for label in example.fields["labels"] if label not in self.classes]

    @property
    def target_names(self) -> tuple[str, ...]:
        """Returns the classes."""
        return self.classes


@dataclasses.dataclass(frozen=True)
class LinearClassifier:
    """A linear model that predicts the classes of examples, most likely first."""

    model: LinearText

    def __call__(self, examples: Sequence[Example]) -> list[list[str]]:
        """Returns the classes of each example, most likely first."""
        return self.model.ranked([example.fields["text"] for example in examples])


def class_weights(
    counts: Counter[str], classes: Sequence[str], method: Literal["none", "balanced"]
) -> tuple[float, ...]:
    """Returns the weight of each class in the loss: 1, or its inverse frequency, with a mean of 1 over all targets.

    "balanced" is scikit-learn's (King and Zeng 2001).
    """
    return tuple(counts.total() / (len(classes) * counts[c]) if method == "balanced" else 1.0 for c in classes)


def _in_words(label: str) -> str:
    return label.replace("_", " ")
