import dataclasses
import json

import numpy as np
import pytest

from configs.errors import UserError
from data.prepare import StoreOptions, prepare
from train.evaluation.contamination import Found, harness_figures, look_up_in
from train.run.training_stores import training_stores

QUESTION = "In what country is Normandy located, and when did the Normans give it its name?"
OTHER = "Which of the following rivers flows through the most countries on its long way to the sea?"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contamination")
    texts = [f"Some page. {QUESTION} And more.", "Another page about something else.", "The last one."]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    prepare(str(folder / "a.jsonl"), folder / "store", StoreOptions("bytes"))
    return folder / "store"


def test_questions_are_found_in_a_store(store):
    found = look_up_in([store])([(OTHER,), ("short", QUESTION), ("short",), (QUESTION.upper(),)])
    assert found.found.tolist() == [False, True, False, True]
    assert found.checked.tolist() == [True, True, False, True]
    assert found.figures() == {"share_in_training": 0.5, "too_short_to_check": 1}


def test_scores_on_the_rest():
    samples = [
        {"doc_id": n, "doc": {"question": str(n)}, "filter": "none", "metrics": ["acc"], "acc": float(n < 3)}
        for n in range(4)
    ]

    def look_up(questions):
        return Found(np.array([q == ("1",) or q == ("3",) for q in questions]), np.ones(len(questions), bool))

    figures = harness_figures(samples, look_up)
    assert figures == {"share_in_training": 0.5, "too_short_to_check": 0, "acc_rest": 1.0}
    strict = [sample | {"filter": "strict"} for sample in samples]
    assert harness_figures([*samples, *strict], look_up)["acc (strict)_rest"] == 1.0


def test_a_named_store_or_an_error(store, tmp_path):
    run = dataclasses.make_dataclass("Run", ["record", "directory"])(None, tmp_path)
    assert training_stores(run, str(store)) == [store]
    for option in ("missing", str(tmp_path)):
        with pytest.raises(UserError, match=rf"--contamination={option}: .* is not a token store"):
            training_stores(run, option)
