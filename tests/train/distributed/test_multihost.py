"""Many processes train like one: real processes on this machine, joined by JAX's own runtime (gloo), on tiny shapes."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import mesh_of, random_documents

from data.loader import BatchFunction, evaluation_batches
from data.packing import PackedRows
from data.store import store_from_documents
from train.distributed.placement import batch_places

ROOT = Path(__file__).resolve().parents[3]
SECONDS = 240  # a test that hangs ends here; each takes a tenth of it on two idle cores
STEPS = 6
PRETRAIN = [
    "pretrain", "--config=configs/pretrain/tiny.py", "--config.tokenizer=chars",
    "--config.data.validation_split=tail", "--config.batch_size=8", "--config.sequence_length=16",
    "--config.model.embed_dim=32", "--config.model.num_layers=1", "--config.model.num_heads=2",
    "--config.model.num_kv_heads=2", "--config.model.mlp_dim=32", "--config.optimizer.warmup_steps=2",
    "--config.logging.every=1", f"--config.num_steps={STEPS}", "--config.checkpoint.every=3",
    f"--config.evaluation.every={STEPS}",
]  # fmt: skip


def spawn(count, devices, *arguments, changes=None):
    """Runs one command in `count` processes, "{i}" replaced by their number, and returns what each of them left."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    running = []
    for i in range(count):
        environment = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": str(ROOT),
        }
        if count > 1:
            environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
            environment |= {"JAX_PROCESS_ID": str(i)}
        command = [sys.executable, "-m", "train", *(str(a).replace("{i}", str(i)) for a in arguments)]
        running.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment | (changes or {}).get(i, {}), text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    deadline = time.monotonic() + SECONDS
    try:
        left = [process.communicate(timeout=max(deadline - time.monotonic(), 0)) for process in running]
    finally:
        for process in running:
            process.kill()
    return [
        # Gloo writes its greetings to stdout.
        subprocess.CompletedProcess(p.args, p.returncode, "".join(_without_gloo(out)), err)
        for p, (out, err) in zip(running, left, strict=True)
    ]


def _without_gloo(text):
    return [line for line in text.splitlines(keepends=True) if not line.startswith("[Gloo]")]


def pretrain(text, workdir, count, devices, *extra):
    done = spawn(count, devices, *PRETRAIN, f"--config.data.path={text}", f"--workdir={workdir}", *extra)
    assert [process.returncode for process in done] == [0] * count, [process.stderr for process in done]
    return done


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def last_loss(workdir):
    return [r["loss"] for r in records(workdir) if r["phase"] == "eval"][-1]


def losses(workdir):
    """Of all steps, each once and in order, then of the evaluation."""
    lines = [r for r in records(workdir) if r["phase"] != "goodput"]
    assert [(r["phase"], r["step"]) for r in lines] == [("train", s + 1) for s in range(STEPS)] + [("eval", STEPS)]
    return [r["loss"] for r in lines]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(" ".join(rng.choices(["the", "cat", "sat", "on", "a", "mat"], k=8)) for _ in range(100)))
    return path


@pytest.fixture(scope="module")
def one(text, tmp_path_factory):
    """A run of one process with four devices."""
    workdir = tmp_path_factory.mktemp("runs") / "one"
    pretrain(text, workdir, 1, 4)
    return workdir


@pytest.fixture(scope="module")
def four(text, tmp_path_factory):
    """A run of four processes with a device each, which share out rows and parameters; and what they said."""
    workdir = tmp_path_factory.mktemp("runs") / "four"
    return workdir, pretrain(text, workdir, 4, 1, "--config.mesh.fsdp=2")


def hosts(mesh, count):
    """The devices of each of `count` hosts, as JAX numbers them."""
    return np.array(sorted(mesh.devices.flat, key=lambda device: device.id)).reshape(count, -1).tolist()


@pytest.mark.parametrize(
    "axes", [{"data": 8}, {"data": 2, "fsdp": 4}, {"data": 4, "tensor": 2}, {"fsdp": 4, "context": 2}]
)
def test_hosts_read_the_batch_between_them_and_no_row_twice(axes):
    mesh = mesh_of(**axes)
    places = [batch_places(mesh, 16, devices).tolist() for devices in hosts(mesh, 4)]
    assert [place for host in places for place in host] == list(range(16))


