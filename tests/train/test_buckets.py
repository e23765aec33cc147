"""From text to an exported model in a bucket: every loss equals the local run's, bit for bit, also after a kill."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file

from configs import default
from configs.errors import UserError
from data.loader import BatchFunction, train_batches
from data.packing import PackedRows
from data.storage import files
from data.storage.paths import at
from data.store import open_store
from data.store_cache import cached_store
from tests.buckets import new_folder
from tests.damage import flip_a_bit
from tests.often import often
from tests.runs import ROOT, error_lines, process_environment, rootstock, write_rows, write_text
from train import loop
from train.checkpoint import local_tier, orbax_s3
from train.checkpoint import save as saving
from train.checkpoint.manager import COMMIT_MARKER, saved_steps
from train.run.history import read_records
from train.settings import from_config
from train.tasks.loading import load_task

STEPS, EVERY = 12, 4
PRETRAIN = [
    "pretrain", "--config=configs/pretrain/tiny.py", "--config.batch_size=8", "--config.sequence_length=32",
    "--config.model.embed_dim=32", "--config.model.num_layers=1", "--config.model.num_heads=2",
    "--config.model.num_kv_heads=2", "--config.model.mlp_dim=32", "--config.optimizer.warmup_steps=2",
    "--config.logging.every=1", f"--config.num_steps={STEPS}", f"--config.checkpoint.every={EVERY}",
    "--config.checkpoint.keep=9", f"--config.evaluation.every={EVERY}",
]  # fmt: skip
FINETUNE = [
    "finetune", "--config=configs/finetune/email_spam.py", "--config.batch_size=8", "--config.sequence_length=32",
    "--config.num_steps=4", "--config.optimizer.warmup_steps=1", "--config.task.zero_shot_rows=8",
    "--config.checkpoint.every=2", "--config.logging.every=1",
]  # fmt: skip
# Starts a run and kills it right after the save of a step was started, or (whole) after it was committed.
_KILL = """
import os, signal, sys
from train import cli
from train.checkpoint import save as saving
from train import loop
step, whole = int(sys.argv[1]), sys.argv[2] == "whole"
def save(manager, state, mesh):
    saving.save(manager, state, mesh)
    if whole:
        manager.wait_until_finished()
    if int(state.step) == step:
        os.kill(os.getpid(), signal.SIGKILL)
loop.save = save
cli.main(sys.argv[3:])
"""


def losses(workdir):
    """Returns (phase, step, loss) of each line of a run's metrics.jsonl that has a loss."""
    return [(r["phase"], r["step"], r["loss"]) for r in read_records(workdir) if "loss" in r]


def stages(root: str) -> dict:
    """Runs every stage with its input and output below `root` and returns the figures."""
    folder = at(root)
    foundation, tuned = f"{root}/foundation", f"{root}/tuned"
    rootstock(
        "prepare", f"--input={root}/text/*.txt", f"--output={root}/store", "--tokenizer=bytes",
        "--validation_fraction=0.1", "--validation_split=tail",
    )  # fmt: skip
    rootstock("prepare", f"--output={root}/store", "--verify")
    rootstock(*PRETRAIN, f"--config.data.path={root}/store", f"--workdir={foundation}")
    evaluated = rootstock("evaluate", f"--run={foundation}", f"--text={root}/text/a.txt", "--json").stdout
    generated = rootstock("generate", f"--run={foundation}", "--prompt=the cat", "--max_new_tokens=8").stdout
    rows = f"--config.data.path={root}/rows.jsonl"
    rootstock(*FINETUNE, rows, f"--init_from={foundation}", f"--workdir={tuned}")
    scored = rootstock("evaluate", f"--run={tuned}", f"--data={root}/rows.jsonl", "--json").stdout
    rootstock("export-hf", f"--run={foundation}", f"--output={root}/exported")
    rootstock("import-hf", f"--source={root}/exported", f"--workdir={root}/imported")
    assert "sound" in rootstock("checkpoint", "verify", foundation).stdout
    listed = rootstock("checkpoint", "ls", foundation).stdout
    with files.local_copy(folder / "exported") as exported:
        weights = load_file(exported / "model.safetensors")
    return {
        "losses": losses(folder / "foundation"),
        "tuned": losses(folder / "tuned"),
        "scored": json.loads(scored),
        "evaluated": json.loads(evaluated),
        "generated": generated,
        "listed": [line.split()[3] for line in listed.splitlines() if "checkpoints" in line],
        "weights": weights,
        "imported": saved_steps(folder / "imported"),
        "report": (folder / "tuned" / "report.html").is_file(),
        "files": {path.name for path in (folder / "foundation").iterdir()},
    }


