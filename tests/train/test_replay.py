"""`rootstock replay` repeats a logged step bit for bit and names the documents with the highest loss."""

import json
import os
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest

from configs.errors import UserError
from configs.finetune import assistant, intent, preference
from configs.pretrain import tiny
from data.loader import BatchFunction
from data.packing import PackedRows
from data.store import open_store
from data.tokenizer import load_tokenizer
from tests.often import often
from tests.runs import ROOT, WORDS
from train.checkpoint import steps
from train.checkpoint.manager import CHECKPOINTS_DIR
from train.cli import parse
from train.commands.replay import run
from train.evaluation.document_losses import Document
from train.finetuning.run import finetune
from train.pretraining import pretrain
from train.replay import replay
from train.reporter import Diverged
from train.run.history import read_records
from train.run.lock import claim
from train.run.record import open_run
from train.run.rollback import roll_back

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


@pytest.mark.integration
@pytest.mark.parametrize(("step", "start"), [(2, 0), (12, 9)])
def test_replayed_pretraining_step_equals_the_logged_one(step, start, foundation, files_of):
    # As while it trains: another process holds the run, and its next checkpoint is half written.
    with claim(foundation):
        half = foundation / CHECKPOINTS_DIR / "17.orbax-checkpoint-tmp"
        half.mkdir(exist_ok=True)
        before = files_of(foundation)
        found = replay(foundation, step)
    assert found["equal"] and found["loss"] == logged(foundation)[step]
    assert (found["from_step"], found["batch"], len(found["rows"])) == (start, step - 1, 8)
    assert files_of(foundation) == before
    # What the documents lost together is what the step lost.
    targets = np.array([d.targets for d in found["documents"]])
    assert targets @ [d.loss for d in found["documents"]] / targets.sum() == pytest.approx(found["loss"], rel=1e-5)


@pytest.mark.integration
def test_an_outlier_document_has_the_highest_loss(foundation):
    function = BatchFunction(PackedRows(open_store(foundation / "store", "train"), 64), 8, seed=0)
    holding = next(t for t in range(8, 16) if np.isin(function(t)["targets"], [ord(c) + 3 for c in "ZQXJ"]).sum() > 8)
    documents = replay(foundation, holding + 1)["documents"]
    assert ODD[:8] in documents[0].text and documents[0].loss > 1.3 * documents[3].loss
    assert {token for token, _ in documents[0].worst} <= set(ODD)
    assert documents[0].worst[0][1] >= documents[0].loss
    # And it is told where it stands.
    store, number = open_store(foundation / "store", "train"), documents[0].number
    stored = store.read(store.offsets[number : number + 1], store.offsets[number + 1 : number + 2])[0].tolist()
    assert load_tokenizer(foundation / "tokenizer").decode(stored) == ODD
    assert documents[0].source == f"document {number} of {foundation}/store/train"


@pytest.mark.integration
def test_a_damaged_checkpoint_is_skipped_and_not_deleted(foundation, tmp_path):
    shutil.copytree(foundation, tmp_path / "run")
    for path in (tmp_path / "run" / CHECKPOINTS_DIR / "9").rglob("manifest/metadata"):
        path.write_text("{")
    found = replay(tmp_path / "run", 12)
    assert found["from_step"] == 6 and found["equal"]
    assert (tmp_path / "run" / CHECKPOINTS_DIR / "9").is_dir()


@pytest.mark.integration
def test_a_checkpoint_deleted_during_replay_is_not_reported_as_damaged(foundation, tmp_path, capsys, monkeypatch):
    shutil.copytree(foundation, tmp_path / "run")

    def deleted(manager, step):
        shutil.rmtree(tmp_path / "run" / CHECKPOINTS_DIR / str(step))
        raise steps.DamagedCheckpoint("its manifest cannot be read")

    monkeypatch.setattr(steps, "read_manifest", deleted)
    found = replay(tmp_path / "run", 4)
    assert found["equal"] and found["from_step"] == 0
    assert "checkpoint 3 was deleted while it was read; trying the one before" in capsys.readouterr().err


TASKS = {
    "chat by LoRA": (assistant.get_config, {"adapt.method": "lora", "task.zero_shot_rows": 0, "task.baseline": False}),
    "classes": (intent.get_config, {"task.zero_shot_rows": 0, "task.baseline": False}),
    "preference": (preference.get_config, {"task.input": "{text}", "task.zero_shot_rows": 0}),
}


def rows(name):
    rng = random.Random(1)
    for i in range(60):
        question, answer, other = (" ".join(rng.choices(WORDS, k=k)) for k in (3, 2, 3))
        if name == "preference":
            # Short, so that both answers fit with their prompts: nothing is truncated.
            yield {"text": str(100 + i), "chosen": answer.split()[0], "rejected": other.split()[0] + "."}
        elif name == "classes":
            yield {"text": f"{question} {i}", "label": ("even", "odd")[i % 2]}
        else:
            turns = {"user": f"{question} {i}", "assistant": answer}
            yield {"messages": [{"role": role, "content": text} for role, text in turns.items()]}


