"""A process in which nothing happens ends; one in which something does goes on."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from train.distributed import watchdog

ROOT = Path(__file__).resolve().parents[3]
STUCK = """
import sys, time
from pathlib import Path
from train.distributed import watchdog
def stuck():
    time.sleep(1000)
with watchdog.watching(0.2, Path(sys.argv[1])):
    watchdog.tick("step 7")
    stuck()
"""


def test_a_process_that_hangs_ends_with_a_line_and_its_stacks(tmp_path):
    command = [sys.executable, "-c", STUCK, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == watchdog.EXIT_CODE
    said = "rootstock: error: no progress for 0.2 s (config.faults.hang_seconds) after step 7"
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1
    assert "in stuck" in (tmp_path / "hang-0.txt").read_text()


@pytest.fixture
def ended(monkeypatch):
    """What the dog did instead of ending this process."""
    times = []
    monkeypatch.setattr(watchdog, "_end", lambda *_: times.append(1))
    return times


@pytest.mark.parametrize(("seconds", "pause"), [(0.4, 0.02), (0.0, 0.5)])
def test_one_in_which_something_happens_goes_on(seconds, pause, tmp_path, ended):
    with watchdog.watching(seconds, tmp_path):
        for step in range(int(1 / pause)):
            time.sleep(pause)
            watchdog.tick(f"step {step}")
    time.sleep(0.5)
    assert not ended


def test_the_end_of_the_watch_is_the_dog_s(tmp_path, ended):
    with watchdog.watching(0.1, tmp_path):
        time.sleep(0.5)
    assert ended
    time.sleep(0.1)
    count = len(ended)
    time.sleep(0.3)
    assert len(ended) == count
