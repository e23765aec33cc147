"""The model that scores documents is identified by what determines its parameters."""

import json

from train.prediction import document_scores
from train.prediction.document_scores import DocumentScorer, document_scorer
from train.tasks.regression import Regression


def test_a_run_that_is_trained_again_is_another_model(tmp_path, monkeypatch):
    monkeypatch.setattr(document_scores, "_task", lambda run: Regression(0.0, 1.0, "last"))
    found = []
    for config, step in (({"seed": 0}, 4), ({"seed": 0}, 8), ({"seed": 1}, 8)):
        (tmp_path / "run.json").write_text(json.dumps({"config": config}))
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
        found.append(document_scorer(str(tmp_path), "").fingerprint)
    assert len(set(found)) == 3
    (tmp_path / "checkpoints").rename(tmp_path / "moved")
    (tmp_path / "moved").rename(tmp_path / "checkpoints")
    assert document_scorer(str(tmp_path), "") == DocumentScorer(str(tmp_path), "", found[-1])
