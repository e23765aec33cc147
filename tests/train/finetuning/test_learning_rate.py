"""`config.optimizer.learning_rate=0`: chosen by method and width, kept on resume, lower where all weights train."""

import dataclasses
import shutil
from unittest import mock

import pytest

from configs.errors import UserError
from tests.runs import error_lines, rootstock, write_rows, write_text
from tests.train.finetuning.test_attention import config_of
from train.finetuning import learning_rate
from train.finetuning.learning_rate import for_all_weights, learning_rate_for, with_learning_rate
from train.finetuning.run import finetune
from train.run.history import read_records
from train.run.length import TASK_TEXT_DIR
from train.run.record import open_run
from train.settings import from_config

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.mark.parametrize("method", ["full", "last", "lora", "head"])
def test_twice_the_width_halves_the_rate(method):
    assert learning_rate_for(method, 256) == pytest.approx(2 * learning_rate_for(method, 512), rel=0.05)


def test_fewer_trained_weights_never_get_a_lower_rate():
    full, last, lora, head = (learning_rate_for(method, 640) for method in ("full", "last", "lora", "head"))
    assert full <= last <= min(lora, head)


def test_a_rate_of_ones_own_is_kept():
    config = config_of("rows", **{"optimizer.learning_rate": 0.25})
    assert with_learning_rate(config, 64)["optimizer"]["learning_rate"] == 0.25


def test_a_model_from_random_weights_does_not_get_the_rate_of_adapters():
    adapters = from_config(config_of("rows", **{"adapt.method": "lora", "optimizer.learning_rate": 10.0}))
    slow = dataclasses.replace(adapters, optimizer=dataclasses.replace(adapters.optimizer, learning_rate=1e-7))
    everything = from_config(config_of("rows", **{"optimizer.learning_rate": 10.0}))
    assert for_all_weights(adapters, 64).optimizer.learning_rate == learning_rate_for("full", 64)
    assert for_all_weights(slow, 64).optimizer.learning_rate == 1e-7
    assert for_all_weights(everything, 64).optimizer.learning_rate == 10.0


def test_the_chosen_rate_trains_and_a_run_keeps_it(foundation, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl")
    changes = {"adapt.method": "lora", "optimizer.learning_rate": 0.0, "adapt.task_text_steps": 2}
    config = config_of(rows, **changes, **{"num_steps": 4, "task.baseline": True})
    finetune(config, foundation, tmp_path / "run")
    width = open_run(foundation).model.embed_dim
    chosen, whole = learning_rate_for("lora", width), learning_rate_for("full", width)
    assert open_run(tmp_path / "run").record.config["optimizer"]["learning_rate"] == chosen
    assert _peak(tmp_path / "run") == pytest.approx(chosen)
    assert _peak(tmp_path / "run" / "from_random") == pytest.approx(whole)
    assert _peak(tmp_path / "run" / TASK_TEXT_DIR) == pytest.approx(whole)
    # Started again with 0 it goes on, although the rule may have changed since.
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    with mock.patch.dict(learning_rate._RATES, lora=9.0, full=9.0):
        finetune(config, foundation, tmp_path / "run")
    assert _peak(tmp_path / "run") == pytest.approx(chosen)
    with pytest.raises(UserError, match=r"optimizer\.learning_rate"):
        finetune(config_of(rows, **changes | {"optimizer.learning_rate": 0.5}), foundation, tmp_path / "run")


def test_pretraining_asks_for_a_rate(tmp_path):
    text = write_text(tmp_path / "text.txt", 50)
    flags = [f"--config.data.path={text}", f"--workdir={tmp_path / 'run'}", "--config.optimizer.learning_rate=0"]
    done = rootstock("pretrain", "--config=configs/pretrain/tiny.py", *flags, check=False)
    (line,) = error_lines(done)
    assert done.returncode == 1
    assert "config.optimizer.learning_rate=0.0 acts in fine-tuning only; expected above 0 in pre-training" in line
    assert not (tmp_path / "run").exists()


def _peak(workdir):
    return max(record["learning_rate"] for record in read_records(workdir, "train"))
