"""The command: JSON for programs, one screen for people, one line for mistakes."""

import json

import pytest

from tests.runs import error_lines, rootstock
from train.commands.plan import _amount

KEYS = {
    "peak_bytes_per_chip", "state_bytes_per_chip", "hbm_bytes_per_chip", "fits", "model_flops_per_step",
    "step_seconds", "bound_by", "mfu", "tokens_per_second", "chip_hours", "usd", "compile_seconds", "collectives",
}  # fmt: skip


def plan(*arguments):
    return rootstock("plan", *arguments, check=False)


def test_json_holds_every_key_and_the_price():
    done = plan(
        "--config=configs/pretrain/llm.py:smollm2_135m", "--topology=v100-8", "--tokens=1e9", "--price=2", "--json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) >= KEYS and found["fits"] is True
    assert found["usd"] == 2 * found["chip_hours"] > 0
    assert set(found["collectives"]["all-gather"]) == {"count", "bytes"}


def test_the_table_shows_what_bounds_the_step_and_the_cost():
    done = plan("--config=configs/pretrain/tiny.py", "--topology=a100", "--price=1", "--tflops=50")
    assert done.returncode == 0, done.stderr
    for expected in ("memory per chip", "peak", "fits", "bound by --tflops", "MFU 16.0%", "chip-hours", "USD"):
        assert expected in done.stdout, done.stdout


@pytest.mark.integration
def test_the_flags_that_a_search_prints_give_the_same_plan():
    arguments = ("--config=configs/pretrain/llm.py:smollm2_135m", "--topology=v100-4")
    done = plan(*arguments, "--search", "--json")
    assert done.returncode == 0, done.stderr
    winner = json.loads(done.stdout)
    assert set(winner) >= KEYS and len(winner["candidates"]) > 50
    pasted = plan(*arguments, *winner["flags"].split(), "--json")
    assert pasted.returncode == 0, pasted.stderr
    assert json.loads(pasted.stdout)["tokens_per_second"] == winner["tokens_per_second"]


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0, "0"), (0.00123456, "0.00123"), (1.5, "1.5"), (99.96, "100"), (123_456.7, "123,457")]
)
def test_small_amounts_keep_their_digits(value, shown):
    assert _amount(value) == shown


def test_an_invalid_flag_is_a_one_line_error():
    tiny = "--config=configs/pretrain/tiny.py"
    cases = [
        ((tiny, "--topology=v5e-17"), "nearest: v5e-8, v5e-16, v5e-32"),
        ((tiny, "--topology=v100-7"), "must be divisible by config.mesh.data = 7"),
        ((tiny, "--topology=v100", "--price=-1"), "--price=-1.0; expected a finite number of at least 0"),
        ((tiny, "--topology=v100", "--tokens=nan"), "--tokens=nan; expected a finite number"),
        ((tiny, "--topology=v100", "--fit", "--search"), "--fit and --search are two searches; expected one of them"),
        ((tiny, "--topology=v100", "--fit", "--price=2"), "--price=2.0 has no effect with --fit; expected it with the"),
        ((tiny, "--topology=v100", "--config.tokenizer=chars"), "set config.model.vocab_size"),
        ((tiny,), "--topology is missing"),
        (
            ("--config=configs/pretrain/llm.py:llama2_70b", "--topology=v100-8"),
            "do not fit in the usable 32.3 GB of v100-8; largest: optimizer state",
        ),
    ]
    for arguments, expected in cases:
        done = plan(*arguments)
        (line,) = error_lines(done)
        assert done.returncode in (1, 2) and expected in line


def test_a_rate_above_the_peak_is_refused():
    done = plan("--config=configs/pretrain/tiny.py", "--topology=v100", "--tflops=500")
    assert "--tflops=500 is more than the peak of v100, 125 TFLOP/s per chip" in error_lines(done)[0]
