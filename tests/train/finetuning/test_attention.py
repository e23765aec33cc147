"""`config.task.attention`: what "auto" means, who refuses it, and that every later command computes with it."""

import json
import shutil

import numpy as np
import pytest

from configs import default
from configs.errors import UserError
from tests.runs import error_lines, last_loss, rootstock, write_rows
from train.finetuning.run import finetune
from train.prediction import load
from train.replay import replay
from train.run.record import open_run
from train.settings import from_config
from train.step import objective_of
from train.tasks.loading import attention_of
from train.tasks.task import pooling_of

pytestmark = pytest.mark.usefixtures("one_device")


def config_of(path, **changes):
    config = default.get_config()
    config.batch_size, config.sequence_length, config.num_steps = 8, 32, 8
    config.data.path = str(path)
    config.evaluation.every = config.checkpoint.every = 4
    config.logging.every, config.optimizer.warmup_steps, config.optimizer.learning_rate = 1, 2, 1e-2
    config.task.baseline, config.task.alternatives, config.task.zero_shot_rows = False, False, 0
    config.update_from_flattened_dict(changes)
    return config.to_dict()


@pytest.mark.parametrize(
    ("name", "method", "attention", "pooling"),
    [
        ("classification", "full", "bidirectional", "mean"),
        ("classification", "lora", "causal", "last"),
        ("regression", "full", "bidirectional", "mean"),
        ("tagging", "full", "bidirectional", "mean"),
        ("span", "full", "bidirectional", "mean"),
        ("classification", "head", "causal", "last"),
        ("classification", "last", "causal", "last"),
        ("reward", "full", "causal", "last"),
        ("generation", "full", "causal", "last"),
        ("chat", "lora", "causal", "last"),
        ("preference", "full", "causal", "last"),
    ],
)
def test_auto_is_both_directions_where_a_head_does_not_write_and_all_weights_train(name, method, attention, pooling):
    settings = from_config(config_of("rows", **{"task.name": name})).task
    assert attention_of(settings, method) == attention
    decided = from_config(config_of("rows", **{"task.name": name, "task.attention": attention})).task
    assert (attention_of(decided, method), pooling_of(decided)) == (attention, pooling)


