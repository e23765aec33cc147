"""Several processes train like one: real processes on this machine, joined by JAX's own runtime, on tiny shapes.

The fast tests read what one job of two processes printed and wrote (`two_processes.py`); this process
makes the runs to compare with.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import mesh_of, random_documents

from configs.errors import UserError
from data.loader import BatchFunction, evaluation_batches
from data.packing import PackedRows
from data.store import store_from_documents
from tests.runs import ROOT, error_lines, last_loss, process_environment, records, rootstock, write_rows, write_text
from tests.train.distributed.two_processes import FINETUNE, PRETRAIN, STEPS
from train.distributed.placement import batch_places
from train.distributed.processes import run_together
from train.profiling.files import trace_files
from train.profiling.summary import newest_profile, summarize

SECONDS = 240  # after which a job is considered hung; each takes a tenth of it on two idle cores
JOB = ROOT / "tests" / "train" / "distributed" / "two_processes.py"


def spawn(count, devices, *command, changes=None):
    """Runs `python COMMAND` in `count` processes that join, and returns what each printed.

    Args:
        count: processes.
        devices: devices per process.
        command: arguments of python; "{i}" becomes the number of the process.
        changes: {process: environment variables of it alone}.
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    running = []
    for i in range(count):
        environment = process_environment(devices)
        if count > 1:
            environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
            environment |= {"JAX_PROCESS_ID": str(i)}
        running.append(
            subprocess.Popen(
                [sys.executable, *(str(argument).replace("{i}", str(i)) for argument in command)],
                cwd=ROOT, env=environment | (changes or {}).get(i, {}), text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    deadline = time.monotonic() + SECONDS
    try:
        printed = [process.communicate(timeout=max(deadline - time.monotonic(), 0)) for process in running]
    finally:
        for process in running:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, out, err)
        for process, (out, err) in zip(running, printed, strict=True)
    ]


def pretrain(text, workdir, count, devices, *flags):
    """Pre-trains in `count` processes and requires success."""
    command = ("-m", "train", *PRETRAIN, f"--config.data.path={text}", f"--workdir={workdir}", *flags)
    done = spawn(count, devices, *command)
    assert [process.returncode for process in done] == [0] * count, [process.stderr for process in done]
    return done


def pretrain_here(text, workdir):
    return rootstock(*PRETRAIN, f"--config.data.path={text}", f"--workdir={workdir}")