def test_hosts_that_share_rows_read_the_same():
    across = mesh_of(data=2, context=4)
    assert [batch_places(across, 4, devices).tolist() for devices in hosts(across, 4)] == [[0, 1]] * 2 + [[2, 3]] * 2
    whole = mesh_of(tensor=8)
    assert [batch_places(whole, 4, devices).tolist() for devices in hosts(whole, 2)] == [[0, 1, 2, 3]] * 2


def test_a_hosts_rows_need_not_be_neighbours():
    mesh = mesh_of(fsdp=4)
    assert batch_places(mesh, 8, [mesh.devices.flat[0], mesh.devices.flat[2]]).tolist() == [0, 1, 4, 5]


def test_only_a_hosts_own_rows_are_read():
    class Spy(PackedRows):
        def rows(self, indices):
            read.extend(indices.tolist())
            return super().rows(indices)

    read = []
    rows = Spy(store_from_documents(random_documents(200)), 16)
    own = np.array([2, 3])
    whole = BatchFunction(rows, 8, seed=1).row_numbers(5).tolist()
    BatchFunction(rows, 8, 1, own)(5)
    assert read == [whole[2], whole[3]]
    read.clear()
    list(evaluation_batches(rows, 8, 2, own))
    assert read == [2, 3, 10, 11]


def test_four_processes_train_like_one(one, four):
    workdir, done = four
    np.testing.assert_allclose(losses(workdir), losses(one), rtol=1e-5)
    assert "pretrain: done" in done[0].stderr and [process.stderr for process in done[1:]] == [""] * 3
    checkpoint = workdir / "checkpoints" / str(STEPS) / "params"
    assert len(list(checkpoint.glob("ocdbt.process_*"))) == 4, "every process writes its part"


def test_two_processes_that_share_rows_train_like_one(text, one, tmp_path):
    pretrain(text, tmp_path / "two", 2, 2, "--config.mesh.context=4")
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(one), rtol=1e-5)


@pytest.mark.parametrize(("count", "devices"), [(2, 2), (1, 1)])
def test_a_run_of_four_processes_goes_on_in_fewer(text, one, four, tmp_path, count, devices):
    workdir = tmp_path / "fewer"
    shutil.copytree(four[0], workdir)
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    done = pretrain(text, workdir, count, devices)
    assert "resumed at step 3" in done[0].stderr
    np.testing.assert_allclose(losses(workdir), losses(one), rtol=1e-5)


def test_a_checkpoint_that_one_process_cannot_read_is_passed_over_by_all(text, one, four, tmp_path):
    workdir = tmp_path / "damaged"
    shutil.copytree(four[0], workdir)
    part = workdir / "checkpoints" / str(STEPS) / "params" / "ocdbt.process_1" / "d"
    for file in part.iterdir():
        os.truncate(file, 10)
    # The second half of the embedding, which the second process alone needs, was written by process 1 of four.
    done = pretrain(text, workdir, 2, 1, "--config.mesh.fsdp=2")
    assert f"checkpoint {STEPS} is damaged (another process cannot read it)" in done[0].stderr
    assert "resumed at step 3" in done[0].stderr
    np.testing.assert_allclose(losses(workdir), losses(one), rtol=1e-5)


def test_evaluation_is_shared_out_and_its_figures_are_of_all(text, four, tmp_path):
    tail = tmp_path / "tail.txt"
    tail.write_text(text.read_text()[int(len(text.read_text()) * 0.9) :])
    first, second = spawn(2, 1, "evaluate", f"--run={four[0]}", f"--text={tail}", "--json")
    alone = spawn(1, 2, "evaluate", f"--run={four[0]}", f"--text={tail}", "--json")[0]
    assert json.loads(first.stdout) == pytest.approx(json.loads(alone.stdout), rel=1e-5)
    assert (second.returncode, second.stdout) == (0, "")


