"""A class for each word of a sentence: names, parts of speech, slots."""

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
from train.tasks.task import Facts, Prediction, Task

# The tag of a word that is nothing of what is looked for (CoNLL).
OUTSIDE = "O"
_WORDS = "tokens"


def parse(row: Row, task: TaskSettings) -> Example:
    """Returns fields {"words", "tags"}: the row's lists, or texts of words with spaces between."""
    words, tags = (_words(column(row, name, "config.task.target")) for name in (_WORDS, task.target))
    if not words or len(words) != len(tags):
        raise UserError(
            f"{len(words)} {_WORDS!r} and {len(tags)} {task.target!r}; legal: as many tags as words, one or more"
        )
    text = " ".join(words)
    group = fill(task.group, row, "config.task.group") if task.group else text
    return Example(text, group, {"words": words, "tags": tags})


def _words(value: object) -> list[str]:
    return [str(word) for word in value] if isinstance(value, list) else str(value).split()


def facts(examples: list[Example], task: TaskSettings) -> Facts:
    """Returns the tags in alphabetical order.

    Raises:
        UserError: one tag only.
    """
    classes = sorted({tag for example in examples for tag in example.fields["tags"]})
    if len(classes) < 2:
        raise UserError(f"config.data.path has one tag only ({classes[0]!r}); legal: at least two")
    return {"classes": classes}


def render(example: Example, facts: Facts, tokenizer: Tokenizer, length: int) -> Rendered:
    """Returns `bos words eos` with each word's tag as the target of its last token.

    Raises:
        UserError: a tag that is not among the classes.
    """
    index = {name: i for i, name in enumerate(facts["classes"])}
    words, tags = example.fields["words"], example.fields["tags"]
    unknown = [tag for tag in tags if tag not in index]
    if unknown:
        raise UserError(f"tag {unknown[0]!r} is unknown to the model; its tags: {', '.join(facts['classes'])}")
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


def objective(model: ModelConfig, facts: Facts, loss: LossSettings) -> Objective:
    """Returns a linear layer on each token's state."""
    return classifier(model, len(facts["classes"]), "none", smoothing=loss.label_smoothing)


def read(
    example: Example, facts: Facts, outputs: tuple[np.ndarray, ...], rendered: Rendered, tokenizer: Tokenizer
) -> Prediction:
    """Returns a tag a word; words beyond the cut have none, which is `OUTSIDE`."""
    segment = rendered.segments[0]
    tags = [facts["classes"][i] for i in outputs[0][segment["weights"] > 0].argmax(-1)]
    return tags + [OUTSIDE] * (len(example.fields["words"]) - len(tags))


def metrics(
    examples: list[Example], predictions: list[Prediction], untrained: list[Prediction] | None, facts: Facts
) -> dict[str, Interval]:
    """Returns accuracy over words and macro-F1 over the tags other than `OUTSIDE`."""
    return figures.tagging([example.fields["tags"] for example in examples], predictions)


def show(example: Example, prediction: Prediction | None, facts: Facts) -> str:
    """Returns the tagged words."""
    tags = example.fields["tags"] if prediction is None else prediction
    return " ".join(
        word if tag == OUTSIDE else f"{word}/{tag}" for word, tag in zip(example.fields["words"], tags, strict=True)
    )


TASK = Task(parse=parse, facts=facts, render=render, objective=objective, read=read, metrics=metrics, show=show)
