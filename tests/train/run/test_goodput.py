"""Every second of a run is counted in exactly one part, across kills too."""

import time

import jax
import jax.numpy as jnp
import pytest

from tests.faults.tiny_run import EVERY, corrupted, nan, settings_of, train
from train.run import goodput
from train.run.goodput import PARTS, spent_before
from train.run.history import read_records

HOUR = 3600.0
TOLERANCE = 600.0  # seconds: far more than any of these runs takes, far less than an hour


class Clock:
    """A clock that jumps ahead when told to; between jumps it stands still, or runs like the real one."""

    def __init__(self, real=None):
        self.ahead, self.real = 0.0, real or (lambda: 0.0)

    def __call__(self):
        return self.real() + self.ahead

    def jump(self, seconds):
        self.ahead += seconds


@pytest.fixture
def clock(monkeypatch):
    """The clock of a real run, in which only jumps take long."""
    clock = Clock(time.perf_counter)
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def accounts(workdir):
    return [r for r in read_records(workdir) if r["phase"] == "goodput"]


def test_time_belongs_to_the_innermost_part_and_the_parts_sum_to_the_whole(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    with goodput.measure(clock()) as spent:
        clock.jump(1)
        spent.enter("step")
        for _ in spent.timed("data", (clock.jump(2) for _ in range(2))):
            clock.jump(4)
        with pytest.raises(RuntimeError), spent.part("evaluation"):
            clock.jump(8)
            with spent.part("checkpoint"):
                clock.jump(16)
                raise RuntimeError
        seconds = spent.seconds()
    expected = {"start": 1, "data": 4, "step": 8, "evaluation": 8, "checkpoint": 16}
    assert seconds == dict.fromkeys(PARTS, 0.0) | expected and sum(seconds.values()) == clock()


def test_compilation_is_counted_apart_in_every_part():
    with goodput.measure(time.perf_counter()) as spent, spent.part("evaluation"):
        function = jax.jit(lambda x: jnp.cos(x) @ x + jnp.sort(x))
        function(jnp.ones((7, 7))).block_until_ready()
        first = spent.seconds()
        function(jnp.ones((7, 7))).block_until_ready()
        second = spent.seconds()
    assert first["compile"] > 0 and second["compile"] == first["compile"]
    assert second["evaluation"] > first["evaluation"] > 0
    with goodput.measure(time.perf_counter()) as other:
        jax.jit(lambda x: x + 2)(jnp.ones(3))
    assert other.seconds()["compile"] > 0
    assert spent.seconds()["compile"] == second["compile"], "the first measurement has ended"


@pytest.mark.integration
def test_a_run_accounts_for_its_whole_time(tmp_path, clock):
    begin = clock()
    train(tmp_path, settings_of(), evaluate=lambda params: clock.jump(HOUR) or {"loss": 1.0})
    whole = clock() - begin
    assert [r["step"] for r in accounts(tmp_path)] == [0, 4, 8, 12]
    parts = accounts(tmp_path)[-1]["parts"]
    assert whole - TOLERANCE < sum(parts.values()) < whole
    assert parts["evaluation"] == pytest.approx(3 * HOUR, abs=TOLERANCE)
    assert all(parts[name] > 0 for name in ("start", "compile", "data", "step", "checkpoint")) and parts["lost"] == 0


@pytest.mark.integration
def test_a_killed_run_counts_the_time_of_lost_steps(tmp_path, clock):
    evaluations = []

    def killed(params):
        evaluations.append(clock.jump(HOUR))
        if len(evaluations) == 3:
            raise KeyboardInterrupt
        return {"loss": 1.0}

    settings = settings_of(**{"checkpoint.every": 2 * EVERY})
    begin = clock()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, settings, evaluate=killed)
    (committed,) = [r for r in accounts(tmp_path) if r["step"] == 8]
    last = read_records(tmp_path)[-1]
    assert last["step"] in (11, 12)
    train(tmp_path, settings)
    whole = clock() - begin
    resumed, *_, end = [r["parts"] for r in accounts(tmp_path) if r["step"] >= 8][1:]
    assert end["lost"] == resumed["lost"] == pytest.approx(last["seconds"] - committed["seconds"], abs=1e-6)
    assert end["lost"] > 0 and all(resumed[name] >= committed["parts"][name] for name in PARTS)
    # No record tells of the evaluation that the kill cut off.
    assert sum(end.values()) == pytest.approx(whole - HOUR, abs=TOLERANCE)


@pytest.mark.integration
def test_steps_undone_by_a_rollback_are_lost_time(tmp_path, clock):
    settings = settings_of(**{"faults.max_consecutive_skips": 2, "faults.on_divergence": "roll_back"})
    begin = clock()
    evaluate = lambda params: clock.jump(HOUR) or {"loss": 1.0}  # noqa: E731
    train(tmp_path, settings, corrupted(settings, (6, 7), nan), evaluate)
    whole = clock() - begin
    parts = accounts(tmp_path)[-1]["parts"]
    assert 0 < parts["lost"] < TOLERANCE
    assert whole - TOLERANCE < sum(parts.values()) < whole


def line(done, seconds, **parts):
    return {"phase": "goodput", "step": done, "seconds": seconds, "parts": dict.fromkeys(PARTS, 0.0) | parts}


def test_lost_time_of_several_kills_adds_up():
    assert spent_before([], 0) == {}
    first = [line(0, 0.0, start=5.0), {"phase": "train", "step": 3, "seconds": 4.0}, line(4, 6.0, start=5.0, step=6.0)]
    killed = [*first, {"phase": "eval", "step": 7, "seconds": 9.0}, {"phase": "old", "step": 7}]
    assert spent_before(killed, 4) == dict.fromkeys(PARTS, 0.0) | {"start": 5.0, "step": 6.0, "lost": 3.0}
    # Checkpoint 4 was never committed.
    assert spent_before(killed, 0) == dict.fromkeys(PARTS, 0.0) | {"start": 5.0, "lost": 9.0}
    second = [*first, line(4, 0.0, start=7.0, step=6.0, lost=3.0), {"phase": "train", "step": 5, "seconds": 2.5}]
    assert spent_before(second, 4) == dict.fromkeys(PARTS, 0.0) | {"start": 7.0, "step": 6.0, "lost": 5.5}


def test_describe_is_one_line():
    assert goodput.describe({"step": 90.0, "compile": 10.0, "lost": 0.0}) == "100.0 s: step 90.0% · compile 10.0%"
