"""The benchmark of an accelerator machine, at its smallest size on a CPU, so that the first run on hardware works."""

import ast
import json
import os
import subprocess
import sys

import jax
import pytest
from runs import ROOT

from benchmarks.accelerator import chip, parts, tables, training
from benchmarks.accelerator.sizes import SHAPES, SIZES

TINY = SIZES["tiny"]
IN_PROCESS = [part for part in parts.parts_of(TINY) if not part.peer and not part.function.startswith("runs.")]


@pytest.fixture(scope="module")
def results() -> dict:
    return {part.name: parts.run_part(part) for part in IN_PROCESS}


@pytest.mark.integration
def test_every_part_measures_something_positive(results):
    assert {"device", "checkpoint", "lora", "qlora-int8", "qlora-nf4"} < set(results)
    assert results["device"]["bfloat16_flops"] > 0 and results["device"]["copy_bandwidth"] > 0
    for name, one in results.items():
        if name.startswith(("train-", "lora", "qlora-")):
            least, median, most = one["step_seconds"]
            assert 0 < least <= median <= most and one["tokens_per_second"] > 0 and one["compiled_bytes"] > 0
        if name.startswith("decode-"):
            assert one["tokens_per_second"] == pytest.approx(
                one["rows"] * TINY.new_tokens / (one["seconds_per_token"] * TINY.new_tokens)
            )
    frozen = [results[name]["frozen_bytes"] for name in ("lora", "qlora-int8", "qlora-nf4")]
    assert frozen[0] > frozen[1] > frozen[2]
    saved = results["checkpoint"]
    # Float32 parameters and two moments, and counters.
    assert 12 * results["train-tiny-1"]["parameters"] < saved["bytes"] < 12.1 * results["train-tiny-1"]["parameters"]
    assert 0 < saved["stall_seconds"] <= saved["save_seconds"]


@pytest.mark.integration
def test_training_reduces_the_loss_of_a_repeated_batch(results):
    for name in ("train-tiny-1", "train-tiny-2", "lora", "qlora-int8", "qlora-nf4"):
        first, last = results[name]["losses"]
        assert last < first


@pytest.mark.integration
def test_the_summary_has_a_row_for_every_part(results):
    peer = {"rows": 2, "length": 32, "compiled": True, "checkpointing": False, "tokens_per_second": 7.0}
    peer |= {"step_seconds": [1.0, 2.0, 3.0], "peak_bytes": 5e9, "versions": {"torch": "2", "transformers": "5"}}
    equal = {"twice": {"largest": 0.0, "steps": 6}, "resumed": {"largest": 0.25}, "killed_at": 3}
    accuracy = {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}}
    made = {
        "peer-train-tiny-compiled": peer,
        "equal-runs": {"steps": 6, "defaults": equal},
        "fine-tune": {"seconds": 9.0, "results": {"models": {"fine-tuned": accuracy}}},
        "train-broken": {"error": "out of memory"},
    }
    text = tables.markdown(results | made)
    for shown in (
        "| tiny (94,528) | 2 x 32 |",
        "torch 2 |",
        "| save |",
        "LoRA of rank 8",
        "| defaults | 0 in 6 steps |",
    ):
        assert shown in text
    assert "| fine-tuned | 0.500 [0.400, 0.600] |" in text and "**train-broken** failed: out of memory" in text
    assert len([line for line in text.splitlines() if line.startswith("| tiny (")]) == 3


@pytest.mark.integration
def test_the_planner_ranks_what_fits_first_and_the_larger_memory_last():
    found = training.ranked("3B", 16, 2048)
    sums = [sum(work.buffers.values()) for _, work in found]
    # On a CPU the ranking is an H100's: 80 GB, of which a program can use 94 %.
    fits = [size <= 0.94 * 80 * 2**30 for size in sums]
    assert fits == sorted(fits, reverse=True) and set(fits) == {True, False}
    assert found[0][0].model["remat"] == "dots"


def test_a_part_has_its_own_name_and_the_arguments_of_its_function():
    peers = {
        node.name: [argument.arg for argument in node.args.args]
        for node in ast.parse((ROOT / "benchmarks/accelerator/peer.py").read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    for size in SIZES.values():
        found = parts.parts_of(size)
        assert len({part.name for part in found}) == len(found)
        for part in found:
            if part.peer:
                given = set(part.arguments) - {"model"} | {"shape"}
                assert given == set(peers[part.function]), part.name
            if "model" in part.arguments:
                assert part.arguments["model"] in SHAPES


def test_a_chip_is_found_by_its_device_kind(monkeypatch):
    class Device:
        device_kind = "NVIDIA H100 80GB HBM3"

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert chip.attached_topology().name == "h100-1" and chip.attached_chip().hbm_bandwidth == 3350e9
    Device.device_kind = "TPU v5 lite"
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert chip.attached_topology().chips == 8
    Device.device_kind = "cpu"
    assert chip.attached_topology() is None


@pytest.mark.slow
def test_the_command_writes_each_part_and_adds_what_is_missing(tmp_path):
    command = [sys.executable, "-m", "benchmarks.accelerator", "--size=tiny", f"--output={tmp_path}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    first = subprocess.run([*command, "--only", "device"], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert first.returncode == 0 and "device: " in first.stdout
    second = subprocess.run([*command, "--minutes=20"], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert second.returncode == 0, second.stdout
    assert "device: " not in second.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results) == {part.name for part in parts.parts_of(TINY) if not part.peer}
    equal = results["equal-runs"]["defaults"]
    assert equal["twice"]["largest"] == equal["resumed"]["largest"] == 0 and equal["resumed"]["steps"] == 6
    assert 2 < equal["killed_at"] < 6
    assert results["fine-tune"]["results"]["models"]["fine-tuned"]["rows"] == 32
