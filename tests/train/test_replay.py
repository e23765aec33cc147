"""A step done again has the bits that were logged, and names the document that its loss came from."""

import json
import random
import shutil

import numpy as np
import pytest

from configs.errors import UserError
from configs.finetune import assistant
from configs.pretrain import tiny
from data.loader import BatchFunction
from data.packing import PackedRows
from data.store import open_store
from train import checkpoint
from train.finetune import finetune
from train.metrics import read_records
from train.pretrain import pretrain
from train.replay import replay

WORDS = "the cat sat on a mat and saw dog run far away home again".split()
ODD = "ZQXJ" * 12
MESH = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}


def small(config, path, **changes):
    config.batch_size, config.sequence_length, config.num_steps = 8, 64, 8
    config.data.path = str(path)
    config.evaluation.every, config.checkpoint.every, config.checkpoint.keep = 8, 3, 9
    config.optimizer.warmup_steps, config.logging.every, config.evaluation.batches = 2, 1, 1
    config.update_from_flattened_dict({**MESH, **changes})
    return config.to_dict()


@pytest.fixture(scope="module")
def foundation(tmp_path_factory):
    """A run of packed rows in two microbatches, one of whose documents is like no other."""
    folder = tmp_path_factory.mktemp("foundation")
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(3, 12))) for _ in range(120)]
    texts[50] = ODD
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = tiny.get_config()
    config.tokenizer, config.microbatches = "bytes", 2
    config.model.update({"embed_dim": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "mlp_dim": 48})
    config.num_steps = 16
    values = small(config, folder / "text.jsonl", **{"optimizer.learning_rate": 1e-2}) | {"num_steps": 16}
    pretrain(values, folder / "run")
    return folder / "run"


@pytest.fixture
def files_of():
    def listed(directory):
        return {path: path.stat().st_mtime_ns for path in sorted(directory.rglob("*"))}

    return listed


def logged(workdir):
    return {r["step"]: r["loss"] for r in read_records(workdir) if r["phase"] == "train"}


@pytest.mark.parametrize(("step", "start"), [(2, 0), (12, 9)])
def test_a_step_of_pre_training_is_the_same_to_the_bit(step, start, foundation, files_of):
    before = files_of(foundation)
    found = replay(foundation, step)
    assert found["equal"] and found["loss"] == logged(foundation)[step]
    assert (found["from_step"], found["batch"], len(found["rows"])) == (start, step - 1, 8)
    assert files_of(foundation) == before
    # What the documents lost together is what the step lost.
    targets = np.array([d.targets for d in found["documents"]])
    assert targets @ [d.loss for d in found["documents"]] / targets.sum() == pytest.approx(found["loss"], rel=1e-5)


def test_the_document_that_is_like_no_other_is_the_worst(foundation):
    function = BatchFunction(PackedRows(open_store(foundation / "store", "train"), 64), 8, seed=0)
    holding = next(t for t in range(8, 16) if np.isin(function(t)["targets"], [ord(c) + 3 for c in "ZQXJ"]).sum() > 8)
    documents = replay(foundation, holding + 1)["documents"]
    assert ODD[:8] in documents[0].text and documents[0].loss > 1.3 * documents[3].loss
    assert {token for token, _ in documents[0].worst} <= set(ODD)
    assert documents[0].worst[0][1] >= documents[0].loss


def test_a_damaged_checkpoint_is_passed_over_and_stays(foundation, tmp_path):
    shutil.copytree(foundation, tmp_path / "run")
    for path in (tmp_path / "run" / checkpoint.NEWEST / "9").rglob("manifest/metadata"):
        path.write_text("{")
    found = replay(tmp_path / "run", 12)
    assert found["from_step"] == 6 and found["equal"]
    assert (tmp_path / "run" / checkpoint.NEWEST / "9").is_dir()


TASKS = {
    "chat by LoRA": (assistant.get_config, {"adapt.method": "lora", "task.zero_shot_rows": 0, "task.baseline": False}),
    "preference": (assistant.get_config, {"task.name": "preference", "task.zero_shot_rows": 0}),
}


def rows(name):
    rng = random.Random(1)
    for i in range(60):
        question, answer, other = (" ".join(rng.choices(WORDS, k=k)) for k in (3, 2, 3))
        if name == "preference":
            yield {"text": f"{question} {i}", "chosen": answer, "rejected": other}
        else:
            turns = {"user": f"{question} {i}", "assistant": answer}
            yield {"messages": [{"role": role, "content": text} for role, text in turns.items()]}


@pytest.mark.parametrize("name", TASKS)
def test_a_step_of_a_task_is_the_same_to_the_bit(name, foundation, tmp_path):
    get_config, changes = TASKS[name]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(name)))
    config = small(get_config(), tmp_path / "rows.jsonl", **changes)
    finetune(config, foundation, tmp_path / "run")
    found = replay(tmp_path / "run", 8)
    assert found["equal"], (found["loss"], found["logged_loss"])
    # A comparison of two answers is one decision, however many tokens they have.
    weights = np.array([1 if name == "preference" else d.targets for d in found["documents"]])
    assert weights @ [d.loss for d in found["documents"]] / weights.sum() == pytest.approx(found["loss"], rel=1e-4)


def test_what_cannot_be_replayed_is_one_line(foundation, tmp_path):
    for step in (0, 17):
        with pytest.raises(UserError, match=f"--step={step}; legal: 1 to 16, the steps that"):
            replay(foundation, step)
    with pytest.raises(UserError, match="is not a run of rootstock"):
        replay(tmp_path, 1)
    shutil.copytree(foundation, tmp_path / "run")
    record = tmp_path / "run" / "run.json"
    values = json.loads(record.read_text())
    record.write_text(json.dumps(values | {"data_fingerprint": "0" * 64}))
    with pytest.raises(UserError, match=r"changed .* its batches cannot be made again"):
        replay(tmp_path / "run", 2)


def test_another_loss_than_the_logged_one_is_told(foundation, tmp_path):
    shutil.copytree(foundation, tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    records = read_records(tmp_path / "run")
    path.write_text("".join(json.dumps(r | {"loss": r.get("loss", 0.0) + 1e-6}) + "\n" for r in records))
    assert replay(tmp_path / "run", 4)["equal"] is False
