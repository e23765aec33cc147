"""A run remembers in which dtype it computed, because "auto" depends on the machine and on its devices."""

import shutil

import pytest

from model import dtypes
from tests.runs import STEPS, visible_devices
from train.checkpoint.manager import CHECKPOINTS_DIR
from train.pretraining import pretrain
from train.replay import replay
from train.run.history import dtype_of_step, read_records
from train.run.record import open_run


@pytest.fixture
def on_a_fast_cpu(monkeypatch):
    """One device of a machine on which "auto" is bfloat16."""
    monkeypatch.setattr(dtypes, "cpu_is_fast_in_bfloat16", lambda: True)
    with visible_devices(1):
        yield


def test_the_dtype_of_a_step_is_that_of_the_last_account_before_it():
    start = {"step": 0, "phase": "goodput", "compute_dtype": "float32"}
    records = [start, {"step": 2, "phase": "train"}, start | {"step": 4, "compute_dtype": "bfloat16"}]
    assert [dtype_of_step(records, step) for step in (1, 4, 5, 9)] == ["float32", "float32", "bfloat16", "bfloat16"]
    assert dtype_of_step([{"step": 0, "phase": "goodput"}], 3) is None


def test_a_run_that_goes_on_in_another_dtype_says_so(foundation, tmp_path, capsys, on_a_fast_cpu):
    workdir = tmp_path / "run"
    shutil.copytree(foundation, workdir)
    shutil.rmtree(workdir / CHECKPOINTS_DIR / str(STEPS))
    config = open_run(workdir).record.config
    config["mesh"] = dict.fromkeys(config["mesh"], 1)
    pretrain(config, workdir)
    said = capsys.readouterr().err
    assert "the steps so far were computed in float32, the next ones in bfloat16" in said
    assert "config.model.compute_dtype=float32 keeps the dtype" in said
    records = read_records(workdir)
    assert [dtype_of_step(records, step) for step in (1, STEPS)] == ["float32", "bfloat16"]


def test_replay_computes_in_the_dtype_of_the_run(foundation, on_a_fast_cpu):
    logged = next(r for r in read_records(foundation, "train") if r["step"] == 10)
    assert replay(foundation, 10)["loss"] == pytest.approx(logged["loss"], rel=1e-5)