def losses(workdir):
    """Returns the losses of all steps, each logged once and in order, and then of the evaluation."""
    lines = [r for r in records(workdir) if r["phase"] != "goodput"]
    assert [(r["phase"], r["step"]) for r in lines] == [("train", s + 1) for s in range(STEPS)] + [("eval", STEPS)]
    return [r["loss"] for r in lines]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with the text and the rows that the job reads, in which it writes its runs."""
    folder = tmp_path_factory.mktemp("job")
    whole = write_text(folder / "text.txt", 100, ["the", "cat", "sat", "on", "a", "mat"]).read_text()
    (folder / "tail.txt").write_text(whole[int(len(whole) * 0.9) :])
    write_rows(folder / "rows.jsonl", 80)
    return folder


@pytest.fixture(scope="module")
def text(folder):
    return folder / "text.txt"


@pytest.fixture(scope="module")
def one(text, folder):
    """A run of one process, to compare with."""
    pretrain_here(text, folder / "one")
    return folder / "one"


@pytest.fixture(scope="module")
def job(folder):
    """Returns (the two finished processes, what each printed in each check)."""
    done = spawn(2, 1, JOB, folder)
    outputs = [folder / f"output-{i}.json" for i in range(2)]
    assert all(output.exists() for output in outputs), "\n".join(process.stderr[-2000:] for process in done)
    return done, [json.loads(output.read_text()) for output in outputs]


@pytest.fixture(scope="module")
def four(text, tmp_path_factory):
    """Returns a run of four processes with one device each, and the finished processes."""
    workdir = tmp_path_factory.mktemp("runs") / "four"
    return workdir, pretrain(text, workdir, 4, 1, "--config.mesh.fsdp=2", "--config.logging.profile_steps=(2,2)")


def hosts(mesh, count):
    """Returns the devices of each of `count` hosts, as JAX numbers them."""
    return np.array(sorted(mesh.devices.flat, key=lambda device: device.id)).reshape(count, -1).tolist()


@pytest.mark.parametrize(
    "axes", [{"data": 8}, {"data": 2, "fsdp": 4}, {"data": 4, "tensor": 2}, {"fsdp": 4, "context": 2}]
)
def test_hosts_together_read_each_row_of_the_batch_once(axes):
    mesh = mesh_of(**axes)
    places = [batch_places(mesh, 16, devices).tolist() for devices in hosts(mesh, 4)]
    assert [row for rows in places for row in rows] == list(range(16))


def test_hosts_on_one_context_or_tensor_axis_read_the_same_rows():
    across = mesh_of(data=2, context=4)
    assert [batch_places(across, 4, devices).tolist() for devices in hosts(across, 4)] == [[0, 1]] * 2 + [[2, 3]] * 2
    whole = mesh_of(tensor=8)
    assert [batch_places(whole, 4, devices).tolist() for devices in hosts(whole, 2)] == [[0, 1, 2, 3]] * 2


def test_the_rows_of_a_host_need_not_be_adjacent():
    mesh = mesh_of(fsdp=4)
    assert batch_places(mesh, 8, [mesh.devices.flat[0], mesh.devices.flat[2]]).tolist() == [0, 1, 4, 5]


def test_a_host_reads_only_its_own_rows():
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


@pytest.mark.integration
def test_two_processes_train_like_one(job, folder, one):
    _, (first, second) = job
    np.testing.assert_allclose(losses(folder / "trained"), losses(one), rtol=1e-5)
    assert "pretrain: done" in first["train"]["stderr"]
    quiet = [output for name, output in second.items() if name != "unreadable"]
    assert len(quiet) == 4 and not any(o["stderr"] + o["stdout"] for o in quiet), "only process 0 prints"
    checkpoint = folder / "trained" / "checkpoints" / str(STEPS) / "params"
    assert len(list(checkpoint.glob("ocdbt.process_*"))) == 2, "every process writes its part"


@pytest.mark.integration
def test_two_processes_that_share_rows_train_like_one(job, folder, one):
    np.testing.assert_allclose(losses(folder / "shared"), losses(one), rtol=1e-5)


@pytest.mark.integration
def test_a_run_of_two_processes_resumes_in_one(job, text, folder, one, tmp_path):
    workdir = shutil.copytree(folder / "trained", tmp_path / "fewer")
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    assert "resumed at step 3" in pretrain_here(text, workdir).stderr
    np.testing.assert_allclose(losses(workdir), losses(one), rtol=1e-5)


@pytest.mark.integration
def test_a_checkpoint_that_one_process_cannot_read_is_skipped_by_all(job, folder, one):
    _, (first, _) = job
    assert f"checkpoint {STEPS} is damaged (another process cannot read it)" in first["unreadable"]["stderr"]
    assert "resumed at step 3" in first["unreadable"]["stderr"]
    np.testing.assert_allclose(losses(folder / "damaged"), losses(one), rtol=1e-5)


@pytest.mark.integration
def test_evaluation_in_two_processes_gives_the_figures_of_one(job, folder):
    _, (first, second) = job
    flags = (f"--run={folder / 'trained'}", f"--text={folder / 'tail.txt'}", "--json")
    alone = json.loads(rootstock("evaluate", *flags).stdout)
    assert json.loads(first["evaluate"]["stdout"]) == pytest.approx(alone, rel=1e-5)
    assert second["evaluate"]["stdout"] == ""


@pytest.mark.integration
def test_finetuning_in_two_processes_gives_the_figures_of_one(job, folder, tmp_path):
    _, (first, second) = job
    data = f"--config.data.path={folder / 'rows.jsonl'}"
    rootstock(*FINETUNE, f"--init_from={folder / 'trained'}", data, f"--workdir={tmp_path / 'tuned'}")
    assert "fine-tuned" in first["fine-tune"]["stdout"] and second["fine-tune"]["stdout"] == ""
    results = [json.loads((run / "results.json").read_text()) for run in (tmp_path / "tuned", folder / "tuned")]
    for published in results:
        published["training"].pop("seconds")
        published.pop("costs")
    one, two = (jax.tree.leaves_with_path(published) for published in results)
    for (path, a), (other_path, b) in zip(one, two, strict=True):
        assert path == other_path and (b == pytest.approx(a, rel=1e-4) if isinstance(a, float) else a == b), path
    assert last_loss(folder / "tuned") == pytest.approx(last_loss(tmp_path / "tuned"), rel=1e-5)


@pytest.mark.integration
def test_an_error_of_one_process_ends_all_with_its_message(job, folder):
    (first, second), _ = job
    error = f"--workdir={folder}/1 is not the directory that process 0 has"
    assert f"rootstock: error: process 1: {error}" in first.stderr.splitlines()[-1]
    assert f"rootstock: error: {error}" in second.stderr.splitlines()[-1]
    assert (first.returncode, second.returncode) == (1, 1)
    assert "Traceback" not in first.stderr + second.stderr


@pytest.mark.slow
def test_each_of_four_processes_writes_its_profile(four):
    workdir, done = four
    directory = newest_profile(workdir)
    assert directory is not None and directory.name == "steps-2-3"
    assert [path.name for path in trace_files(directory)] == [f"process-{i}.xplane.pb" for i in range(4)]
    summary = summarize(directory)
    assert (summary.devices, summary.steps, summary.window.devices) == (4, 2, 4)
    assert summary.kinds()["collectives"] > 0 and summary.kinds()["products"] > 0
    assert sum("are profiled" in process.stderr for process in done) == 1, "only process 0 prints"


@pytest.mark.slow
def test_four_processes_train_like_one(one, four):
    workdir, done = four
    np.testing.assert_allclose(losses(workdir), losses(one), rtol=1e-5)
    assert "pretrain: done" in done[0].stderr and [process.stderr for process in done[1:]] == [""] * 3
    checkpoint = workdir / "checkpoints" / str(STEPS) / "params"
    assert len(list(checkpoint.glob("ocdbt.process_*"))) == 4, "every process writes its part"


@pytest.mark.slow
@pytest.mark.parametrize(("count", "devices"), [(2, 2), (1, 1)])
def test_a_run_of_four_processes_resumes_in_fewer(text, one, four, tmp_path, count, devices):
    workdir = shutil.copytree(four[0], tmp_path / "fewer")
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    done = pretrain(text, workdir, count, devices)
    assert "resumed at step 3" in done[0].stderr
    np.testing.assert_allclose(losses(workdir), losses(one), rtol=1e-5)


@pytest.mark.slow
def test_a_wrong_number_of_processes_ends_all_with_one_line(text, tmp_path):
    command = ("-m", "train", *PRETRAIN, f"--config.data.path={text}", f"--workdir={tmp_path}/run")
    done = spawn(2, 1, *command, changes={1: {"JAX_NUM_PROCESSES": "3"}})
    for process in done:
        assert process.returncode == 1
        last = process.stderr.splitlines()[-1]
        assert last.startswith("rootstock: error: ") and "3 processes" in last


def join(seconds, **environment):
    """Joins a cluster in a process of its own: this one's devices are in use already."""
    code = (
        "import jax\nfrom configs.errors import UserError, end\nfrom train.distributed.processes import run_together\n"
        f"try: run_together(lambda: print('joined', jax.distributed.is_initialized()), {seconds})\n"
        "except UserError as error: end(str(error), 1)"
    )
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=60
    )


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.mark.integration
def test_a_process_without_a_cluster_runs_alone():
    assert join(1).stdout == "joined False\n"


