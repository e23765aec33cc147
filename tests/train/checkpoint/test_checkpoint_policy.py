"""Which steps are saved and which of them are kept."""

import time

import pytest

from configs.errors import UserError
from tests.faults.tiny_run import settings_of, train
from train.checkpoint.manager import CHECKPOINTS_DIR, open_manager, open_to_read, saved_steps
from train.loop import CheckpointSchedule


@pytest.mark.integration
@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"checkpoint.every": 2, "checkpoint.keep": 2, "checkpoint.keep_period": 4}, [12, 10, 8, 4]),
        ({"checkpoint.every": 0, "checkpoint.keep": 5}, [12]),
        ({"checkpoint.every": 5, "checkpoint.keep": 5, "checkpoint.minutes": 1e-9, "logging.every": 4},
         [12, 10, 8, 5, 4]),
    ],
)  # fmt: skip
def test_saved_and_kept_steps_follow_the_config(changes, kept, tmp_path):
    train(tmp_path, settings_of(**changes))
    assert saved_steps(tmp_path) == kept


def test_checkpoint_minutes_count_from_the_last_save(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    schedule = CheckpointSchedule(
        settings_of(**{"checkpoint.every": 10, "checkpoint.minutes": 1.0, "logging.every": 1})
    )
    saved = []
    for step in range(1, 31):
        now[0] += 15.0
        if schedule.due(step):
            saved.append(step)
    # A minute passes every four steps; a save by steps restarts the minute.
    assert saved == [4, 8, 10, 14, 18, 20, 24, 28, 30]


@pytest.mark.integration
def test_open_to_read_does_not_delete_a_save_in_progress(tmp_path):
    settings = settings_of()
    train(tmp_path, settings)
    half = tmp_path / CHECKPOINTS_DIR / "16.orbax-checkpoint-tmp-0"
    half.mkdir()
    with open_to_read(tmp_path) as manager:
        assert manager.all_steps() and half.is_dir()
    # The run itself deletes, in the background, what a kill left.
    with open_manager(tmp_path, 5):
        deadline = time.monotonic() + 20
        while half.is_dir() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not half.is_dir()


@pytest.mark.parametrize("name", ["every", "minutes", "keep_period"])
def test_negative_checkpoint_settings_are_errors(name):
    with pytest.raises(UserError, match=f"config.checkpoint.{name}.*-1.*at least 0"):
        settings_of(**{f"checkpoint.{name}": -1})


def test_missing_checkpoint_is_a_one_line_error(tmp_path):
    with pytest.raises(UserError, match="contains no checkpoint"), open_to_read(tmp_path):
        pass
