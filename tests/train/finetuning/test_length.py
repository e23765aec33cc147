"""How long fine-tuning trains, and on how long rows: `config.num_steps`, `config.task.min_epochs`, longer contexts."""

import dataclasses
import re

import pytest

from configs import default
from configs.errors import UserError
from tests.runs import error_lines, rootstock, write_rows
from train.distributed.mesh import single_device_mesh
from train.finetuning.rows import steps_of
from train.finetuning.run import prepare_run
from train.run.record import open_run
from train.settings import from_config

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.mark.parametrize(
    ("num_steps", "epochs", "rows", "batch_size", "expected"),
    [(10, 0.0, 1000, 4, 10), (10, 2.0, 8, 4, 10), (10, 2.0, 22, 4, 11), (10, 0.5, 81, 4, 11), (1, 3.0, 1, 4, 1)],
)
def test_the_passes_lengthen_a_run_and_never_shorten_it(num_steps, epochs, rows, batch_size, expected):
    config = default.get_config()
    config.num_steps, config.batch_size, config.task.min_epochs = num_steps, batch_size, epochs
    assert steps_of(from_config(config.to_dict()), rows) == expected


@pytest.mark.integration
def test_a_run_of_passes_is_recorded_resumed_and_refuses_others(foundation, tmp_path):
    def finetune(*changes, check=True):
        return rootstock(
            "finetune", "--config=configs/finetune/intent.py", f"--init_from={foundation}",
            f"--workdir={tmp_path / 'run'}", f"--config.data.path={rows}", "--config.batch_size=4",
            "--config.sequence_length=32", "--config.num_steps=2", "--config.optimizer.warmup_steps=1",
            "--config.task.zero_shot_rows=0", "--config.task.baseline=False", *changes, check=check,
        )  # fmt: skip

    rows = write_rows(tmp_path / "rows.jsonl", 120)
    done = finetune("--config.task.min_epochs=1.5")
    steps = open_run(tmp_path / "run").record.config["num_steps"]
    said = re.search(r"finetune: (\d+) steps of 4 x 32 tokens, (\S+) passes over the training rows", done.stderr)
    assert (steps, float(said[2])) == (int(said[1]), pytest.approx(1.5, abs=0.2)) and steps > 2
    # The same command finds the run finished; fewer steps than it has are no change, another number of passes is one.
    again = finetune("--config.task.min_epochs=1.5")
    assert "steps" in again.stderr and open_run(tmp_path / "run").record.length_changes == []
    refused = finetune("--config.task.min_epochs=3.0", check=False)
    assert "task.min_epochs: 1.5" in error_lines(refused)[0]


def prepared(foundation, tmp_path, length, **model):
    """Returns a run that is prepared for rows of this length, from a foundation with other fields of its model."""
    config = default.get_config()
    config.data.path, config.sequence_length = str(write_rows(tmp_path / "rows.jsonl", 60)), length
    parent = open_run(foundation)
    parent = parent.with_model(dataclasses.replace(parent.model, **model))
    config = config.to_dict()
    return prepare_run(config, from_config(config), parent, tmp_path / "run", single_device_mesh())[0]


def test_rows_longer_than_the_context_of_the_foundation_make_it_longer(foundation, tmp_path, capsys):
    assert open_run(foundation).model.context_length == 64
    assert prepared(foundation, tmp_path, 64).record.model.context_length == 64 and not capsys.readouterr().err
    assert prepared(foundation, tmp_path, 96).record.model.context_length == 96
    assert "finetune: the context grows from 64 to 96 tokens" in capsys.readouterr().err


def test_rows_longer_than_a_context_that_cannot_grow_are_refused(foundation, tmp_path):
    with pytest.raises(UserError, match=r"sequence_length=96 exceeds the context of .*; expected at most 64"):
        prepared(foundation, tmp_path, 96, position="learned")
