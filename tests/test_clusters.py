"""Tests of the cluster scripts and the commands in docs/clusters.md, with stand-ins for `gcloud` and `srun`."""

import importlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data.prepare import StoreOptions, prepare
from data.store import read_manifest
from tests.cpu import cpu_flags
from train import cli
from train.settings import from_config

ROOT = Path(__file__).resolve().parents[1]
CLUSTERS = ROOT / "docs" / "clusters"
SLICE = {
    "TPU_NAME": "slice", "ZONE": "zone", "ACCELERATOR_TYPE": "v5litepod-16", "RUNTIME_VERSION": "v2-alpha-tpuv5-lite",
    "NFS": "10.0.0.2:/share",
}  # fmt: skip
# A stand-in for gcloud: records its arguments and runs the command for a host in the working directory.
GCLOUD = f"""#!{sys.executable}
import json, subprocess, sys
with open("calls.jsonl", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
for argument in sys.argv:
    if argument.startswith("--command=") and "nohup" in argument:
        subprocess.run(["bash", "-c", argument.removeprefix("--command=") + "; wait"], check=True)
"""
# A stand-in for srun: starts two tasks on this machine, with the variables that Slurm sets.
SRUN = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" > task1.log 2>&1 &
SLURM_PROCID=0 SLURM_LOCALID=0 "$@"
code=$?
wait $! && exit $code
"""


def manifest():
    return {part["kind"]: part for part in yaml.safe_load_all((CLUSTERS / "kubernetes.yaml").read_text())}


def container():
    return manifest()["Job"]["spec"]["template"]["spec"]["containers"][0]


def test_documented_commands_are_valid(monkeypatch):
    monkeypatch.setattr(cli, "end", pytest.fail)
    page = (ROOT / "docs" / "clusters.md").read_text().replace("\\\n", " ")
    lines = re.findall(r"(?:rootstock|tpu_vm\.sh run|slurm\.sh) +(pretrain [^\n\"&]+)", page)
    commands = [shlex.split(line) for line in lines] + [container()["args"][1:]]
    assert len(commands) == 5
    for name, *arguments in commands:
        values = cli.parse(name, importlib.import_module(f"train.commands.{name}"), arguments)
        settings = from_config(values.config.to_dict())
        assert values.workdir and settings.data.path and settings.batch_size % 16 == 0


def test_kubernetes_pods_find_process_zero():
    service, job = manifest()["Service"], manifest()["Job"]
    pods, environment = job["spec"]["template"]["spec"], {e["name"]: e for e in container()["env"]}
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    assert pods["subdomain"] == service["metadata"]["name"]
    first = f"{job['metadata']['name']}-0.{pods['subdomain']}:"
    assert environment["JAX_COORDINATOR_ADDRESS"]["value"].startswith(first)
    assert environment["JAX_NUM_PROCESSES"]["value"] == str(job["spec"]["completions"])
    assert job["spec"]["completionMode"] == "Indexed" and job["spec"]["parallelism"] == job["spec"]["completions"]


@pytest.mark.parametrize("script", sorted(CLUSTERS.glob("*.sh")), ids=lambda path: path.name)
def test_cluster_script_is_valid_bash(script):
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)


def write_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def tpu_script(directory, *arguments):
    """Runs tpu_vm.sh with stand-ins for gcloud and git; returns (stdout, calls of gcloud)."""
    write_program(directory / "bin" / "gcloud", GCLOUD)
    write_program(directory / "bin" / "git", "#!/bin/sh\n")
    environment = os.environ | SLICE | {"PATH": f"{directory / 'bin'}:{os.environ['PATH']}", "TMPDIR": str(directory)}
    done = subprocess.run(
        [CLUSTERS / "tpu_vm.sh", *arguments], cwd=directory, env=environment, capture_output=True, text=True, check=True
    )
    calls = directory / "calls.jsonl"
    return done.stdout, [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("create", ["create slice --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite"]),
        ("setup", ["scp {tmp}/rootstock.tar.gz slice: --worker=all", *["ssh slice --worker=all"] * 2]),
        ("logs", ["ssh slice --worker=0"]),
        ("stop", ["ssh slice --worker=all"]),
        ("delete", ["delete slice --quiet"]),
    ],
)  # fmt: skip
def test_tpu_script_calls_gcloud(action, expected, tmp_path):
    printed, calls = tpu_script(tmp_path, "--dry-run", action)
    assert not calls and printed.count("gcloud compute tpus tpu-vm") == len(expected)
    _, calls = tpu_script(tmp_path, action)
    for call, words in zip(calls, expected, strict=True):
        wanted = words.format(tmp=tmp_path).split()
        assert call[:3] == ["compute", "tpus", "tpu-vm"] and call[3 : 3 + len(wanted)] == wanted
        assert call[-1] == "--zone=zone"
        command = "".join(argument.removeprefix("--command=") for argument in call if argument.startswith("--command="))
        subprocess.run(["bash", "-n", "-c", command], check=True)


def test_tpu_script_passes_arguments_to_rootstock_unchanged(tmp_path):
    write_program(tmp_path / "rootstock" / ".venv" / "bin" / "rootstock", '#!/bin/sh\nprintf "%s\\n" "$@"\n')
    arguments = ["pretrain", "--config=a b.py", "--config.data.path=/shared/*.txt"]
    tpu_script(tmp_path, "run", *arguments)
    assert (tmp_path / "run.log").read_text().splitlines() == arguments
    assert (tmp_path / "run.pid").read_text().strip().isdecimal()


def free_job():
    """Returns a Slurm job number whose port, which JAX derives from the number, is free."""
    for job in range(4096):
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", 61440 + job)):
                return job
    raise AssertionError("no port is free")


@pytest.mark.slow
def test_the_slurm_script_joins_its_tasks(tmp_path):
    write_program(tmp_path / "bin" / "srun", SRUN)
    write_program(tmp_path / "rootstock", f'#!/bin/sh\nexec "{sys.executable}" -m train "$@"\n')
    (tmp_path / "text.txt").write_text("the cat sat on the mat\n" * 100)
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        "ROOTSTOCK": str(tmp_path / "rootstock"), "SLURM_JOB_ID": str(free_job()),
        "XLA_FLAGS": cpu_flags(1),
    }  # fmt: skip
    done = subprocess.run(
        [CLUSTERS / "slurm.sh", "pretrain", "--config=configs/pretrain/tiny.py", f"--workdir={tmp_path / 'run'}",
         f"--config.data.path={tmp_path / 'text.txt'}", "--config.data.validation_split=tail",
         "--config.tokenizer=bytes", "--config.model.num_layers=1", "--config.model.embed_dim=32",
         "--config.model.num_heads=2", "--config.model.num_kv_heads=2", "--config.sequence_length=16",
         "--config.batch_size=4", "--config.num_steps=2", "--config.optimizer.warmup_steps=1"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "data 2" in done.stderr and "pretrain: done" in done.stderr
    assert "pretrain: done" not in (tmp_path / "task1.log").read_text()


# A stand-in for sbatch: runs the tasks of an array at once, the last one first, and prints the number of the job.
SBATCH = f"""#!{sys.executable}
import os, re, subprocess, sys
options = dict(argument.split("=", 1) for argument in sys.argv[1:] if argument.startswith("--") and "=" in argument)
with open("calls.txt", "a") as file:
    print(options["--array"], options.get("--dependency"), file=file)
