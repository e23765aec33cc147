"""The comparison of train steps on a CPU: its own programs run, and names are checked before anything starts."""

import pytest

from benchmarks.training.__main__ import main, parsed, sides_of


def test_sides_need_their_pythons():
    assert {name.split()[0] for name in sides_of(parsed([]))} == {"rootstock"}
    given = ["--peer_python=P", "--maxtext_python=M", "--nanogpt=N", "--earlier=E"]
    names = {name.split()[0] for name in sides_of(parsed(given))}
    assert names == {"rootstock", "earlier", "torch", "maxtext", "nanogpt"}
    assert not {"maxtext", "nanogpt"} & {name.split()[0] for name in sides_of(parsed([*given, "--lora=8"]))}


@pytest.mark.parametrize("name", ["torch float32", "rootstock", "maxtext bfloat16"])
def test_a_side_without_its_python_is_an_error(name):
    with pytest.raises(SystemExit, match=f"--only='{name}' is none of rootstock float32"):
        main(["--only", name])


@pytest.mark.slow
@pytest.mark.parametrize("lora", [0, 4])
def test_own_programs_take_turns(lora, capsys):
    names = ["rootstock float32", "rootstock bfloat16 unrolled"]
    small = ["--size=tiny", "--rows=2", "--length=16", "--rounds=2", "--warmup=1", f"--lora={lora}"]
    main([*small, "--only", *names])
    table = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in table[2:4]] == [f"| {name}" for name in names]
    for line in table[2:4]:
        assert float(line.split(" | ")[1].replace(",", "")) > 0 and float(line.split(" | ")[5]) > 0.1
