"""The questions of an evaluation that are in the training text, and the scores on the other ones."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.filters.contamination import EvaluationSet, Texts, build_index, texts_of
from data.filters.search import rows_in_store
from data.store import open_store
from data.tokenizer import load_tokenizer
from train.console import progress


@dataclasses.dataclass(frozen=True)
class Found:
    """Which questions are in the training text.

    Attributes:
        found: bool[n], per question.
        checked: bool[n]; a question of fewer than 8 words is not checked.
    """

    found: np.ndarray
    checked: np.ndarray

    def figures(self) -> dict[str, float | int]:
        """Returns the share of the questions that are found, and how many were too short to look for."""
        return {
            "share_in_training": float(np.mean(self.found)) if len(self.found) else 0.0,
            "too_short_to_check": int(np.count_nonzero(~self.checked)),
        }


# Texts of questions -> which of them are in the training text.
LookUp = Callable[[Sequence[Texts]], Found]


def look_up_in(stores: Sequence[Path]) -> LookUp:
    """Returns a function that looks for questions in the training splits of stores."""

    def look_up(questions: Sequence[Texts]) -> Found:
        index = build_index([EvaluationSet("questions", questions)])
        found = np.zeros(len(questions), bool)
        for store in stores:
            split = open_store(store, "train")
            with progress(f"looking for {len(questions):,} questions in {store}", len(split.offsets) - 1) as bar:
                found |= rows_in_store(split, load_tokenizer(store), index, lambda done, _: bar(done))
        return Found(found, index.checked)

    return look_up


def harness_figures(samples: Sequence[Mapping[str, Any]], look_up: LookUp) -> dict[str, Any]:
    """Returns the share of a task's questions in the training text and each metric on the other ones, "NAME_rest".

    Args:
        samples: the harness's samples of a task: "doc", "doc_id", "filter", "metrics" and their values.
        look_up: looks for questions.
    """
    docs = {sample["doc_id"]: sample["doc"] for sample in samples}
    found = look_up([tuple(texts_of(doc)) for doc in docs.values()])
    rest = {number for number, is_found in zip(docs, found.found, strict=True) if not is_found}
    values: dict[str, list[Any]] = {}
    for sample in samples:
        if sample["doc_id"] in rest:
            for name in sample["metrics"]:
                shown = name if sample["filter"] == "none" else f"{name} ({sample['filter']})"
                values.setdefault(shown, []).append(sample[name])
    return found.figures() | {f"{name}_rest": _aggregate(name, some) for name, some in values.items()}


def _aggregate(name: str, values: Sequence[Any]) -> float:
    """Returns the mean of numbers; other values, such as pairs of texts, are put together as the harness does."""
    if all(isinstance(value, int | float | np.number) for value in values):
        return float(np.mean(values))
    from lm_eval.api.registry import get_metric_aggregation

    return float(get_metric_aggregation(name.partition(" (")[0])(list(values)))