# The contract of both kinds of bucket is in the fast suite (tests/data/storage); all stages on s3:// are slow.
@pytest.fixture(params=often(("gs", "s3"), "gs"))
def bucket(request, storage_environment) -> str:
    """A URL below which nothing exists yet."""
    return new_folder(request.param)


def put_inputs(root: str, scratch: Path) -> None:
    (scratch / "in" / "text").mkdir(parents=True)
    write_text(scratch / "in" / "text" / "a.txt", 150)
    write_rows(scratch / "in" / "rows.jsonl", 80)
    files.copy_tree(scratch / "in", at(root))


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    root = tmp_path_factory.mktemp("local")
    put_inputs(str(root), tmp_path_factory.mktemp("inputs"))
    return root, stages(str(root))


@pytest.mark.integration
def test_every_stage_in_a_bucket_equals_the_local_one(bucket, local, tmp_path):
    _, expected = local
    put_inputs(bucket, tmp_path)
    found = stages(bucket)
    weights, wanted = found.pop("weights"), dict(expected)
    expected_weights = wanted.pop("weights")
    assert found == wanted and found["listed"] == ["4", "8", "12"] and found["imported"] == [0]
    assert weights.keys() == expected_weights.keys()
    assert all(np.array_equal(weights[name], expected_weights[name]) for name in weights)
    assert not list(ROOT.glob("gs:*")) and not list(ROOT.glob("s3:*"))


def train_and_kill(step, moment, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", _KILL, str(step), moment, *arguments],
        cwd=ROOT, env=process_environment(), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == -9, done.stderr


def train_and_stop(step, *arguments):
    """Runs a command in this process, which waits for every save and ends with an error after that of `step`."""

    def save(manager, state, mesh):
        saving.save(manager, state, mesh)
        manager.wait_until_finished()
        if int(state.step) == step:
            raise UserError("stopped by the test")

    with mock.patch.object(loop, "save", save):
        done = rootstock(*arguments, check=False)
    assert "stopped by the test" in done.stderr, done.stderr


@pytest.mark.slow
def test_a_run_that_was_killed_resumes_in_a_bucket(bucket, local):
    root, expected = local
    store = at(bucket) / "store"
    files.copy_tree(root / "store", store, last="manifest.json")
    workdir = at(bucket) / "run"
    command = [*PRETRAIN, f"--config.data.path={store}", f"--workdir={workdir}"]
    train_and_kill(4, "whole", *command)
    assert saved_steps(workdir) == [4]
    # In the save of step 8: what it left is not a checkpoint, and not in the way of the next attempt.
    train_and_kill(8, "half", *command)
    assert saved_steps(workdir) == [4] and not (workdir / "checkpoints" / "8" / COMMIT_MARKER).exists()
    done = rootstock(*command)
    assert f"resumed at step 4 of {STEPS}" in done.stderr + done.stdout
    assert saved_steps(workdir) == [12, 8, 4] and losses(workdir) == expected["losses"]


@pytest.mark.integration
def test_a_damaged_checkpoint_of_a_bucket_is_passed_over(bucket, local):
    root, expected = local
    workdir = at(bucket) / "run"
    command = [*PRETRAIN, f"--config.data.path={root}/store", f"--workdir={workdir}"]
    train_and_stop(8, *command)
    largest = max(files.files_below(workdir / "checkpoints" / "8"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(bytes(content))
    done = rootstock(*command)
    printed = done.stderr + done.stdout
    assert "checkpoint 8 is damaged" in printed and "resumed at step 4" in printed
    assert losses(workdir) == expected["losses"] and saved_steps(workdir) == [12, 8, 4]
    assert [path.name.partition("-")[0] for path in (workdir / "damaged").iterdir()] == ["8"]


@pytest.mark.integration
def test_prune_deletes_checkpoints_of_a_bucket(bucket, local):
    root, _ = local
    rootstock(*PRETRAIN, f"--config.data.path={root}/store", f"--workdir={bucket}/run")
    done = rootstock("checkpoint", "prune", f"{bucket}/run", "--keep=1")
    assert "deleted 8, 4; kept 12" in done.stdout and saved_steps(at(bucket) / "run") == [12]


@pytest.mark.integration
def test_a_second_run_in_one_workdir_of_a_bucket_is_refused(bucket, local):
    from data.storage.lease import lease

    root, _ = local
    with lease(at(bucket) / "run" / ".lock", print):
        done = rootstock(*PRETRAIN, f"--config.data.path={root}/store", f"--workdir={bucket}/run", check=False)
    (line,) = error_lines(done)
    assert "is in use by another run (host " in line and "pid" in line


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (["pretrain", "--config=configs/pretrain/tiny.py", "--workdir=http://x/y"], "--workdir"),
        (["pretrain", "--config=configs/pretrain/tiny.py", "--config.data.path=gs:/b/x", "--workdir=x"], "data.path"),
        (["evaluate", "--run=ftp://b/x", "--text=x"], "--run"),
        (["prepare", "--input=a.txt,hdfs://b/x", "--output=x"], "--input"),
        (["checkpoint", "ls", "az://b/x"], "--run"),
        (["finetune", "--config=configs/finetune/email_spam.py", "--init_from=gs://", "--workdir=x"], "--init_from"),
    ],
)
def test_other_urls_are_one_line(command, names):
    done = rootstock(*command, check=False)
    (line,) = error_lines(done)
    assert done.returncode == 2 and names in line and "gs://BUCKET/NAME" in line


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["checkpoint", "ls", "{bucket}/none"], "is not a run directory"),
        (["prepare", "--input={bucket}/*.txt", "--output={bucket}/store"], "matches no readable file"),
        (["prepare", "--input=README.md", "--output={scheme}://no-such-bucket/store"], "cannot be read or written"),
        (["merge", "--run=x", "--workdir={scheme}://no-such-bucket/run"], "cannot be written"),
        (["pretrain", "--config={bucket}/none.py", "--workdir=x"], "none.py"),
    ],
)
def test_what_is_missing_in_a_bucket_is_one_line(bucket, command, expected):
    done = rootstock(*(word.format(bucket=bucket, scheme=bucket[:2]) for word in command), check=False)
    assert expected in done.stderr and "Traceback" not in done.stderr and len(error_lines(done)) == 1


