"""The watchdog ends a process without progress and no other."""

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


def test_hung_process_ends_with_one_line_and_writes_stacks(tmp_path):
    command = [sys.executable, "-c", STUCK, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == watchdog.EXIT_CODE
    message = "rootstock: error: no progress for 0.2 s (config.faults.hang_seconds) after step 7"
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1
    assert "in stuck" in (tmp_path / "hang-0.txt").read_text()


@pytest.fixture
def ended(monkeypatch):
    """A list that grows when the watchdog would end this process."""
    times = []
    monkeypatch.setattr(watchdog, "_end", lambda *_: times.append(1))
    return times


@pytest.mark.integration
@pytest.mark.parametrize(("seconds", "pause"), [(0.4, 0.02), (0.0, 0.5)])
def test_process_with_progress_is_not_ended(seconds, pause, tmp_path, ended):
    with watchdog.watching(seconds, tmp_path):
        for step in range(int(1 / pause)):
            time.sleep(pause)
            watchdog.tick(f"step {step}")
    time.sleep(0.5)
    assert not ended


def test_watchdog_stops_with_its_context(tmp_path, ended):
    with watchdog.watching(0.1, tmp_path):
        time.sleep(0.5)
    assert ended
    time.sleep(0.1)
    count = len(ended)
    time.sleep(0.3)
    assert len(ended) == count
