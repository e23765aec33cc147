"""What a run's directory says of itself, read on another machine."""

import dataclasses
import json

from conftest import tiny_model

from configs import default
from train.run import RunRecord, config_changes, read_record


def test_the_attention_of_the_machine_that_trained_is_not_asked_of_this_one(tmp_path):
    model = tiny_model(attention="cudnn")
    record = RunRecord("pretrain", model, {}, {}, "fingerprint", [])
    (tmp_path / "run.json").write_text(json.dumps({"version": 1, **dataclasses.asdict(record)}))
    assert read_record(tmp_path).model == dataclasses.replace(model, attention="auto")


def test_a_run_from_before_a_field_came_had_its_default(tmp_path):
    model = tiny_model(qk_norm_joint=False)
    record = dataclasses.asdict(RunRecord("pretrain", model, {}, {}, "fingerprint", []))
    del record["model"]["qk_norm_joint"]
    (tmp_path / "run.json").write_text(json.dumps({"version": 1, **record}))
    assert read_record(tmp_path).model == dataclasses.replace(model, attention="auto")
    now = default.get_config().to_dict()
    before = default.get_config().to_dict()
    del before["adapt"]
    before["task"]["gone_since"] = 1
    assert config_changes(before, now) == []
    now["adapt"]["method"] = "lora"
    assert config_changes(before, now) == ["config.adapt.method: 'full' -> 'lora'"]
