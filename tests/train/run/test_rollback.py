"""Batches that are skipped after a roll-back: which batch a step gets, and `skipped_batches.json`."""

import json

import pytest

from configs.errors import UserError
from data.loader import BatchFunction, batch_number
from tests.faults.tiny_run import STEPS, corrupted, nan, same, settings_of, steps_over, train
from train.reporter import Diverged
from train.run.history import read_records
from train.run.rollback import roll_back, skipped_batches


class Numbers:
    """Rows that are their numbers."""

    def __len__(self):
        return 40

    def rows(self, indices):
        return {"tokens": indices}


@pytest.mark.parametrize(
    "skipped",
    [(), ((0, 0),), ((3, 5),), ((3, 5), (6, 7)), ((6, 7), (3, 5)), ((2, 9), (4, 5)), ((2, 5), (4, 8), (20, 21))],
)
def test_steps_get_the_remaining_batches_in_order(skipped):
    left = [t for t in range(60) if not any(first <= t <= last for first, last in skipped)]
    assert [batch_number(t, skipped) for t in range(30)] == left[:30]
    plain, passing = BatchFunction(Numbers(), 4, 1), BatchFunction(Numbers(), 4, 1, None, skipped)
    for t in range(12):
        assert (passing(t)["tokens"] == plain(left[t])["tokens"]).all()


def test_skipped_ranges_are_batch_numbers(tmp_path):
    assert skipped_batches(tmp_path) == ()
    roll_back(tmp_path, 4, 8)
    assert skipped_batches(tmp_path) == ((4, 7),)
    # Steps 5 to 7 now have batches 8 to 10.
    roll_back(tmp_path, 4, 7)
    assert skipped_batches(tmp_path) == ((4, 7), (8, 10))
    # A checkpoint was damaged and the run returns to an earlier one: the skipped range spans the others.
    roll_back(tmp_path, 2, 6)
    assert skipped_batches(tmp_path)[-1] == (2, 12)
    assert batch_number(2, skipped_batches(tmp_path)) == 13
    roll_back(tmp_path, 4, 9)
    with pytest.raises(UserError, match="rolled back to step 4 3 times"):
        roll_back(tmp_path, 4, 9)


def test_a_damaged_skipped_batches_file_is_an_error(tmp_path):
    for text in ("", "{", "[]", '{"roll_backs": [{"first": 1}]}', '{"roll_backs": [{"step": "x"}]}'):
        (tmp_path / "skipped_batches.json").write_text(text)
        with pytest.raises(UserError, match=r"skipped_batches\.json is damaged"):
            skipped_batches(tmp_path)


@pytest.mark.integration
def test_repeated_roll_backs_and_roll_back_before_the_first_checkpoint(tmp_path):
    settings = settings_of(**{"faults.max_consecutive_skips": 2, "faults.on_divergence": "roll_back"})
    # Steps 2 and 3 fail, batches 0 to 2 are passed over; then 12 and 13, in steps 10 and 11, after step 8 was saved.
    ended = train(tmp_path, settings, corrupted(settings, (1, 2, 12, 13), nan))
    assert [
        (e["step"], e["failed_step"]) for e in json.loads((tmp_path / "skipped_batches.json").read_text())["roll_backs"]
    ] == [
        (0, 3),
        (8, 11),
    ]
    assert skipped_batches(tmp_path) == ((0, 2), (11, 13))
    assert same(ended, steps_over(settings, [*range(3, 11), *range(14, 18)]))
    assert [r["step"] for r in read_records(tmp_path) if r["phase"] == "train"] == list(range(1, STEPS + 1))


@pytest.mark.integration
def test_no_checkpoint_is_saved_between_failing_steps(tmp_path):
    settings = settings_of(**{"faults.max_consecutive_skips": 3, "faults.on_divergence": "roll_back"})
    # Step 8 would be saved between the failing 7 and 9.
    ended = train(tmp_path, settings, corrupted(settings, (6, 7, 8), nan))
    assert skipped_batches(tmp_path) == ((4, 8),)
    assert same(ended, steps_over(settings, [*range(4), *range(9, 17)]))


def test_roll_back_gives_up_if_all_data_diverge(tmp_path):
    settings = settings_of(**{"faults.max_consecutive_skips": 2, "faults.on_divergence": "roll_back"})
    with pytest.raises(UserError, match="rolled back to step 0 3 times"):
        train(tmp_path, settings, corrupted(settings, range(24), nan))


@pytest.mark.integration
def test_divergence_stops_the_run_by_default(tmp_path):
    settings = settings_of(**{"faults.max_consecutive_skips": 2})
    with pytest.raises(Diverged, match=r"2 consecutive steps were skipped, the last is step 7: loss nan"):
        train(tmp_path, settings, corrupted(settings, (5, 6), nan))
    assert not (tmp_path / "skipped_batches.json").exists()


def test_roll_back_with_checkpoint_best_is_an_error():
    with pytest.raises(UserError, match=r"config\.faults\.on_divergence=.roll_back."):
        settings_of(**{"faults.on_divergence": "roll_back", "checkpoint.best": True})
