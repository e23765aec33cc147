"""A flag that has no effect without another one is refused."""

import pytest

from tests.runs import error_lines, rootstock
from train import cli


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--run=x", "--tasks=intent", "--window=8"], "--window has no effect without --text"),
        (["evaluate", "--run=x", "--text=a.txt", "--limit=8"], "--limit has no effect without --tasks"),
        (["evaluate", "--run=x", "--data=a.jsonl", "--shots=0"], "--shots has no effect without --tasks"),
        (["checkpoint", "ls", "x", "--keep=3"], "--keep has no effect without --action=prune"),
        (["checkpoint", "verify", "x", "y"], "--other has no effect without --action=diff"),
        (["scaling", "--workdir=x", "--points=p", "--sizes=1,2,3"], "--sizes has no effect without --config"),
    ],
)
def test_a_flag_without_effect_is_refused(arguments, message):
    done = rootstock(*arguments, check=False)
    assert done.returncode == 2 and error_lines(done) == [f"rootstock: error: {message}"]


def test_needs_name_flags():
    for name in cli.COMMANDS:
        command = cli.importlib.import_module(f"train.commands.{name.replace('-', '_')}")
        values = cli.flags.FlagValues()
        command.define_flags(values)
        for flag, needed in getattr(command, "FLAG_NEEDS", {}).items():
            assert flag in values and needed.partition("=")[0] in (*values, "config")


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("prepare", "unit_megabytes=inf"),
        ("prepare", "shard_megabytes=nan"),
        ("prepare", "seed=99999999999999999999"),
        ("prepare", "processes=99999999999999999999"),
        ("generate", "temperature=nan"),
        ("generate", "seed=-99999999999999999999"),
        ("store", "document=99999999999999999999"),
    ],
)
def test_a_number_that_nothing_can_compute_with_is_refused(command, flag):
    done = rootstock(command, f"--{flag}", check=False)
    (error,) = error_lines(done)
    assert done.returncode == 2 and flag in error