@pytest.mark.integration
@pytest.mark.parametrize("name", often(TASKS, "classes", "preference"))
def test_replayed_finetuning_step_equals_the_logged_one(name, foundation, tmp_path):
    get_config, changes = TASKS[name]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(name)))
    config = small(get_config(), tmp_path / "rows.jsonl", **changes)
    finetune(config, foundation, tmp_path / "run")
    found = replay(tmp_path / "run", 8)
    assert found["equal"], (found["loss"], found["logged_loss"])
    # A comparison of two answers is one decision, however many tokens they have.
    weights = np.array([1 if name == "preference" else d.targets for d in found["documents"]])
    assert weights @ [d.loss for d in found["documents"]] / weights.sum() == pytest.approx(found["loss"], rel=1e-4)
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    for document in found["documents"]:
        row, _, path = document.source.removeprefix("row ").partition(" of ")
        assert path == str(tmp_path / "rows.jsonl")
        source = json.loads(lines[int(row) - 1])
        text = source["text"] if "text" in source else source["messages"][0]["content"]
        assert text in document.text


@pytest.mark.integration
def test_replay_of_a_skipped_step_after_a_roll_back_uses_its_batch(foundation, tmp_path):
    config = open_run(foundation).record.config
    config["faults"]["max_grad_norm"] = 1e-9
    (tmp_path / "run").mkdir()
    roll_back(tmp_path / "run", 0, 2)
    with pytest.raises(Diverged):
        pretrain(config, tmp_path / "run")
    found = replay(tmp_path / "run", 5)
    assert found["skipped"] and found["equal"] and found["batch"] == 6
    recorded = next(r for r in read_records(tmp_path / "run") if r["step"] == 5 and r["phase"] == "skipped")
    assert (found["rows"], found["grad_norm"]) == (recorded["rows"], recorded["grad_norm"])


@pytest.mark.integration
def test_replay_of_continued_pretraining_starts_from_the_parent_run(foundation, tmp_path):
    config = open_run(foundation).record.config | {"num_steps": 3}
    config["optimizer"] |= {"warmup_steps": 2}
    pretrain(config, tmp_path / "run", foundation)
    shutil.rmtree(tmp_path / "run" / CHECKPOINTS_DIR)
    found = replay(tmp_path / "run", 2)
    assert found["from_step"] == 0 and found["equal"]
    assert found["loss"] < logged(foundation)[2] - 0.1


@pytest.mark.integration
def test_replay_on_fewer_devices_reports_both_meshes(foundation):
    flags = [f"--run={foundation}", "--step=12", "--documents=2", "--json"]
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "train", "replay", *flags]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=True)
    found = json.loads(done.stdout)
    assert found["loss"] == pytest.approx(logged(foundation)[12], rel=1e-5)
    assert found["saved_on"] == {"slice": 1, "data": 2, "expert": 1, "fsdp": 2, "tensor": 2, "context": 1}
    assert set(found["mesh"].values()) == {1} and len(found["documents"]) == 2


@pytest.mark.integration
def test_output_is_valid_json_and_has_no_control_characters(foundation, capsys, monkeypatch):
    document = Document(3, 5, "document 5 of x", float("nan"), 2, "a\x1b[2J", [("\x1b", float("inf"))])
    found = {"step": 2, "loss": float("nan"), "logged_loss": None, "equal": True, "grad_norm": float("nan")}
    found |= {"skipped": True, "batch": 1, "from_step": 0, "mesh": {"data": 1}, "saved_on": None}
    monkeypatch.setattr("train.replay.replay", lambda *_: found | {"documents": [document]})
    for extra in ([], ["--json"]):
        run(parse("replay", sys.modules[run.__module__], [f"--run={foundation}", "--step=2", *extra]))
    text, _, shown = capsys.readouterr().out.partition("\n{")
    assert "\x1b[2J" not in text and "the step was skipped" in text
    parsed = json.loads("{" + shown, parse_constant=pytest.fail)
    assert parsed["loss"] is None and parsed["documents"][0]["worst"] == [["\x1b", None]]


@pytest.mark.integration
def test_a_step_that_cannot_be_replayed_is_a_one_line_error(foundation, tmp_path):
    for step in (0, 17):
        with pytest.raises(UserError, match=f"--step={step}; expected 1 to 16, the steps in"):
            replay(foundation, step)
    with pytest.raises(UserError, match="is not a run directory"):
        replay(tmp_path, 1)
    shutil.copytree(foundation, tmp_path / "run")
    record = tmp_path / "run" / "run.json"
    values = json.loads(record.read_text())
    record.write_text(json.dumps(values | {"data_fingerprint": "0" * 64}))
    with pytest.raises(UserError, match=r"changed .* the batch of that step cannot be rebuilt"):
        replay(tmp_path / "run", 2)
    # After step 9 the run went on with other data, which are those that are there now.
    changes = [{"step": 9, "before": "0" * 64, "after": values["data_fingerprint"]}]
    record.write_text(json.dumps(values | {"data_changes": changes}))
    with pytest.raises(UserError, match=r"changed \(0000000000000000 at step 9"):
        replay(tmp_path / "run", 9)
    assert replay(tmp_path / "run", 10)["equal"]
    shutil.rmtree(tmp_path / "run" / CHECKPOINTS_DIR / "9")
    with pytest.raises(
        UserError,
        match="whose checkpoint is missing; step 10 cannot be replayed from step 6",
    ):
        replay(tmp_path / "run", 10)
    record.write_text(json.dumps(values))
    (tmp_path / "run" / "store").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="is not a token store; expected --data=STORE"):
        replay(tmp_path / "run", 2)
    assert replay(tmp_path / "run", 2, str(tmp_path / "moved"))["equal"]


@pytest.mark.integration
def test_a_different_loss_is_reported(foundation, tmp_path):
    shutil.copytree(foundation, tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    records = read_records(tmp_path / "run")
    path.write_text("".join(json.dumps(r | {"loss": r.get("loss", 0.0) + 1e-6}) + "\n" for r in records))
    assert replay(tmp_path / "run", 4)["equal"] is False
