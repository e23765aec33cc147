"""Every second of a run counts for one part, also across kills."""

import time

import jax
import jax.numpy as jnp
import pytest

from tests.faults.tiny_run import EVERY, corrupted, nan, settings_of, train
from train.run import goodput
from train.run.goodput import PARTS, spent_before
from train.run.history import read_records


def accounts(workdir):
    return [r for r in read_records(workdir) if r["phase"] == "goodput"]


def test_the_innermost_part_gets_the_time_and_parts_sum_to_the_total():
    begin = time.perf_counter()
    with goodput.measure(time.perf_counter()) as spent:
        time.sleep(0.02)
        spent.enter("step")
        for _ in spent.timed("data", (time.sleep(0.03) for _ in range(2))):
            time.sleep(0.01)
        with pytest.raises(RuntimeError), spent.part("evaluation"):
            time.sleep(0.01)
            with spent.part("checkpoint"):
                time.sleep(0.04)
                raise RuntimeError
        seconds, whole = spent.seconds(), time.perf_counter() - begin
    assert set(seconds) == set(PARTS) and seconds["compile"] == seconds["lost"] == 0
    assert sum(seconds.values()) == pytest.approx(whole, abs=2e-3)
    for part, least in {"start": 0.02, "step": 0.02, "data": 0.06, "evaluation": 0.01, "checkpoint": 0.04}.items():
        assert least <= seconds[part] < least + 0.03, part


def test_compile_time_is_separate_in_every_part():
    with goodput.measure(time.perf_counter()) as spent, spent.part("evaluation"):
        function = jax.jit(lambda x: jnp.cos(x) @ x + jnp.sort(x))
        function(jnp.ones((7, 7))).block_until_ready()
        first = spent.seconds()
        function(jnp.ones((7, 7))).block_until_ready()
        second = spent.seconds()
    assert first["compile"] > 5e-3 and second["compile"] == first["compile"]
    assert second["evaluation"] > first["evaluation"] > 0
    with goodput.measure(time.perf_counter()) as other:
        jax.jit(lambda x: x + 2)(jnp.ones(3))
    # The first one listens no more.
    assert other.seconds()["compile"] > 0 and spent.seconds()["compile"] == second["compile"]


def test_a_run_accounts_for_its_whole_time(tmp_path):
    begin = time.perf_counter()
    train(tmp_path, settings_of(), evaluate=lambda params: time.sleep(0.2) or {"loss": 1.0})
    whole = time.perf_counter() - begin
    assert [r["step"] for r in accounts(tmp_path)] == [0, 4, 8, 12]
    parts = accounts(tmp_path)[-1]["parts"]
    assert whole * 0.99 - 0.1 < sum(parts.values()) < whole
    assert parts["evaluation"] == pytest.approx(0.6, abs=0.1)
    assert all(parts[name] > 0 for name in ("start", "compile", "data", "step", "checkpoint")) and parts["lost"] == 0


def test_a_killed_run_counts_what_was_lost(tmp_path):
    calls = []

    def killed(params):
        calls.append(time.perf_counter())
        time.sleep(0.3)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return {"loss": 1.0}

    settings = settings_of(**{"checkpoint.every": 2 * EVERY})
    begin = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, settings, evaluate=killed)
    died, (committed,) = time.perf_counter(), [r for r in accounts(tmp_path) if r["step"] == 8]
    last = read_records(tmp_path)[-1]
    assert last["step"] == 11 or last["step"] == 12
    train(tmp_path, settings)
    whole = time.perf_counter() - begin
    again, *_, end = [r["parts"] for r in accounts(tmp_path) if r["step"] >= 8][1:]
    # Nothing tells of the evaluation that the kill cut off.
    assert (
        end["lost"] == again["lost"] == pytest.approx(last["seconds"] - committed["seconds"], abs=1e-6)
        and end["lost"] > 0
    )
    assert all(again[name] >= committed["parts"][name] for name in PARTS)
    assert whole * 0.99 - 0.3 - 0.2 < sum(end.values()) < whole - 0.29 and died > begin


def test_a_roll_back_is_lost_time(tmp_path):
    settings = settings_of(**{"faults.max_consecutive_skips": 2, "faults.on_divergence": "roll_back"})
    begin = time.perf_counter()
    train(tmp_path, settings, corrupted(settings, (6, 7), nan))
    whole = time.perf_counter() - begin
    parts = accounts(tmp_path)[-1]["parts"]
    assert 0 < parts["lost"] < whole / 2
    assert whole * 0.99 - 0.2 < sum(parts.values()) < whole


def line(done, seconds, **parts):
    return {"phase": "goodput", "step": done, "seconds": seconds, "parts": dict.fromkeys(PARTS, 0.0) | parts}


def test_lost_time_of_several_kills_adds_up():
    assert spent_before([], 0) == {}
    first = [line(0, 0.0, start=5.0), {"phase": "train", "step": 3, "seconds": 4.0}, line(4, 6.0, start=5.0, step=6.0)]
    killed = [*first, {"phase": "eval", "step": 7, "seconds": 9.0}, {"phase": "old", "step": 7}]
    assert spent_before(killed, 4) == dict.fromkeys(PARTS, 0.0) | {"start": 5.0, "step": 6.0, "lost": 3.0}
    # Checkpoint 4 was not committed after all.
    assert spent_before(killed, 0) == dict.fromkeys(PARTS, 0.0) | {"start": 5.0, "lost": 9.0}
    second = [*first, line(4, 0.0, start=7.0, step=6.0, lost=3.0), {"phase": "train", "step": 5, "seconds": 2.5}]
    assert spent_before(second, 4) == dict.fromkeys(PARTS, 0.0) | {"start": 7.0, "step": 6.0, "lost": 5.5}


def test_describe_is_one_line():
    assert goodput.describe({"step": 90.0, "compile": 10.0, "lost": 0.0}) == "100.0 s: step 90.0% · compile 10.0%"
