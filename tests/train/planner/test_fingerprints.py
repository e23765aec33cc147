"""The compiled train step of each shipped config: collectives, memory, operations and donated bytes are unchanged.

`tests/fingerprints/CONFIG.json` has one entry per minor version of JAX. With a version that has no entry, the tests
check only what does not depend on the compiler, and skip the rest.
"""

import dataclasses
import importlib
import json
from pathlib import Path

import jax
import pytest
from conftest import mesh_of

from tests.often import often
from train.planner.compiled import compile_step
from train.planner.estimate import tree_bytes
from train.planner.hlo import by_kind
from train.settings import MeshSettings, from_config, planned_model
from train.step import make_program, objective_of

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "tests" / "fingerprints"
CONFIGS = sorted(p.stem for p in (ROOT / "configs" / "pretrain").glob("*.py") if p.stem not in ("__init__", "llm"))
JAX_VERSION = ".".join(jax.__version__.split(".")[:2])
# Relative tolerances: patch releases of XLA may change these slightly.
TOLERANCES = {"peak_bytes": 0.02, "operations": 0.02}
UPDATE = "pytest -n0 tests/train/planner/test_fingerprints.py --update-fingerprints"


def fingerprint(name):
    """Returns (fingerprint, bytes of the state per device) of a config on the mesh data 2 x fsdp 2 x tensor 2."""
    config = importlib.import_module(f"configs.pretrain.{name}").get_config()
    # 65 characters of tiny-shakespeare and the special tokens.
    config.model.vocab_size = config.model.vocab_size or (128 if config.tokenizer == "chars" else 0)
    # More layers only repeat the same operations and take longer to compile.
    config.model.num_layers = min(config.model.num_layers, 4)
    settings = dataclasses.replace(from_config(config.to_dict()), mesh=MeshSettings(1, 2, 1, 2, 2, 1))
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    program = make_program(objective_of(settings, planned_model(settings)), settings, mesh)
    compiled = compile_step(program, mesh)
    return {
        "collectives": by_kind(compiled.collectives),
        "peak_bytes": int(compiled.peak_bytes),
        "operations": compiled.instructions,
        "donated_bytes": int(compiled.alias_bytes),
    }, int(tree_bytes(program.state))


@pytest.mark.parametrize("name", often(CONFIGS, "tiny"))
def test_compiled_step_equals_its_fingerprint(name, request):
    found, state_bytes = fingerprint(name)
    assert found["donated_bytes"] == state_bytes, "the state is not updated in place"
    path = FOLDER / f"{name}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    if request.config.getoption("update_fingerprints"):
        path.write_text(json.dumps(known | {JAX_VERSION: found}, indent=1, sort_keys=True) + "\n")
        return
    if JAX_VERSION not in known:
        kinds = [set(entry["collectives"]) for entry in known.values()]
        assert set(found["collectives"]) in kinds, "the step uses other kinds of collectives than with any known JAX"
        pytest.skip(f"{path.name} has no entry for JAX {JAX_VERSION} (only {', '.join(known)}); add it: {UPDATE}")
    expected = known[JAX_VERSION]
    changed = [
        f"{key}: {expected[key]} -> {found[key]}"
        for key in expected
        if (found[key] != expected[key] if key not in TOLERANCES else differs(found[key], expected[key], key))
    ]
    assert not changed, f"{name}: {'; '.join(changed)}; if this is intended: {UPDATE}"


def differs(found, expected, key):
    return abs(found / expected - 1) > TOLERANCES[key]


def test_every_fingerprint_belongs_to_a_config():
    assert {path.stem for path in FOLDER.glob("*.json")} == set(CONFIGS)
