"""What each shipped config compiles to does not drift unseen: ten numbers a config, checked in."""

import dataclasses
import importlib
import json
from pathlib import Path

import jax
import pytest
from conftest import mesh_of

from model.heads import language_model
from train.planner.compiled import compile_step
from train.planner.estimate import tree_bytes
from train.planner.hlo import by_kind
from train.settings import MeshSettings, from_config, planned_model
from train.step import make_program

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "tests" / "fingerprints"
CONFIGS = sorted(p.stem for p in (ROOT / "configs" / "pretrain").glob("*.py") if p.stem not in ("__init__", "llm"))
# XLA may move bytes and operations a little without a change of ours.
LOOSE = {"peak_bytes": 0.02, "operations": 0.02}


def fingerprint(name):
    """Of the config's own step, its mesh replaced by data 2 x fsdp 2 x tensor 2."""
    config = importlib.import_module(f"configs.pretrain.{name}").get_config()
    # 65 characters of tiny-shakespeare and the special tokens.
    config.model.vocab_size = config.model.vocab_size or (128 if config.tokenizer == "chars" else 0)
    # Depth repeats what a layer does; compilation and memory need not.
    config.model.num_layers = min(config.model.num_layers, 4)
    settings = dataclasses.replace(from_config(config.to_dict()), mesh=MeshSettings(1, 2, 2, 2, 1))
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    objective = language_model(planned_model(settings), settings.loss.z_loss, settings.loss.chunk)
    program = make_program(objective, settings, mesh)
    compiled = compile_step(program, mesh)
    return {
        "collectives": by_kind(compiled.collectives),
        "peak_bytes": int(compiled.peak_bytes),
        "operations": compiled.instructions,
        "donated_bytes": int(compiled.alias_bytes),
    }, int(tree_bytes(program.state))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_compiles_to_what_it_did(name, request):
    found, state_bytes = fingerprint(name)
    assert found["donated_bytes"] == state_bytes, "the state is not written in place"
    path = FOLDER / f"{name}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    if request.config.getoption("update_fingerprints"):
        path.write_text(json.dumps(known | {jax.__version__: found}, indent=1, sort_keys=True) + "\n")
        return
    if jax.__version__ not in known:
        pytest.skip(f"no fingerprint for jax {jax.__version__}; pytest --update-fingerprints tests/train writes one")
    before = known[jax.__version__]
    drift = [
        f"{what}: {before[what]} -> {found[what]}"
        for what in before
        if (found[what] != before[what] if what not in LOOSE else abs(found[what] / before[what] - 1) > LOOSE[what])
    ]
    assert not drift, f"{name}: {'; '.join(drift)}; if it is meant, pytest --update-fingerprints tests/train"


def test_no_fingerprint_is_left_of_a_config_that_is_gone():
    assert {path.stem for path in FOLDER.glob("*.json")} == set(CONFIGS)
