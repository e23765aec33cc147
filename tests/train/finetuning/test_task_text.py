"""Pre-training on the task's texts first: only training rows, resumed in the middle, and the baselines stay."""

import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs import default
from configs.errors import UserError
from tests.runs import records, write_rows
from train.distributed.mesh import single_device_mesh
from train.finetuning.run import finetune, prepare_run
from train.finetuning.task_text import task_text_rows, with_task_text
from train.prediction import load
from train.run.length import TASK_TEXT_DIR
from train.run.record import open_run
from train.run.training_stores import training_stores
from train.settings import from_config

pytestmark = pytest.mark.usefixtures("one_device")


def config_of(path, **changes):
    config = default.get_config()
    config.batch_size, config.sequence_length, config.num_steps = 8, 32, 4
    config.data.path = str(path)
    config.evaluation.every = config.checkpoint.every = 4
    config.logging.every, config.optimizer.warmup_steps, config.optimizer.learning_rate = 1, 1, 1e-2
    config.task.baseline, config.task.alternatives, config.task.zero_shot_rows = False, False, 0
    config.adapt.task_text_steps = 8
    config.update_from_flattened_dict(changes)
    return config.to_dict()


def weights_of(directory):
    run, mesh = open_run(directory), single_device_mesh()
    with jax.set_mesh(mesh):
        return jax.device_get(run.load_merged(mesh, ("backbone",)))


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, weights_of(a), weights_of(b))


@pytest.fixture(scope="module")
def run(foundation, tmp_path_factory):
    """A run with the stage, whose test rows are in a file; and its rows."""
    folder = tmp_path_factory.mktemp("task_text")
    rows = write_rows(folder / "rows.jsonl", 120)
    test = folder / "test.jsonl"
    test.write_text("".join(json.dumps({"text": f"home {i}", "label": "odd"}) + "\n" for i in range(6)))
    config = config_of(rows, **{"task.test_path": str(test), "task.zero_shot_rows": 4, "task.shots": 0})
    finetune(config, foundation, folder / "run")
    return folder / "run", rows, config


def test_the_stage_reads_the_training_rows_only(foundation, tmp_path):
    config = config_of(write_rows(tmp_path / "rows.jsonl", 120), **{"task.validation_fraction": 0.3})
    mesh = single_device_mesh()
    prepared, splits = prepare_run(config, from_config(config), open_run(foundation), tmp_path / "run", mesh)
    found = {
        prepared.data.tokenizer.decode(s["tokens"].tolist()) for (s,) in task_text_rows(prepared, "train").examples
    }
    texts = {name: {example.content for example in getattr(splits, name)} for name in ("train", "validation", "test")}
    assert len(found) == len(texts["train"]) and min(map(len, texts.values())) > 10
    for name, part in texts.items():
        for text in part:
            assert any(text in shown for shown in found) == (name == "train")


@pytest.mark.parametrize("name", ["chat", "reward"])
def test_the_texts_of_conversations_are_those_of_the_chat_template(name, foundation, tmp_path):
    """The content of such an example is JSON, which tells duplicates and is no text to train on."""
    path = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": 'a "cat"'}, {"role": "assistant", "content": "dog"}]
    asked = [[*turns, {"role": "user", "content": f"on {i}"}] for i in range(40)]
    rows = [{"text": each, "chosen": "mat", "rejected": "run"} for each in asked]
    if name == "chat":
        rows = [{"messages": [*each, {"role": "assistant", "content": "mat"}]} for each in asked]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_of(path, **{"task.name": name, "task.target": "messages", "sequence_length": 128})
    mesh = single_device_mesh()
    prepared, _ = prepare_run(config, from_config(config), open_run(foundation), tmp_path / "run", mesh)
    decode = prepared.data.tokenizer.decode
    found = [decode(s["tokens"].tolist()) for (s,) in task_text_rows(prepared, "train").examples]
    answers = ("mat",) if name == "chat" else ("mat", "run")
    before = 'User: a "cat"\nAssistant: dogUser: on '
    assert all(text.startswith(before) and text.endswith(answers) for text in found)
    assert len(found) == len(answers) * len(prepared.data.parts["train"].examples)


@pytest.mark.integration
def test_poisoned_held_out_rows_change_no_weight(run, foundation, tmp_path):
    trained, _, config = run
    poison = tmp_path / "test.jsonl"
    poison.write_text("".join(json.dumps({"text": "zz " * (i + 1), "label": "even"}) + "\n" for i in range(9)))
    finetune(config | {"task": config["task"] | {"test_path": str(poison)}}, foundation, tmp_path / "run")
    assert_equal(trained / TASK_TEXT_DIR, tmp_path / "run" / TASK_TEXT_DIR)
    assert_equal(trained, tmp_path / "run")


@pytest.mark.integration
def test_the_stage_trains_and_is_what_the_task_starts_from(run, foundation):
    trained, _, _ = run
    steps = [r["step"] for r in records(trained / TASK_TEXT_DIR) if r["phase"] == "train"]
    assert steps[-1] == 8
    before, after = weights_of(foundation), weights_of(trained / TASK_TEXT_DIR)
    assert not jax.tree.all(jax.tree.map(np.array_equal, before, after))
    lineage = [entry["directory"] for entry in open_run(trained).record.lineage]
    assert lineage == [str(foundation.absolute()), str((trained / TASK_TEXT_DIR).absolute())]


@pytest.mark.integration
@pytest.mark.parametrize("left", ["stage", "task"])
def test_a_restart_in_the_middle_ends_with_the_same_weights(left, run, foundation, tmp_path):
    trained, _, config = run
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    if left == "stage":
        shutil.rmtree(tmp_path / "run" / TASK_TEXT_DIR / "checkpoints" / "8")
    finetune(config, foundation, tmp_path / "run")
    assert_equal(trained / TASK_TEXT_DIR, tmp_path / "run" / TASK_TEXT_DIR)
    assert_equal(trained, tmp_path / "run")


@pytest.mark.integration
def test_the_zero_shot_row_is_that_of_the_foundation(run, foundation, tmp_path):
    trained, _, config = run
    finetune(config | {"adapt": config["adapt"] | {"task_text_steps": 0}}, foundation, tmp_path / "plain")
    models = [json.loads((d / "results.json").read_text())["models"] for d in (trained, tmp_path / "plain")]
    name = next(name for name in models[0] if "zero-shot" in name)
    assert models[0][name]["macro_f1"] == models[1][name]["macro_f1"]


def test_a_task_that_compares_with_the_foundation_is_refused(tmp_path):
    settings = from_config(config_of(write_rows(tmp_path / "rows.jsonl", 4)))
    data = SimpleNamespace(task=SimpleNamespace(needs_reference=True))
    run = SimpleNamespace(settings=settings, foundation=SimpleNamespace(is_language_model=True), data=data)
    with pytest.raises(UserError, match=r"task_text_steps=8 is not supported with config.task.name=.*; expected 0"):
        with_task_text(run)


@pytest.mark.slow
def test_an_adapter_reads_the_stage_as_its_base(foundation, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", 120)
    finetune(config_of(rows, **{"adapt.method": "lora", "adapt.rank": 2}), foundation, tmp_path / "run")
    assert open_run(tmp_path / "run").base().directory == tmp_path / "run" / TASK_TEXT_DIR
    assert len(load(tmp_path / "run")(["the cat", "saw dog"])) == 2
    assert training_stores(open_run(tmp_path / "run"), "auto") == [foundation / "store"]
    with pytest.raises(UserError, match="task_text_steps=8 needs a language model"):
        finetune(config_of(rows), tmp_path / "run", tmp_path / "again")
