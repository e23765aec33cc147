"""The head of a run in a Hugging Face checkpoint: its class in `transformers`, its labels and its tensors."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from configs.errors import UserError
from model.huggingface.families import FAMILIES, Family
from model.huggingface.weights import Row
from train.run.record import Run

_CLASSES = "a language model, a tagging model, or a classification or regression model with config.task.pooling=last"


@dataclasses.dataclass(frozen=True)
class Head:
    """What `transformers` needs to know of a head.

    Attributes:
        name: the class in `transformers`.
        row: the head's weights; None: the output table of a language model.
        config: its fields of config.json.
        framed: a text has bos before and eos after it, as in training.
        pooled: `transformers` reads the rightmost token that is not pad.
        scale: factor of the weights.
        offset: constant that is added to the output.
        bias: name of a bias, which is 0, or "" if the class has none.
    """

    name: str
    row: Row | None = None
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    framed: bool = False
    pooled: bool = False
    scale: float = 1.0
    offset: float = 0.0
    bias: str = ""


def head_of(run: Run, architecture: str) -> Head:
    """Returns the exported head of a run.

    Raises:
        UserError: `transformers` has no class for it.
    """
    family = FAMILIES[architecture]
    if run.is_language_model:
        return Head(f"{family.prefix}{family.causal_lm}")
    task = run.record.task
    if task["name"] == "tagging":
        name = _class_of(family, "TokenClassification", run)
        layer = "classifier" if architecture in ("gpt2", "gpt_neox", "falcon") else "score"
        row, bias = Row("table", f"{layer}.weight"), f"{layer}.bias"
        return Head(name, row, _labels(task["classes"]), True, bias=bias)
    if task["name"] not in ("classification", "regression") or task["pooling"] != "last":
        pooling = f" with pooling {task['pooling']!r}" if "pooling" in task else ""
        raise UserError(f"{run.directory} is a {task['name']} model{pooling}; expected {_CLASSES}")
    name = _class_of(family, "SequenceClassification", run)
    head = Head(name, Row("table", "score.weight"), {}, True, True)
    if task["name"] == "regression":
        config = _labels(["value"]) | {"problem_type": "regression"}
        return dataclasses.replace(head, config=config, scale=task["std"], offset=task["mean"])
    kind = "multi_label_classification" if task["multi_label"] else "single_label_classification"
    return dataclasses.replace(head, config=_labels(task["classes"]) | {"problem_type": kind})


def _class_of(family: Family, head: str, run: Run) -> str:
    """Returns the name of the class of `transformers` with a head, e.g. "LlamaForTokenClassification"."""
    name = f"{family.head_prefix or family.prefix}For{head}"
    if head not in family.heads:
        raise UserError(f"{run.directory} is a {run.record.task['name']} model; transformers has no {name}")
    return name


def _labels(classes: list[str]) -> dict[str, Any]:
    return {
        "id2label": {str(i): name for i, name in enumerate(classes)},
        "label2id": {name: i for i, name in enumerate(classes)},
        "num_labels": len(classes),
    }


def head_edits(head: Head, table_VD: np.ndarray, norm_bias: str) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Returns {tensor name: the change that puts `scale` and `offset` of a head into the weights}.

    The heads of `transformers` have no bias. The bias of the last LayerNorm takes its place: it is read by the head
    alone, and w . (x + d) = w . x + offset for d = offset w / (w . w).

    Args:
        head: the head.
        table_VD: its weights.
        norm_bias: name of the bias of the last norm, or "" if that has none.

    Raises:
        UserError: the offset cannot be added.
    """
    if head.row is None or (head.scale == 1.0 and head.offset == 0.0):
        return {}
    edits: dict[str, Callable[[np.ndarray], np.ndarray]] = {head.row.key: lambda weights: weights * head.scale}
    if head.offset == 0.0:
        return edits
    weights_D = table_VD[0].astype(np.float64) * head.scale
    if not norm_bias or not weights_D.any():
        raise UserError(
            f"{head.name} of transformers cannot add {head.offset:g}, the mean that the regression head is trained "
            "without; fine-tune with config.task.center=False, or from a model of gpt2"
        )
    shift_D = head.offset * weights_D / (weights_D @ weights_D)
    edits[norm_bias] = lambda bias: (bias + shift_D).astype(bias.dtype)
    return edits