@pytest.mark.parametrize("name", ["generation", "chat", "preference"])
def test_a_head_that_writes_text_refuses_to_look_ahead(name, foundation, tmp_path):
    config = config_of(tmp_path / "none.jsonl", **{"task.name": name, "task.attention": "bidirectional"})
    if name != "generation":
        config["task"]["zero_shot_rows"] = default.get_config().task.zero_shot_rows
    config["task"]["alternatives"] = True
    if name == "preference":
        config["task"]["baseline"] = True
    with pytest.raises(UserError, match="bidirectional' needs a head that does not write text") as caught:
        finetune(config, foundation, tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def run(foundation, tmp_path_factory):
    """A classifier that was fine-tuned with the defaults, and its rows."""
    folder = tmp_path_factory.mktemp("attention")
    rows = write_rows(folder / "rows.jsonl", 120)
    finetune(config_of(rows), foundation, folder / "run")
    return folder / "run", rows


@pytest.mark.integration
def test_run_json_records_the_attention_and_a_restart_keeps_it(run, foundation, tmp_path):
    trained, rows = run
    record = open_run(trained).record
    assert record.config["task"]["attention"] == "bidirectional" and not record.model.causal
    assert record.task["pooling"] == "mean"
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    finetune(config_of(rows), foundation, tmp_path / "run")
    assert last_loss(tmp_path / "run") == last_loss(trained)
    with pytest.raises(UserError, match=r"task.attention: 'bidirectional' -> 'causal'"):
        finetune(config_of(rows, **{"task.attention": "causal"}), foundation, tmp_path / "run")


@pytest.mark.slow
def test_a_run_of_an_earlier_version_stays_causal(foundation, tmp_path):
    rows, workdir = write_rows(tmp_path / "rows.jsonl", 120), tmp_path / "run"
    causal = {"task.attention": "causal", "task.pooling": "last"}
    finetune(config_of(rows, **causal), foundation, workdir)
    shutil.rmtree(workdir / "checkpoints" / "8")
    record = json.loads((workdir / "run.json").read_text())
    assert record["model"].pop("causal") is True
    del record["config"]["task"]["attention"]
    (workdir / "run.json").write_text(json.dumps(record))
    finetune(config_of(rows), foundation, workdir)
    assert open_run(workdir).model.causal and (workdir / "checkpoints" / "8").is_dir()


@pytest.mark.integration
def test_predict_and_evaluate_look_ahead_as_in_training(run, tmp_path):
    trained, rows = run
    accuracy = json.loads((trained / "results.json").read_text())["models"]["fine-tuned"]["accuracy"]["value"]
    table = [json.loads(line) for line in rows.read_text().splitlines()]
    answers = load(trained)([row["text"] for row in table])
    right = [row["label"] == answer["prediction"] for row, answer in zip(table, answers, strict=True)]
    done = rootstock("evaluate", "--run", trained, "--data", rows, "--json")
    assert json.loads(done.stdout)["accuracy"]["value"] == pytest.approx(np.mean(right))
    assert 0.0 <= accuracy <= 1.0
    changed = json.loads((trained / "run.json").read_text())
    shutil.copytree(trained, tmp_path / "run")
    changed["model"]["causal"] = True
    (tmp_path / "run" / "run.json").write_text(json.dumps(changed))
    other = load(tmp_path / "run")([row["text"] for row in table])
    assert [a["probability"] for a in answers] != [a["probability"] for a in other]


@pytest.mark.integration
def test_replay_repeats_a_step_that_looks_ahead(run):
    trained, _ = run
    assert replay(trained, 6)["equal"] is True


@pytest.mark.integration
def test_a_lora_adapter_that_looks_ahead_merges_into_the_same_predictions(foundation, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", 120)
    lora = {"adapt.method": "lora", "adapt.rank": 2, "task.attention": "bidirectional"}
    finetune(config_of(rows, **lora), foundation, tmp_path / "lora")
    assert not open_run(tmp_path / "lora").model.causal
    rootstock("merge", "--run", tmp_path / "lora", "--workdir", tmp_path / "merged")
    texts = [json.loads(line)["text"] for line in rows.read_text().splitlines()[:20]]
    before, after = (load(tmp_path / name)(texts) for name in ("lora", "merged"))
    np.testing.assert_allclose(*([a["probability"] for a in answers] for answers in (before, after)), atol=1e-5)


def test_the_planner_compiles_the_attention_of_the_task():
    settings = from_config(config_of("rows", **{"task.attention": "bidirectional"}))
    from conftest import init, tiny_model

    model = tiny_model()
    ones = np.ones((1, 8), np.int32)
    batch = {"tokens": np.arange(3, 11)[None], "targets": np.arange(3, 11)[None], "segment_ids": ones,
             "positions": np.arange(8)[None], "weights": ones.astype(np.float32)}  # fmt: skip
    losses = []
    for config in (settings, from_config(config_of("rows"))):
        objective = objective_of(config, model)
        losses.append(float(objective.loss(init(objective), batch).objective))
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize("value", [False, True, 0])
def test_the_model_has_no_field_for_it(value):
    config = config_of("rows")
    config["model"]["causal"] = value
    with pytest.raises(UserError, match=r"config.model.causal is unknown; .* config.task.attention"):
        from_config(config)


def test_pre_training_refuses_the_field(text, tmp_path):
    done = rootstock(
        "pretrain", "--config=configs/pretrain/tiny.py", f"--workdir={tmp_path / 'run'}", f"--config.data.path={text}",
        "--config.task.attention=bidirectional", check=False,
    )  # fmt: skip
    assert "config.task.attention='bidirectional' has no effect in pre-training" in error_lines(done)[0]
