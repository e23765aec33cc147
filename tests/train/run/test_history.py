"""metrics.jsonl stays correct when a run resumes."""

import json

from data.storage.files import files_below
from data.storage.paths import at
from tests.faults.tiny_run import settings_of
from train.run.history import open_writer


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
