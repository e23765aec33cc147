"""One store for any number of processes, size of units and shards, engine and place, and after kills."""

import hashlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from data.engines import Engine, cores
from data.preparation.unit_files import done_jobs
from data.preparation.workspace import folder_of
from data.prepare import Execution, NotYet, StoreOptions, prepare
from data.storage.files import copy_file, files_below
from data.storage.paths import at
from data.store import open_store, read_manifest
from data.store_check import verify_store
from tests.data.preparation.corpus import COLLECTED, EXPECTED, OPTIONS, write_corpus

ROOT = Path(__file__).resolve().parents[3]
ALL_IN_ONE = 1 << 28


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def divided(processes=1, unit=ALL_IN_ONE, shard=ALL_IN_ONE, **engine):
    return Execution(Engine(processes=processes, **engine), unit, shard)


def make(source, output, options, execution, progress=lambda *step: None):
    return prepare(source, output, StoreOptions(**OPTIONS[options]), execution=execution, progress=progress)


def content(path):
    """Returns {split: the SHA-256 of its tokens and of its offsets, as one file each}, from the files alone."""
    found = {}
    for split in read_manifest(path)["splits"]:
        folder = path / split
        names = sorted(file.name for file in folder.iterdir())
        tokens, offsets = hashlib.sha256(), [np.zeros(1, np.int64)]
        for name in (name for name in names if name.startswith("tokens")):
            tokens.update((folder / name).read_bytes())
        for name in (name for name in names if name.startswith("offsets")):
            offsets.append(np.load(io.BytesIO((folder / name).read_bytes()))[1:] + offsets[-1][-1])
        file = io.BytesIO()
        np.save(file, np.concatenate(offsets))
        found[split] = (tokens.hexdigest(), hashlib.sha256(file.getvalue()).hexdigest())
    return found


def check(path, options):
    """Checks that a store has the content that version 1 had, and says so itself."""
    assert content(path) == EXPECTED[options]
    verify_store(path)
    manifest = read_manifest(path)
    assert manifest["collected"] == COLLECTED
    for split, digests in EXPECTED[options].items():
        assert tuple(manifest["splits"][split]["sha256"].values()) == digests
        store = open_store(path, split)
        assert len(store.offsets) - 1 == manifest["splits"][split]["documents"]
    assert not folder_of(path).exists()


@pytest.mark.parametrize(
    ("options", "unit", "shard"),
    [
        ("documents", ALL_IN_ONE, ALL_IN_ONE),
        ("documents", 150_000, 40_000),
        ("documents", 20_011, 200_000),
        ("tail", 30_000, 40_000),
        ("whole", 60_000, 200_000),
    ],
)
def test_units_and_shards_do_not_change_a_store(tmp_path, source, options, unit, shard):
    manifest = make(source, tmp_path / "store", options, divided(unit=unit, shard=shard))
    check(tmp_path / "store", options)
    sizes = [size.stat().st_size for size in (tmp_path / "store" / "train").glob("tokens-*")]
    assert len(sizes) == len(manifest["splits"]["train"]["shards"])
    assert (len(sizes) == 1) == (shard == ALL_IN_ONE) and max(sizes) <= 1.2 * shard


@pytest.mark.parametrize(("processes", "unit"), [(2, 60_000), (4, 100_000)])
def test_processes_do_not_change_a_store(tmp_path, source, processes, unit):
    make(source, tmp_path / "store", "documents", divided(processes, unit, 60_000))
    check(tmp_path / "store", "documents")


def test_parts_of_an_array_do_not_change_a_store(tmp_path, source):
    """Commands with --unit=I/N, each of which does its part of one stage, in an order that Slurm may choose."""
    rounds = 0
    while not (tmp_path / "store" / "manifest.json").exists():
        rounds += 1
        for part in (2, 0, 1):
            try:
                make(source, tmp_path / "store", "documents", divided(unit=50_000, shard=60_000, part=(part, 3)))
            except NotYet as reason:
                assert " is done" in str(reason) or " are done" in str(reason) or "not done" in str(reason)
                continue
            break
    assert 4 <= rounds <= 6
    check(tmp_path / "store", "documents")


def test_parts_must_be_of_one_command(tmp_path, source):
    with pytest.raises(NotYet):
        make(source, tmp_path / "store", "documents", divided(unit=50_000, part=(0, 3)))
    with pytest.raises(UserError, match="was begun with other text or options; delete it, or give the same"):
        make(source, tmp_path / "store", "tail", divided(unit=50_000, part=(1, 3)))
    with pytest.raises(UserError, match="was begun with other text or options"):
        make(source, tmp_path / "store", "documents", divided(unit=60_000, part=(1, 3)))
    # A command for everything begins again.
    make(source, tmp_path / "store", "tail", divided(unit=100_000))
    check(tmp_path / "store", "tail")


KILLED = """
import os, signal, sys
from data.engines import Engine
from data.prepare import Execution, StoreOptions, prepare
from tests.data.preparation.corpus import OPTIONS

def progress(stage, done, total):
    if stage == sys.argv[3] and done >= 1:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    engine = Engine(processes=int(sys.argv[4]))
    options = StoreOptions(**OPTIONS["documents"])
    prepare(sys.argv[1], sys.argv[2], options, progress=progress, execution=Execution(engine, 60_000, 60_000))
"""
STAGES = {
    "hashing files": "scan", "reading": "read", "training the tokenizer": "split", "tokenizing": "tokenize",
    "writing shards": "gather",
}  # fmt: skip


