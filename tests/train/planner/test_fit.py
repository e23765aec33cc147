"""`plan --fit`: the cheapest choice that fits is found, compiled, and printed as flags that reproduce it."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import pytest

from configs import default
from configs.errors import UserError
from tests.runs import error_lines, rootstock
from train.commands.plan import publish_fit
from train.distributed.mesh import mesh_sizes
from train.hardware import CHIPS
from train.planner import fit as module
from train.planner.fit import Choice, Tried, fit
from train.planner.pricing import make_plan, usable_bytes
from train.planner.topology import Topology, parse_topology
from train.settings import from_config

QUIET = lambda *_: None  # noqa: E731


def settings_of(**changes):
    config = default.get_config()
    config.batch_size, config.sequence_length, config.num_steps = 8, 512, 10
    config.tokenizer = "bpe:2048"
    config.model.update({"vocab_size": 2048, "embed_dim": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 4})
    config.model.mlp_dim, config.model.attention = 256, "xla"
    config.update_from_flattened_dict(changes)
    return from_config(config.to_dict())


def chips(megabytes, count=2):
    """Two CPU devices as a GPU machine whose usable memory is so large."""
    chip = dataclasses.replace(CHIPS["h100"], hbm_bytes=int(megabytes * 1e6 / 0.94))
    return Topology(f"cpu-{count}", chip, "h100", (), 1, count)


class Compiler:
    """Stands for the compiler: a config needs `size(settings)` megabytes of one microbatch's and moments' memory."""

    def __init__(self, monkeypatch, choices):
        self.compiled = []
        monkeypatch.setattr(module, "make_plan", self.make_plan)
        monkeypatch.setattr(module, "_choices", choices)

    def make_plan(self, settings, topology, devices, note):
        self.compiled.append(settings)
        small = {"float32": 0, "bfloat16": 1, "int8": 2}[settings.optimizer.first_moment]
        small += settings.optimizer.second_moment != "float32"
        needed = (40 / settings.microbatches + 10 - 2 * small) * 1e6
        return SimpleNamespace(fits=needed <= usable_bytes(topology), peak_bytes_per_chip=needed, tokens_per_second=1.0)


@pytest.fixture
def compiler(monkeypatch):
    def choices(settings, topology, moments, traces, progress):
        optimizer = dataclasses.replace(settings.optimizer, **moments)
        lossy = tuple(f"--config.optimizer.{name}={value}" for name, value in moments.items())
        for parts in (1, 2, 4, 8):
            changed = dataclasses.replace(settings, optimizer=optimizer, microbatches=parts)
            # The estimate knows nothing of the 10 MB that every config needs.
            yield Choice(changed, (f"--config.microbatches={parts}", *lossy), lossy, (parts,), 40e6 / parts)

    return Compiler(monkeypatch, choices)


def search(megabytes, **changes):
    return fit(settings_of(**changes), chips(megabytes), jax.devices()[:2], "", QUIET)


def test_a_config_that_fits_stays_as_it_is(compiler):
    [only] = search(51)
    assert only.plan.fits and only.choice.flags == () and len(compiler.compiled) == 1


def test_lossless_choices_come_first_and_lossy_ones_only_when_needed(compiler):
    lossless = search(16)
    assert [one.choice.flags for one in lossless] == [(), *((f"--config.microbatches={n}",) for n in (4, 8))]
    assert lossless[-1].plan.fits and not lossless[-1].choice.lossy
    lossy = search(12)
    assert not any(one.plan.fits for one in lossy[:-1]) and lossy[-1].plan.fits
    # A first moment in bfloat16 needs 13 MB, and so does a factored second moment; with a code of 8 bits it is 9 MB.
    moments = ("--config.optimizer.first_moment=int8", "--config.optimizer.second_moment=factored")
    assert lossy[-1].choice.flags == ("--config.microbatches=8", *moments)
    assert any(one.choice.lossy == ("--config.optimizer.first_moment=bfloat16",) for one in lossy)
    assert next(i for i, one in enumerate(lossy) if one.choice.lossy) == 3


def test_the_next_cheaper_choice_was_tried_and_does_not_fit():
    """The compiler needs more or less than the estimate: the search starts where the estimate fits, and goes on."""
    candidates = [Choice(None, (), (), (cost,), size) for cost, size in enumerate([100, 80, 60, 40, 20])]
    for factor in (0.5, 0.7, 1.0, 1.3, 2.0, 9.0):
        compiled = []

        def fits(choice, factor=factor, compiled=compiled):
            compiled.append(choice)
            return factor * choice.estimated_bytes <= 61

        found = module._cheapest(candidates, fits, 61)
        fitting = [c for c in candidates if factor * c.estimated_bytes <= 61]
        assert found is (fitting[0] if fitting else None)
        before = candidates.index(found) - 1 if found else len(candidates) - 1
        assert before < 0 or candidates[before] in compiled


def test_none_fits_is_one_line_with_the_nearest(compiler):
    tried = search(1)
    assert not any(one.plan.fits for one in tried)
    with pytest.raises(UserError, match=r"nothing .* fits .* of cpu-2; the nearest needs .*first_moment=int8"):
        publish_fit(tried, chips(1), as_json=False)


def test_the_choices_are_configs_that_their_flags_give(capsys):
    given, topology = settings_of(), chips(1)
    moments = {"first_moment": "int8", "second_moment": "factored"}
    choices = list(module._choices(given, topology, moments, {}, QUIET))
    assert len({choice.flags for choice in choices}) == len(choices) > 30
    for choice in choices[:: len(choices) // 7]:
        values = dict(flag.removeprefix("--config.").split("=") for flag in choice.flags)
        changes = {name: int(value) if value.isdigit() else value for name, value in values.items()}
        again = settings_of(**changes)
        same = {name: value for name, value in vars(again).items() if name != "mesh"}
        assert same == {name: value for name, value in vars(choice.settings).items() if name != "mesh"}
        assert mesh_sizes(again.mesh, 2) == mesh_sizes(choice.settings.mesh, 2)
        assert choice.lossy == ("--config.optimizer.first_moment=int8", "--config.optimizer.second_moment=factored")
    plan = SimpleNamespace(fits=True, peak_bytes_per_chip=1e6, tokens_per_second=1.0)
    publish_fit([Tried(choices[0], plan)], topology, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["flags"] == " ".join(choices[0].flags) and found["tried"][0]["changes_training"] == [*choices[0].lossy]


def test_a_frozen_base_needs_less_memory_than_one_that_trains():
    def smallest(**changes):
        found = module._choices(settings_of(**changes), chips(1000, 1), {}, {}, QUIET)
        return min(choice.estimated_bytes for choice in found)

    assert smallest(**{"adapt.method": "lora"}) < 0.8 * smallest()


def test_muon_has_no_second_moment_to_make_smaller():
    muon = settings_of(**{"optimizer.name": "muon"})
    assert [way.get("first_moment") for way in module._ways_to_store(muon)] == [None, "bfloat16", "int8"]
    assert not any("second_moment" in way for way in module._ways_to_store(muon))
    assert list(module._ways_to_store(settings_of(**{"optimizer.first_moment": "int8"}))) == [{}]


def test_without_a_compiler_it_is_refused():
    with pytest.raises(UserError, match="--fit compiles what it recommends; no TPU compiler"):
        fit(settings_of(), parse_topology("v5e-4"), [], "no TPU compiler", QUIET)
    done = rootstock("plan", "--config=configs/pretrain/tiny.py", "--topology=v100", "--fit", check=False)
    assert error_lines(done) == ["rootstock: error: --fit compiles what it recommends; XLA no longer supports v100"]
    done = rootstock("plan", "--config=configs/pretrain/tiny.py", "--topology=v100", "--fit", "--search", check=False)
    assert "expected one of them" in error_lines(done)[0]


@pytest.mark.slow
def test_what_it_recommends_was_compiled_and_fits():
    """On two CPU devices, with XLA's own bytes: half of what the config needs as it is."""
    needs = make_plan(settings_of(), chips(10_000), jax.devices()[:2], "").peak_bytes_per_chip / 1e6
    tried = search(needs / 2)
    assert all(one.plan.compiled for one in tried) and not tried[0].plan.fits
    assert tried[-1].plan.fits and tried[-1].plan.peak_bytes_per_chip <= needs / 2 * 1e6
    assert not tried[-1].choice.lossy


def test_a_choice_must_save_memory_over_every_cheaper_one():
    def choice(cost, size):
        return Choice(None, (), (), (cost,), size)

    kept = module._frontier(iter([choice(3, 50), choice(1, 100), choice(2, 99), choice(4, 60), choice(5, 49.9)]))
    assert [c.cost[0] for c in kept] == [1, 3]
