"""Which class, or with `multi_label` which classes, a text has."""

from collections import Counter

import numpy as np

from configs.errors import UserError
from data.examples import Rendered, labeled_segment
from data.labeled import Example, column, fill
from data.readers import Row
from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.heads import Objective, classifier
from train.evaluation import metrics as figures
from train.evaluation.interval import Interval
from train.settings import LossSettings, TaskSettings
from train.tasks.task import Facts, Prediction, Task, Untrained

# Between the classes of a row of several, where a file can only hold text.
_SEPARATOR = "|"


def parse(row: Row, task: TaskSettings) -> Example:
    """Returns fields {"text", "labels"}."""
    text = fill(task.input, row, "config.task.input")
    value = column(row, task.target, "config.task.target")
    if task.multi_label:
        labels = [str(v) for v in value] if isinstance(value, list) else str(value).split(_SEPARATOR)
        labels = [label.strip() for label in labels if label.strip()]
    elif isinstance(value, list | dict) or str(value).strip() == "":
        raise UserError(f"{task.target!r} is {value!r}; legal: the name of a class, or set config.task.multi_label")
    else:
        labels = [str(value)]
    group = fill(task.group, row, "config.task.group") if task.group else text
    return Example(text, group, {"text": text, "labels": labels})


def facts(examples: list[Example], task: TaskSettings) -> Facts:
    """Returns the classes in alphabetical order, and their weights when they are to be balanced.

    Raises:
        UserError: one class only.
    """
    counts = Counter(label for example in examples for label in example.fields["labels"])
    classes = sorted(counts)
    if len(classes) < 2:
        raise UserError(f"config.data.path has one class only ({', '.join(classes)!r}); legal: at least two")
    balanced = task.class_weights == "balanced"
    # Weights whose mean over the rows is 1, as scikit-learn's "balanced" (King and Zeng 2001).
    weights = [counts.total() / (len(classes) * counts[name]) if balanced else 1.0 for name in classes]
    return {
        "classes": classes,
        "weights": weights,
        "multi_label": task.multi_label,
        "pooling": task.pooling,
        "prompt": task.prompt,
    }


def render(example: Example, facts: Facts, tokenizer: Tokenizer, length: int) -> Rendered:
    """Returns `bos text eos` with the class as the target of its last token.

    Raises:
        UserError: a label that is not among the classes.
    """
    index = {name: i for i, name in enumerate(facts["classes"])}
    labels = example.fields["labels"]
    unknown = [label for label in labels if label not in index]
    if unknown:
        raise UserError(f"label {unknown[0]!r} is unknown to the model; its classes: {_some(facts['classes'])}")
    ids = tokenizer.encode(example.fields["text"])
    tokens = [tokenizer.bos_id, *ids[: length - 2], tokenizer.eos_id]
    last = len(tokens) - 1
    if not facts["multi_label"]:
        place = index[labels[0]]
        segment = labeled_segment(tokens, {last: place}, {last: facts["weights"][place]}, np.int32)
        return Rendered((segment,), len(ids) > length - 2)
    segment = labeled_segment(tokens, {}, {last: 1.0}, np.float32)
    targets = np.zeros((len(tokens), len(index)), np.float32)
    targets[last, [index[label] for label in labels]] = 1.0
    return Rendered((segment | {"targets": targets},), len(ids) > length - 2)


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def objective(model: ModelConfig, facts: Facts, loss: LossSettings) -> Objective:
    """Returns a linear layer on the pooled states, with one output a class."""
    multi_label = facts["multi_label"]
    return classifier(model, len(facts["classes"]), facts["pooling"], multi_label, loss.label_smoothing)


def read(
    example: Example, facts: Facts, outputs: tuple[np.ndarray, ...], rendered: Rendered, tokenizer: Tokenizer
) -> Prediction:
    """Returns the classes, likeliest first; with `multi_label` those more likely than not."""
    logits = outputs[0][-1]
    if facts["multi_label"]:
        return [name for name, z in zip(facts["classes"], logits, strict=True) if z > 0]
    return [facts["classes"][i] for i in np.argsort(-logits, kind="stable")]


def metrics(
    examples: list[Example], predictions: list[Prediction], untrained: list[Prediction] | None, facts: Facts
) -> dict[str, Interval]:
    """Returns accuracy, macro-F1 and, of more than five classes, top-3; of several labels micro- and macro-F1."""
    labels = [example.fields["labels"] for example in examples]
    if facts["multi_label"]:
        return figures.multi_label([set(names) for names in labels], [set(names) for names in predictions])
    found = figures.classification([names[0] for names in labels], predictions)
    return found if len(facts["classes"]) > 5 else {name: found[name] for name in ("accuracy", "macro_f1")}


def show(example: Example, prediction: Prediction | None, facts: Facts) -> str:
    """Returns the class or classes."""
    names = example.fields["labels"] if prediction is None else prediction
    return ", ".join(names if facts["multi_label"] else names[:1])


def guess(examples: list[Example], facts: Facts) -> Prediction:
    """Returns the classes by how often they occur; of several labels, the most frequent one."""
    counts = Counter(label for example in examples for label in example.fields["labels"])
    ranking = [name for name, _ in counts.most_common()]
    return ranking[:1] if facts["multi_label"] else ranking


def _prompt(example: Example, facts: Facts) -> tuple[str, str]:
    answer = ", ".join(map(_verbal, example.fields["labels"])) or "none"
    return facts["prompt"].replace("{input}", example.fields["text"]), answer


def _verbal(label: str) -> str:
    return label.replace("_", " ")


def _read_choice(answers: list[str], facts: Facts) -> Prediction:
    names = {_verbal(name): name for name in facts["classes"]}
    ranking = [names[answer] for answer in answers]
    return ranking[:1] if facts["multi_label"] else ranking


TASK = Task(
    parse=parse,
    facts=facts,
    render=render,
    objective=objective,
    read=read,
    metrics=metrics,
    show=show,
    guess=guess,
    untrained=Untrained(_prompt, lambda facts: [_verbal(name) for name in facts["classes"]], _read_choice),
)