@pytest.mark.slow
def test_two_processes_train_in_one_bucket(bucket, tmp_path):
    put_inputs(bucket, tmp_path)
    mesh, length = "--config.mesh.fsdp=2", "--config.num_steps=8"
    data = ["--config.tokenizer=bytes", "--config.data.validation_split=tail"]
    rootstock(
        *PRETRAIN, mesh, length, *data, f"--config.data.path={tmp_path}/in/text/a.txt", f"--workdir={tmp_path}/run",
        devices=2,
    )  # fmt: skip
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        cluster = {"JAX_COORDINATOR_ADDRESS": f"localhost:{probe.getsockname()[1]}", "JAX_NUM_PROCESSES": "2"}
    # Process 0 makes the store in the bucket, and both read it there.
    text = f"--config.data.path={bucket}/text/*.txt"
    command = [sys.executable, "-m", "train", *PRETRAIN, mesh, length, *data, text, f"--workdir={bucket}/run"]
    running = [
        subprocess.Popen(
            command, cwd=ROOT, env=process_environment() | cluster | {"JAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    printed = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], printed
    found, expected = losses(at(bucket) / "run"), losses(tmp_path / "run")
    assert [line[:2] for line in found] == [line[:2] for line in expected]
    np.testing.assert_allclose([line[2] for line in found], [line[2] for line in expected], rtol=1e-5)
    assert saved_steps(at(bucket) / "run") == [8, 4]
    # One process restores what two saved.
    assert rootstock("checkpoint", "verify", f"{bucket}/run").stdout.count("sound") == 2


@pytest.mark.integration
def test_the_newest_checkpoint_of_both_places_is_restored(bucket, local, tmp_path):
    root, expected = local
    workdir, disk = at(bucket) / "run", tmp_path / "disk"
    tiers = [
        "--config.checkpoint.every=8",
        f"--config.checkpoint.local_path={disk}",
        "--config.checkpoint.local_every=2",
    ]
    command = [*PRETRAIN, *tiers, f"--config.data.path={root}/store", f"--workdir={workdir}"]
    train_and_stop(6, *command)
    (own,) = disk.iterdir()
    assert saved_steps(workdir) == [] and saved_steps(own) == [6, 4, 2]
    train_and_stop(10, *command)
    assert saved_steps(workdir) == [8] and saved_steps(own)[0] == 10
    flip_a_bit(own / "checkpoints" / "10")
    done = rootstock(*command)
    printed = done.stderr + done.stdout
    assert "checkpoint 10 is damaged" in printed and "resumed at step 8 of 12" in printed
    assert losses(workdir) == expected["losses"] and saved_steps(workdir) == [12, 8]


def test_local_checkpoints_that_the_processes_do_not_share_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(local_tier, "run_on_process_zero", lambda action: "written-by-process-0")
    with pytest.raises(UserError, match="does not see what process 0 wrote there"):
        with local_tier.open_local_manager(str(tmp_path), tmp_path, 1):
            pass


@pytest.mark.integration
def test_a_store_is_copied_once_if_asked(bucket, local, tmp_path):
    root, expected = local
    store = at(bucket) / "store"
    files.copy_tree(root / "store", store, last="manifest.json")
    command = [*PRETRAIN, f"--config.data.path={store}", f"--config.data.cache={tmp_path / 'cache'}"]
    rootstock(*command, f"--workdir={tmp_path / 'run'}")
    assert losses(tmp_path / "run") == expected["losses"]
    (copy,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    assert (copy / "train" / "tokens-00000-of-00001.bin").read_bytes() == (
        root / "store" / "train" / "tokens-00000-of-00001.bin"
    ).read_bytes()
    written = (copy / "manifest.json").stat().st_mtime_ns
    assert (
        cached_store(store, str(tmp_path / "cache")) == copy and (copy / "manifest.json").stat().st_mtime_ns == written
    )
    # A damaged store is not copied.
    damaged = at(bucket) / "damaged"
    files.copy_tree(root / "store", damaged)
    tokens = damaged / "train" / "tokens-00000-of-00001.bin"
    tokens.write_bytes(tokens.read_bytes()[:-2] + b"\0\0")
    manifest = json.loads((damaged / "manifest.json").read_text())
    manifest["splits"]["train"]["documents_note"] = "another name in the cache"
    (damaged / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=rf"{bucket}/damaged is damaged: train/tokens-00000-of-00001\.bin differ"):
        cached_store(damaged, str(tmp_path / "cache"))


@pytest.mark.parametrize("field", ["data.cache", "checkpoint.local_path"])
def test_what_must_be_on_the_machine_is_refused_in_a_bucket(field):
    config = default.get_config()
    config.update_from_flattened_dict({field: "gs://bucket/x"})
    with pytest.raises(UserError, match=rf"config\.{field}='gs://bucket/x' is in a bucket"):
        from_config(config.to_dict())
    with pytest.raises(UserError, match="Python files are read from this machine only"):
        load_task("s3://bucket/task.py")


def test_a_version_of_orbax_that_changed_is_one_line(monkeypatch):
    from orbax.checkpoint._src.path import gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils

    with monkeypatch.context() as patch:
        patch.setattr(gcs_utils, "_GCS_PATH_PREFIX", ("gs://",))
        patch.delattr(tensorstore_utils, "_use_gcs_driver")
        with pytest.raises(UserError, match=r"checkpoints on s3:// need Orbax 0\.12\.8, and this is"):
            orbax_s3.support_s3()


@pytest.mark.integration
def test_an_unreachable_bucket_does_not_make_a_checkpoint_damaged(bucket, local, monkeypatch):
    root, _ = local
    command = [*PRETRAIN, f"--config.data.path={root}/store", f"--workdir={bucket}/run"]
    train_and_stop(8, *command)

    def refuse(*_, **__):
        raise ValueError("UNAVAILABLE: HTTP response code 503")

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "restore", refuse)
        done = rootstock(*command, check=False)
    (line,) = error_lines(done)
    assert "checkpoint 8 cannot be read" in line and "run the same command again" in line
    assert saved_steps(at(bucket) / "run") == [8, 4] and not (at(bucket) / "run" / "damaged").exists()


@pytest.mark.integration
def test_rows_are_read_in_place_in_the_order_of_the_local_store(bucket, local):
    root, _ = local
    store = at(bucket) / "store"
    files.copy_tree(root / "store", store, last="manifest.json")
    here, there = (BatchFunction(PackedRows(open_store(where, "train"), 32), 8, 0) for where in (root / "store", store))
    for workers in (0, 2):
        batches = zip(train_batches(here, 3, 9, 0, 4), train_batches(there, 3, 9, workers, 4), strict=True)
        for expected, found in batches:
            assert expected.keys() == found.keys()
            assert all(np.array_equal(expected[name], found[name]) for name in expected)
    (store / "train" / "tokens-00000-of-00001.bin").unlink()
    with pytest.raises(UserError, match=r"tokens-00000-of-00001\.bin is missing"):
        there.source.rows(np.arange(3))