def test_a_store_after_sigkill_in_each_stage(tmp_path, source):
    """Each command is killed in a later stage than the one before; what is done is not done again."""
    (tmp_path / "killed.py").write_text(KILLED)
    output = tmp_path / "store"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = {}
    for number, (title, stage) in enumerate(STAGES.items()):
        command = [sys.executable, str(tmp_path / "killed.py"), source, str(output), title, "2" if number == 3 else "1"]
        assert subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == -signal.SIGKILL
        folder = folder_of(output)
        assert not output.exists() and done_jobs(folder, stage)
        times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")}
        assert {name: times[name] for name in done} == done
        done = times
    make(source, output, "documents", divided(unit=60_000, shard=60_000))
    check(output, "documents")


def test_a_store_has_no_file_that_a_killed_process_was_writing(tmp_path, source):
    output = tmp_path / "store"
    left = [
        folder_of(output) / "store" / name
        for name in (".manifest.json.7.tmp", "train/.tokens-00000-of-00001.bin.7.tmp")
    ]

    def killed(stage, done, total):
        if stage == "writing shards" and done:
            for path in left:
                path.write_bytes(b"the beginning")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(source, output, "documents", divided(unit=60_000), killed)
    assert all(path.exists() for path in left)
    make(source, output, "documents", divided(unit=60_000))
    assert not list(output.rglob(".*"))
    check(output, "documents")


def test_the_processes_of_a_killed_command_end(tmp_path, source):
    code = KILLED.replace("os.kill(os.getpid(), signal.SIGKILL)", PRINT_CHILDREN)
    (tmp_path / "killed.py").write_text(code)
    command = [sys.executable, str(tmp_path / "killed.py"), source, str(tmp_path / "store"), "reading", "2"]
    found = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    # The pipes of the output close when the last process that has them ends; until then `run` waits.
    assert found.returncode == -signal.SIGKILL and len(found.stdout.split()) == 2


PRINT_CHILDREN = """
        import multiprocessing
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("change", ["text", "options"])
def test_what_was_begun_for_another_request_is_not_used(tmp_path, source, change):
    copy = shutil.copytree(source, tmp_path / "in")

    def interrupt(stage, done, total):
        if stage == "tokenizing":
            raise KeyboardInterrupt

    changed = {"options": "tail"}.get(change, "documents")
    if change == "text":
        text = (copy / "a.jsonl").read_text()
        (copy / "a.jsonl").write_text('{"text": "other"}\n' * 50 + text)
    with pytest.raises(KeyboardInterrupt):
        make(str(copy), tmp_path / "store", changed, divided(unit=60_000), interrupt)
    assert len(done_jobs(folder_of(tmp_path / "store"), "read")) > 1
    if change == "text":
        (copy / "a.jsonl").write_text(text)
    make(str(copy), tmp_path / "store", "documents", divided(unit=60_000))
    check(tmp_path / "store", "documents")


@pytest.mark.parametrize(
    ("limit", "processes"), [(2_000, 1), (12_000, 1), (40_000, 1), pytest.param(20_000, 2, marks=pytest.mark.slow)]
)
def test_a_full_disk_is_one_line_and_the_same_command_continues(tmp_path, limit, processes):
    """Files that may not grow beyond a limit fail with EFBIG as a full disk does with ENOSPC."""
    texts = [f"Document {number} of a text: {'word ' * (number % 37)}{number}" for number in range(1000)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = StoreOptions("bytes", validation_fraction=0.1)

    def run(name):
        execution = divided(processes, unit=10_000)
        return prepare(str(tmp_path / "in.jsonl"), tmp_path / name, options, execution=execution)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(
            UserError, match=r"store\S* cannot be read or written: File too large; run the same"
        ) as error:
            run("store")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert run("store")["splits"] == run("other")["splits"]


def test_two_commands_for_one_store(tmp_path, source):
    def again(stage, done, total):
        with pytest.raises(UserError, match="store is being made by another command"):
            make(source, tmp_path / "store", "documents", divided())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(source, tmp_path / "store", "documents", divided(), again)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.integration
def test_buckets_do_not_change_a_store(tmp_path, source, bucket):
    """Input, stages and store in a bucket; the first command ends in the middle."""
    for file in files_below(Path(source)):
        copy_file(file, at(bucket) / "in" / file.name)
    output = at(bucket) / "store"
    execution = divided(unit=400_000, shard=150_000)

    def interrupt(stage, done, total):
        if stage == "tokenizing" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(f"{bucket}/in", output, "documents", execution, interrupt)
    assert len(done_jobs(folder_of(output), "tokenize")) == 2 and not (output / "manifest.json").exists()
    make(f"{bucket}/in", output, "documents", execution)
    check(output, "documents")
    with pytest.raises(UserError, match="prepared differently"):
        make(f"{bucket}/in", output, "tail", execution)
    (at(bucket) / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="mine exists and is not empty"):
        make(f"{bucket}/in", at(bucket) / "mine", "documents", execution)


def test_ray_does_not_change_a_store(tmp_path, source, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    make(source, tmp_path / "store", "documents", divided(2, 100_000, 60_000, name="ray"))
    ray.shutdown()
    check(tmp_path / "store", "documents")


def test_ray_that_is_not_installed_is_a_one_line_error(tmp_path, source, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--engine=ray needs the ray package: pip install -e '\.\[ray\]'"):
        make(source, tmp_path / "store", "documents", divided(2, 100_000, name="ray"))


def test_all_cores_by_default():
    assert Engine().processes == 0 and cores() == len(os.sched_getaffinity(0))