for task in reversed(range(int(options["--array"].removeprefix("0-")) + 1)):
    subprocess.run(["bash", "-c", sys.argv[-1]], env=os.environ | {{"SLURM_ARRAY_TASK_ID": str(task)}}, check=True,
                   stdout=sys.stderr)
print(len(open("calls.txt").readlines()))
"""


@pytest.mark.slow
def test_the_slurm_script_of_prepare_makes_a_store(tmp_path):
    write_program(tmp_path / "bin" / "sbatch", SBATCH)
    write_program(tmp_path / "rootstock", f'#!/bin/sh\nexec "{sys.executable}" -m train "$@"\n')
    (tmp_path / "a b.jsonl").write_text("\n".join(json.dumps({"text": f"text {n} of a file"}) for n in range(3000)))
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        "ROOTSTOCK": str(tmp_path / "rootstock"), "ARRAY": "2", "CPUS": "1", "SBATCH_ARGS": "--partition=cpu --mem=1G",
    }  # fmt: skip
    arguments = [f"--input={tmp_path}/a b.jsonl", f"--output={tmp_path}/store", "--tokenizer=bytes"]
    sizes = ["--unit_megabytes=0.02", "--shard_megabytes=0.02", "--processes=1"]
    done = subprocess.run(
        ["bash", str(CLUSTERS / "prepare.sh"), *arguments, *sizes],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = ["0-1 None", "0-1 afterok:1", "0-0 afterok:2", "0-1 afterok:3", "0-1 afterok:4", "0-0 afterok:5"]
    assert (tmp_path / "calls.txt").read_text().splitlines() == expected
    parts = read_manifest(tmp_path / "store")["splits"]["train"]
    options = StoreOptions("bytes", validation_fraction=0.1)
    whole = prepare(f"{tmp_path}/a b.jsonl", tmp_path / "whole", options)["splits"]["train"]
    assert parts["sha256"] == whole["sha256"] and len(parts["shards"]) > len(whole["shards"]) == 1
