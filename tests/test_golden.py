"""Golden files: the losses of four small runs, and run directories that later versions must still read."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from golden import recipes

from configs import default
from data.packing import PackedRows
from data.store import open_store
from data.tokenizer import load_tokenizer
from train.checkpoint.manager import open_to_read
from train.checkpoint.read import read_contents
from train.distributed.mesh import single_device_mesh
from train.pretraining import pretrain
from train.run.record import open_run

LOSSES = Path(__file__).parent / "golden" / "losses"
TOLERANCE = 1e-6
JAX_VERSION = ".".join(jax.__version__.split(".")[:2])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    recipes.write_data(folder)
    return folder


@pytest.fixture(scope="module")
def foundation(data):
    recipes.pretrain_tiny(data, data / "adamw")
    return data / "adamw"


def read_losses(path):
    return [(int(step), float(loss)) for step, loss in map(str.split, path.read_text().splitlines())]


def differences(found, expected):
    return [
        f"step {step}: {loss:.9f}, expected {golden:.9f}"
        for (step, loss), (_, golden) in zip(found, expected, strict=True)
        if not abs(loss - golden) <= TOLERANCE
    ]


def golden_file(folder, name):
    """Returns the file of this minor version of JAX, which exists where its losses differ from the general file's."""
    specific = folder / f"{name}-jax-{JAX_VERSION}.txt"
    return specific if specific.exists() else folder / f"{name}.txt"


def update(folder, name, found):
    """Writes the general file where it is missing; this version's own file where the general one differs."""
    general, specific = folder / f"{name}.txt", folder / f"{name}-jax-{JAX_VERSION}.txt"
    specific.unlink(missing_ok=True)
    path = specific if general.exists() and differences(found, read_losses(general)) else general
    path.write_text("".join(f"{step} {loss:.9f}\n" for step, loss in found))


@pytest.mark.integration
@pytest.mark.parametrize("name", ["adamw", "muon", "lora", "chat"])
def test_losses_equal_the_golden_file(name, data, foundation, request):
    workdir = data / name
    if name == "muon":
        recipes.pretrain_tiny(data, workdir, **{"optimizer.name": "muon", "mesh.data": 2, "mesh.fsdp": 4})
    elif name == "lora":
        recipes.finetune_lora(data, foundation, workdir)
    elif name == "chat":
        recipes.finetune_chat(data, foundation, workdir)
    found = recipes.losses(workdir)
    assert len(found) == recipes.STEPS
    if request.config.getoption("--update-goldens"):
        update(LOSSES, name, found)
    path = golden_file(LOSSES, name)
    wrong = differences(found, read_losses(path))
    assert not wrong, (
        f"{path.name}: the losses changed: {'; '.join(wrong[:3])}. A refactoring must not change them. If only this "
        "version of JAX differs, pytest tests/test_golden.py --update-goldens writes its own files. If the change is "
        "meant to alter initialization, data order, optimizer or loss, say so in the commit, delete the files first, "
        "and write the general ones with the oldest version of JAX that is supported."
    )


def test_update_writes_a_file_for_this_version_only_where_its_losses_differ(tmp_path):
    update(tmp_path, "run", [(1, 2.0), (2, 1.0)])
    update(tmp_path, "run", [(1, 2.0), (2, 1.0 + TOLERANCE / 2)])
    assert [path.name for path in tmp_path.iterdir()] == ["run.txt"]
    update(tmp_path, "run", [(1, 2.0), (2, 1.1)])
    assert golden_file(tmp_path, "run").name == f"run-jax-{JAX_VERSION}.txt"
    assert read_losses(tmp_path / "run.txt")[1][1] == pytest.approx(1.0, abs=TOLERANCE)
    assert read_losses(golden_file(tmp_path, "run")) == [(1, 2.0), (2, 1.1)]
    assert differences([(1, float("nan"))], [(1, 2.0)])


RUNS = Path(__file__).parent / "golden" / "runs"


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A copy of the golden foundation and of the adapter fine-tuned from it, whose lineage has an absolute path."""
    folder = tmp_path_factory.mktemp("stored") / "runs"
    shutil.copytree(RUNS, folder)
    record = folder / "adapter" / "run.json"
    record.write_text(record.read_text().replace("GOLDEN_RUNS", str(folder)))
    return folder


@pytest.mark.integration
def test_golden_runs_are_still_read(stored):
    """A change of the format of run.json, manifest, checkpoint or tokenizer must keep reading what exists."""
    mesh = single_device_mesh()
    foundation, adapter = (open_run(stored / name) for name in ("foundation", "adapter"))
    assert (foundation.record.stage, adapter.record.stage) == ("pretrain", "finetune")
    assert adapter.record.task["classes"] == ["even", "odd"]
    for run in (foundation, adapter):
        assert set(run.load(mesh)) >= set(run.objective().trained)
        with open_to_read(run.directory) as manager:
            assert read_contents(manager, 2).damage == ""
    assert load_tokenizer(stored / "adapter" / "tokenizer").decode([1, 102, 100, 119]) == "cat"


def test_golden_store_is_still_read(stored):
    store = open_store(stored / "foundation" / "store", "train")
    assert store.fingerprint == open_run(stored / "foundation").record.data_fingerprint
    rows = PackedRows(store, 64).rows(np.arange(2))
    text = load_tokenizer(stored / "foundation" / "store").decode(rows["tokens"][0].tolist())
    assert text.startswith("away far mat on saw mat")


@pytest.mark.integration
def test_golden_run_resumes(stored, data):
    """Steps 3 and 4 after the golden checkpoint of step 2 give the losses that the golden run logged."""
    workdir = stored / "foundation"
    expected = recipes.losses(workdir)[2:]
    config = open_run(workdir).record.config
    config["data"]["path"] = str(data / "text.txt")
    # What pre-training does not read has today's defaults, as the same command gives them.
    config |= {name: default.get_config().to_dict()[name] for name in ("task", "adapt")}
    pretrain(config, workdir)
    found = recipes.losses(workdir)[2:]
    assert [step for step, _ in found] == [3, 4]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], abs=TOLERANCE)