def test_finetuning_in_two_processes_gives_the_figures_of_one(four, tmp_path):
    rows = [{"text": "the cat sat" if i % 2 else "on a mat", "label": str(i % 2)} for i in range(80)]
    rows = [row | {"text": f"{row['text']} {i}"} for i, row in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    published = []
    for count, devices in ((1, 2), (2, 1)):
        workdir = tmp_path / f"in_{count}"
        done = spawn(
            count, devices, "finetune", "--config=configs/finetune/email_spam.py", f"--init_from={four[0]}",
            f"--workdir={workdir}", f"--config.data.path={tmp_path / 'rows.jsonl'}", "--config.batch_size=4",
            "--config.sequence_length=16", "--config.num_steps=3", "--config.task.baseline=False",
        )  # fmt: skip
        assert [process.returncode for process in done] == [0] * count, [process.stderr for process in done]
        assert ["fine-tuned" in process.stdout for process in done] == [True] + [False] * (count - 1)
        published.append((json.loads((workdir / "results.json").read_text()), last_loss(workdir)))
    (one, one_loss), (two, two_loss) = published
    # Only the clock tells them apart.
    assert one["training"].pop("seconds").keys() == two["training"].pop("seconds").keys()
    assert one["training"].pop("held_out") == pytest.approx(two["training"].pop("held_out"), rel=1e-5)
    assert one == two and two_loss == pytest.approx(one_loss, rel=1e-5)


def test_an_error_of_one_process_ends_all_with_its_line(text, tmp_path):
    first, second = spawn(2, 1, *PRETRAIN, f"--config.data.path={text}", f"--workdir={tmp_path}/{{i}}")
    fault = f"--workdir={tmp_path}/1 is not the directory that process 0 has"
    assert f"rootstock: error: process 1: {fault}" in first.stderr.splitlines()[-1]
    assert f"rootstock: error: {fault}" in second.stderr.splitlines()[-1]
    assert (first.returncode, second.returncode) == (1, 1)
    assert "Traceback" not in first.stderr + second.stderr


def test_a_wrong_number_of_processes_ends_all_with_one_line(text, tmp_path):
    done = spawn(2, 1, *PRETRAIN, f"--config.data.path={text}", f"--workdir={tmp_path}/run",
                 changes={1: {"JAX_NUM_PROCESSES": "3"}})  # fmt: skip
    for process in done:
        assert process.returncode == 1
        assert "it is configured for 3 processes, process 0 for 2" in process.stderr.splitlines()[-1]


def join(seconds, **environment):
    code = (
        "import jax\nfrom configs.errors import UserError, end\nfrom train.distributed.processes import run_together\n"
        f"try: run_together(lambda: print('joined', jax.distributed.is_initialized()), {seconds})\n"
        "except UserError as error: end(str(error), 1)"
    )
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=60
    )


def test_without_a_cluster_nothing_is_joined():
    slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    for environment in ({}, {"JAX_NUM_PROCESSES": "1"}, slurm | {"SLURM_NTASKS": "1"}):
        assert join(1, **environment).stdout == "joined False\n"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
         "not all processes joined localhost:1 within 2 s"),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_PROCID": "1",
          "SLURM_LOCALID": "1"}, "not all processes joined localhost:61447"),
        ({"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "process_id=2"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, "coordinator_address should be defined"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES='two'"),
    ],
)  # fmt: skip
def test_a_cluster_that_cannot_be_joined_is_one_line(environment, expected):
    done = join(2, **environment)
    errors = [line for line in done.stderr.splitlines() if line.startswith("rootstock: error:")]
    assert done.returncode == 1 and len(errors) == 1 and expected in errors[0], done.stderr
    assert "Traceback" not in done.stderr


def test_a_process_that_jax_aborts_has_a_last_word():
    code = (
        "import ctypes, os, signal\n"
        "from train.distributed import processes as distributed\n"
        "distributed.jax_distributed.global_state.process_id = 1\n"
        "ctypes.CDLL(None).signal(signal.SIGABRT, distributed._on_abort)\n"
        "os.abort()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("rootstock: error: JAX ended this process, most likely")
