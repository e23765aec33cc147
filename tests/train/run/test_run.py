"""run.json: reading, versions, defaults of new fields, and checks on resume."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from conftest import tiny_model

from configs import default
from configs.errors import UserError
from data.tokenizer_training import train_tokenizer
from tests.golden import recipes
from train.run.lock import claim
from train.run.record import Run, RunRecord, config_changes, open_run, start

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "runs"


def test_attention_backend_is_not_restored_from_run_json(tmp_path):
    model = tiny_model(attention="cudnn")
    record = RunRecord("pretrain", model, {}, {}, "fingerprint", [])
    (tmp_path / "run.json").write_text(json.dumps({"version": 1, **dataclasses.asdict(record)}))
    assert open_run(tmp_path).model == dataclasses.replace(model, attention="auto")


def test_fields_added_to_the_config_later_get_their_defaults(tmp_path):
    model = tiny_model(qk_norm_joint=False)
    record = dataclasses.asdict(RunRecord("pretrain", model, {}, {}, "fingerprint", []))
    del record["model"]["qk_norm_joint"]
    (tmp_path / "run.json").write_text(json.dumps({"version": 1, **record}))
    assert open_run(tmp_path).model == dataclasses.replace(model, attention="auto")
    now = default.get_config().to_dict()
    before = default.get_config().to_dict()
    del before["adapt"]
    before["task"]["gone_since"] = 1
    assert config_changes(before, now) == []
    now["adapt"]["method"] = "lora"
    assert config_changes(before, now) == ["config.adapt.method: 'full' -> 'lora'"]


def test_a_stage_resumes_although_a_default_that_it_does_not_read_changed(tmp_path):
    config, tokenizer = default.get_config().to_dict(), train_tokenizer("bytes", [])
    changed = config | {"task": config["task"] | {"pooling": "last"}}
    for stage, names in (("pretrain", []), ("finetune", ["config.task.pooling"])):
        record = RunRecord(stage, tiny_model(), changed, {}, "0123456789abcdef", [])
        start(tmp_path / stage, record, tokenizer)
        now = dataclasses.replace(record, config=config)
        if names:
            with pytest.raises(UserError, match=r"\(config\.task\.pooling: 'last' -> 'auto'\)"):
                start(tmp_path / stage, now, tokenizer)
        else:
            start(tmp_path / stage, now, tokenizer)


def test_a_run_that_resumes_keeps_by_what_its_best_parameters_are_chosen(tmp_path):
    """Commands read best/ or checkpoints/ by run.json, and best/ is the best of all evaluations only by one metric."""
    tokenizer = train_tokenizer("bytes", [])

    def resume(workdir, best, **evaluation):
        config = default.get_config().to_dict()
        config |= {n: config[n] | new for n, new in (("checkpoint", {"best": best}), ("evaluation", evaluation))}
        return start(workdir, RunRecord("pretrain", tiny_model(), config, {}, "0123456789abcdef", []), tokenizer)

    for best in (False, True):
        resume(tmp_path / str(best), best)
        with pytest.raises(UserError, match=rf"\(config\.checkpoint\.best: {best} -> {not best}\)"):
            resume(tmp_path / str(best), not best)
    resume(tmp_path / "False", best=False, metric="bits_per_byte", batches=3)
    with pytest.raises(
        UserError, match=r"metric: 'loss' -> 'accuracy', with config\.checkpoint\.best; config\..*batches"
    ):
        resume(tmp_path / "True", best=True, metric="accuracy", batches=3)


def test_run_json_has_the_keep_period_of_the_last_start(tmp_path):
    """`rootstock checkpoint prune` keeps the checkpoints that it names."""
    tokenizer, config = train_tokenizer("bytes", []), default.get_config().to_dict()
    for period in (0, 4):
        config |= {"checkpoint": config["checkpoint"] | {"keep_period": period, "keep": 2 + period}}
        start(tmp_path, RunRecord("pretrain", tiny_model(), config, {}, "0123456789abcdef", []), tokenizer)
    stored = open_run(tmp_path).record.config["checkpoint"]
    assert (stored["keep_period"], stored["keep"]) == (4, 2)


def test_parameters_are_those_of_the_newest_checkpoint_until_the_first_evaluation(tmp_path):
    config = default.get_config().to_dict()
    config |= {"checkpoint": config["checkpoint"] | {"best": True}}
    run = Run(tmp_path, RunRecord("pretrain", tiny_model(), config, {}, "0123456789abcdef", []))
    (tmp_path / "best").mkdir()
    assert run.checkpoint_dir == "checkpoints"
    (tmp_path / "best" / "4").mkdir()
    assert run.checkpoint_dir == "best"


def test_a_field_whose_name_begins_like_a_resumable_one_is_a_change():
    before, now = default.get_config().to_dict(), default.get_config().to_dict()
    now["model"]["attention"], now["model"]["attention_softcap"] = "xla", 50.0
    assert config_changes(before, now) == ["config.model.attention_softcap: 0.0 -> 50.0"]


def test_a_second_run_in_the_same_directory_is_an_error(tmp_path):
    with claim(tmp_path / "run"), pytest.raises(UserError, match="is in use by another run"), claim(tmp_path / "run"):
        pytest.fail("a second run claimed the directory")
    with claim(tmp_path / "run"):
        pass


def test_resume_requires_the_same_data_tokenizer_and_config(tmp_path):
    config = default.get_config().to_dict()
    record = RunRecord("pretrain", tiny_model(), config, {}, "0123456789abcdef", [])
    bytes_alone, merging = train_tokenizer("bytes", []), train_tokenizer("bpe:300", ["a text of some words"])
    start(tmp_path, record, bytes_alone)
    start(tmp_path, record, bytes_alone)
    faster = config | {"optimizer": config["optimizer"] | {"learning_rate": 0.125}}
    for change, tokenizer, message in (
        ({}, merging, r"\(the tokenizer\)"),
        ({"data_fingerprint": "fedcba9876543210"}, bytes_alone, r"\(data: 0123456789abcdef != fedcba9876543210\)"),
        ({"config": faster}, bytes_alone, r"\(config\.optimizer\.learning_rate: .* -> 0\.125\)"),
        ({"model": tiny_model(num_layers=3)}, bytes_alone, r"\(model .*num_layers.*\)"),
    ):
        with pytest.raises(UserError, match=message):
            start(tmp_path, dataclasses.replace(record, **change), tokenizer)


def test_run_json_of_version_1_is_read_under_the_new_field_names(tmp_path):
    record = dataclasses.asdict(RunRecord("pretrain", tiny_model(), {}, {}, "fingerprint", []))
    record["config"] = {"faults": {"in_a_row": 3, "then": "roll_back"}, "data": {"workers": 2, "read_ahead": 5}}
    (tmp_path / "run.json").write_text(json.dumps({"version": 1, **record}))
    config = open_run(tmp_path).record.config
    assert (config["faults"]["max_consecutive_skips"], config["faults"]["on_divergence"]) == (3, "roll_back")
    assert (config["data"]["num_workers"], config["data"]["prefetch"]) == (2, 5)
    assert "in_a_row" not in config["faults"] and "workers" not in config["data"]


def test_run_json_of_an_unknown_version_is_refused(tmp_path):
    record = dataclasses.asdict(RunRecord("pretrain", tiny_model(), {}, {}, "fingerprint", []))
    (tmp_path / "run.json").write_text(json.dumps({"version": 3, **record}))
    with pytest.raises(UserError, match="has version 3; expected 1 to 2: update rootstock to read this run"):
        open_run(tmp_path)


@pytest.mark.slow
def test_fine_tuning_reads_run_json_of_its_base_model_once(tmp_path, monkeypatch):
    shutil.copytree(GOLDEN / "foundation", tmp_path / "base")
    recipes.write_data(tmp_path)
    opened = []
    read_text = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, *a, **k: opened.append(path) or read_text(path, *a, **k))
    changes = {"num_steps": 1, "evaluation.every": 1, "checkpoint.every": 1, "optimizer.warmup_steps": 0}
    recipes.finetune_lora(tmp_path, tmp_path / "base", tmp_path / "run", **changes, **{"task.zero_shot_rows": 2})
    assert opened.count(tmp_path / "base" / "run.json") == 1