@pytest.mark.parametrize("environment", [{"JAX_NUM_PROCESSES": "1"}, SLURM | {"SLURM_NTASKS": "1"}])
def test_a_cluster_of_one_process_is_not_joined(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    joined = []
    run_together(lambda: joined.append(jax.distributed.is_initialized()), 1)
    assert joined == [False]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}, "localhost:1"),
        pytest.param(
            SLURM | {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"},
            "localhost:61447", marks=pytest.mark.slow,
        ),
        pytest.param(
            {"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
            "process_id=2", marks=pytest.mark.slow,
        ),
        pytest.param(
            {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
            "coordinator_address should be defined", marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_a_cluster_that_cannot_be_joined_is_a_one_line_error(environment, expected):
    done = join(2, **environment)
    (line,) = error_lines(done)
    assert done.returncode == 1 and expected in line
    assert "Traceback" not in done.stderr


def test_a_number_of_processes_that_is_not_a_number_is_an_error(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(UserError, match=r"JAX_NUM_PROCESSES.*'two'"):
        run_together(lambda: None, 1)


@pytest.mark.integration
def test_a_process_that_jax_aborts_ends_with_one_line():
    code = (
        "import ctypes, os, signal\n"
        "from train.distributed import processes\n"
        "processes.jax_distributed.global_state.process_id = 1\n"
        "ctypes.CDLL(None).signal(signal.SIGABRT, processes._on_abort)\n"
        "os.abort()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("rootstock: error: JAX ended this process, most likely")
