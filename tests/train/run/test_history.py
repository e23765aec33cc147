"""metrics.jsonl stays correct when a run resumes."""

import json

import pytest

from data.storage.files import files_below
from data.storage.paths import at
from tests.faults.tiny_run import settings_of
from train.run.goodput import spent_before
from train.run.history import open_writer, read_accounts, read_records


def test_lines_of_repeated_steps_are_dropped(folder):
    workdir = at(folder)
    path = workdir / "metrics.jsonl"
    with open_writer(workdir, 0, settings_of(), writing=True) as write:
        for step in (5, 10, 15):
            write({"step": step, "phase": "train", "loss": float("nan") if step == 10 else 1.0})
    # A kill can truncate the last line.
    path.write_text(path.read_text() + '{"step": 8, "pha')
    with open_writer(workdir, 10, settings_of(), writing=True) as write:
        write({"step": 11, "phase": "train", "loss": 2.0})
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(record["step"], record["loss"]) for record in records] == [(5, 1.0), (10, None), (11, 2.0)]
    with open_writer(workdir, 0, settings_of(), writing=False) as write:
        write({"step": 1, "phase": "train"})
    assert len(path.read_text().splitlines()) == 3


def test_scalars_for_tensorboard_are_where_the_run_is(folder):
    workdir = at(folder)
    with open_writer(workdir, 0, settings_of(**{"logging.tensorboard": True}), writing=True) as write:
        write({"step": 1, "phase": "train", "loss": 2.0})
        write.publish()
        assert (workdir / "metrics.jsonl").is_file()
    (events,) = files_below(workdir / "tensorboard")
    assert b"train/loss" in events.read_bytes()


LINES = [
    {"step": 5, "phase": "train", "seconds": 1.0, "loss": 3.0},
    {"step": 5, "phase": "goodput", "seconds": 2.0, "parts": {"step": 1.5}},
    {"step": 6, "phase": "eval", "seconds": 3.0, "loss": 2.0},
    {"step": 6, "phase": "evaluated", "seconds": 3.5},
    {"step": 7, "phase": "skipped"},
]


@pytest.mark.parametrize(
    ("phases", "expected"),
    [((), [0, 1, 2, 3, 4]), (("eval",), [2]), (("goodput", "skipped"), [1, 4]), (("length",), [])],
)
def test_only_lines_of_the_phases_are_read(tmp_path, phases, expected):
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in LINES) + '{"step": 8, "phase": "ev'
    )
    assert read_records(tmp_path, *phases) == [LINES[number] for number in expected]


def test_lines_that_another_program_wrote_are_read_as_well(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"phase":"eval","step":3}\n{"step":4,"phase":"train"}\nnot JSON\n[1]\n{"a": 1}\n'
    )
    assert read_records(tmp_path, "eval") == [{"phase": "eval", "step": 3}]
    assert [record["step"] for record in read_records(tmp_path)] == [3, 4]


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (2, [1]), (3, [1, 2]), (5, [1, 3])])
def test_the_accounts_of_a_run_are_its_wall_times_and_the_last_time(tmp_path, count, expected):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES[:count]))
    assert read_accounts(tmp_path) == [LINES[number] for number in expected]
    assert read_accounts(tmp_path / "none") == []


def test_what_a_run_lost_is_the_same_from_all_lines_and_from_the_accounts(tmp_path):
    lines = [
        {"step": 0, "phase": "goodput", "seconds": 1.0, "parts": {"start": 1.0}},
        {"step": 5, "phase": "train", "seconds": 4.0},
        {"step": 5, "phase": "goodput", "seconds": 5.0, "parts": {"start": 1.0, "step": 4.0}},
        {"step": 9, "phase": "train", "seconds": 9.0},
        {"step": 5, "phase": "goodput", "seconds": 2.0, "parts": {"start": 3.0, "step": 4.0, "lost": 4.0}},
        {"step": 8, "phase": "train", "seconds": 6.0},
        {"step": 9, "phase": "skipped"},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for resumed in (0, 5, 8):
        whole = spent_before(read_records(tmp_path), resumed)
        assert spent_before(read_accounts(tmp_path), resumed) == whole
    assert whole == {"start": 3.0, "step": 4.0, "lost": 8.0}


def test_a_file_whose_lines_all_stay_is_not_written_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    before = path.stat().st_ino
    with open_writer(tmp_path, 7, settings_of(), writing=True):
        pass
    assert path.stat().st_ino == before
    with open_writer(tmp_path, 6, settings_of(), writing=True):
        pass
    assert path.stat().st_ino != before and len(path.read_text().splitlines()) == 4
    # A line without its end gets one, so that the next line is one of its own.
    path.write_text(path.read_text().removesuffix("\n"))
    with open_writer(tmp_path, 6, settings_of(), writing=True) as write:
        write({"step": 8, "phase": "train"})
    assert len(read_records(tmp_path)) == 5
