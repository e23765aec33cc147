"""What a run's directory says of itself, read on another machine."""

import dataclasses
import json

from conftest import tiny_model

from train.run import RunRecord, read_record


def test_the_attention_of_the_machine_that_trained_is_not_asked_of_this_one(tmp_path):
    model = tiny_model(attention="cudnn")
    record = RunRecord("pretrain", model, {}, {}, "fingerprint", [])
    (tmp_path / "run.json").write_text(json.dumps({"version": 1, **dataclasses.asdict(record)}))
    assert read_record(tmp_path).model == dataclasses.replace(model, attention="auto")
