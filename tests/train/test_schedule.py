"""Learning-rate schedules: their values, and one-line errors where their parts overlap."""

import dataclasses
import itertools
import re

import pytest

from configs import default
from configs.errors import UserError
from train.optimizer import make_schedule
from train.pretraining import pretrain
from train.schedule import schedule_errors
from train.settings import from_config

NAMES = ("cosine", "linear", "wsd", "constant")


def optimizer_of(**changes):
    config = default.get_config()
    config.optimizer.update(changes)
    return from_config(config.to_dict()).optimizer


def test_schedules_warm_up_and_end_at_the_final_fraction():
    for name in ("cosine", "linear", "wsd"):
        rate = make_schedule(optimizer_of(schedule=name, warmup_steps=10, final_fraction=0.1), 1.0, 100)
        assert float(rate(0)) == pytest.approx(0.1) and float(rate(9)) == pytest.approx(1.0)
        assert float(rate(100)) == pytest.approx(0.1, abs=1e-5)
        assert (float(rate(79)) == 1.0) == (name == "wsd")


def test_a_constant_schedule_warms_up_and_stays():
    rate = make_schedule(optimizer_of(schedule="constant", warmup_steps=10), 1.0, 100)
    assert float(rate(0)) == pytest.approx(0.1) and float(rate(9)) == float(rate(50)) == float(rate(10_000)) == 1.0


@pytest.mark.parametrize(
    ("name", "warmup", "decay", "message"),
    [
        ("wsd", 50, 0.9, "decay_fraction=0.9 (90 of 100 steps) overlaps config.optimizer.warmup_steps=50; expected a "
         "decay_fraction of at most 0.5 (50 steps), or warmup_steps of at most 10"),
        ("wsd", 1, 1.0, "expected a decay_fraction of at most 0.99 (99 steps), or warmup_steps of at most 0"),
        ("wsd", 100, 0.2, "warmup_steps=100 must be less than config.num_steps=100; expected at most 99, or "),
        ("cosine", 100, 0.2, "expected at most 99, or config.num_steps of at least 101"),
        ("linear", 5000, 0.2, "config.optimizer.warmup_steps=5000 must be less than config.num_steps=100"),
        ("constant", 101, 0.2, "config.optimizer.warmup_steps=101 must be less than config.num_steps=100"),
    ],
)  # fmt: skip
def test_overlapping_parts_of_a_schedule_are_an_error(name, warmup, decay, message, tmp_path):
    config = default.get_config()
    config.num_steps = 100
    config.optimizer.update({"schedule": name, "warmup_steps": warmup, "decay_fraction": decay})
    if name == "constant":
        config.optimizer.final_fraction = 0.1
    with pytest.raises(UserError, match=re.escape(message)):
        pretrain(config.to_dict(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.integration
@pytest.mark.parametrize("name", NAMES)
def test_a_schedule_without_an_error_ends_where_it_should_and_named_values_have_none(name):
    for steps, warmup, decay in itertools.product((2, 3, 7, 333), (0, 1, 2, 50, 99), (0.2, 0.5, 0.9, 1.0)):
        found = optimizer_of(schedule=name, warmup_steps=warmup, decay_fraction=decay)
        errors = schedule_errors(found, steps)
        for field, value in re.findall(r"(decay_fraction|warmup_steps) of at most ([0-9.]+)", "".join(errors)):
            nearest = dataclasses.replace(found, **{field: float(value) if "." in value else int(value)})
            assert schedule_errors(nearest, steps) == []
        if not errors:
            end = 1.0 if name == "constant" else found.final_fraction
            assert float(make_schedule(found, 1.0, steps)(steps)) == pytest.approx(end, abs=1e-5)


@pytest.mark.parametrize("name", ["linear", "wsd", "constant"])
def test_a_change_of_length_keeps_the_steps_before_it(name):
    o = optimizer_of(schedule=name, warmup_steps=5, final_fraction=0.1)
    rate = make_schedule(o, 1.0, 80, earlier=((10, 20), (30, 40)))
    lengths = {step: 20 if step < 10 else 40 if step < 30 else 80 for step in range(90)}
    for step, length in lengths.items():
        assert float(rate(step)) == float(make_schedule(o, 1.0, length)(step)), step
