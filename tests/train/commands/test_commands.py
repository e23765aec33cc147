"""The commands end to end on small text: train, kill, resume, graft, score, continue; and every wrong input."""

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.damage import flip_a_bit

ROOT = Path(__file__).resolve().parents[3]
SMALL = [
    "--config.batch_size=8", "--config.sequence_length=32", "--config.model.embed_dim=32",
    "--config.model.num_layers=2", "--config.model.num_heads=2", "--config.model.num_kv_heads=2",
    "--config.model.mlp_dim=64", "--config.optimizer.warmup_steps=4", "--config.logging.every=5",
]  # fmt: skip
STEPS = ["--config.num_steps=40", "--config.checkpoint.every=10", "--config.evaluation.every=20"]
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "dog", "run", "far", "away", "home", "again"]


def command(*arguments, devices=1, check=True):
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-m", "train", *map(str, arguments)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stderr
    return done


def pretrain(text, workdir, *extra, **options):
    return command(
        "pretrain", "--config=configs/pretrain/tiny.py", f"--config.data.path={text}", f"--workdir={workdir}",
        "--config.tokenizer=chars", "--config.data.validation_split=tail", *SMALL, *STEPS, *extra, **options,
    )  # fmt: skip


def arrays_of(workdir, step):
    """The bytes of a checkpoint's parameters and optimizer state, by file."""
    manifest = json.loads((workdir / "checkpoints" / str(step) / "manifest" / "metadata").read_text())
    return {path: leaf["checksum"] for path, leaf in manifest["leaves"].items()}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(" ".join(rng.choices(WORDS, k=8)) + "." for _ in range(600)))
    return path


@pytest.fixture(scope="module")
def foundation(text, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "foundation"
    pretrain(text, workdir)
    return workdir


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    rng = random.Random(1)
    path = tmp_path_factory.mktemp("labelled") / "rows.jsonl"
    rows = [
        (" ".join(rng.choices(WORDS[:7] if i % 2 else WORDS[7:], k=5)), "odd" if i % 2 else "even") for i in range(200)
    ]
    path.write_text("".join(json.dumps({"text": t, "label": label}) + "\n" for t, label in rows))
    return path


@pytest.fixture(scope="module")
def classifier(foundation, labelled, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "classifier"
    finetune(foundation, labelled, workdir)
    return workdir


def finetune(foundation, labelled, workdir, *extra, **options):
    return command(
        "finetune", "--config=configs/finetune/email_spam.py", f"--init_from={foundation}", f"--workdir={workdir}",
        f"--config.data.path={labelled}", "--config.batch_size=8", "--config.sequence_length=64",
        "--config.num_steps=60", "--config.optimizer.warmup_steps=5", "--config.optimizer.learning_rate=3e-3", *extra,
        **options,
    )  # fmt: skip


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def last_loss(workdir):
    return [r["loss"] for r in records(workdir) if r["phase"] == "eval"][-1]


def test_a_run_learns_describes_itself_and_logs_every_field(foundation):
    lines = records(foundation)
    train = [r for r in lines if r["phase"] == "train"]
    assert set(train[0]) == {
        "step", "phase", "loss", "tokens", "seconds", "tokens_per_second", "mfu", "learning_rate", "grad_norm",
    }  # fmt: skip
    assert [r["step"] for r in train] == list(range(5, 41, 5))
    assert train[-1]["loss"] < train[0]["loss"] - 0.5 and train[-1]["tokens"] == 40 * 8 * 32
    evaluations = [r for r in lines if r["phase"] == "eval"]
    assert [r["step"] for r in evaluations] == [20, 40] and evaluations[-1]["bits_per_byte"] > 0
    record = json.loads((foundation / "run.json").read_text())
    assert record["stage"] == "pretrain" and record["model"]["num_layers"] == 2 and record["lineage"] == []


def test_a_finished_run_does_nothing_more(text, foundation):
    before = (foundation / "metrics.jsonl").read_text()
    pretrain(text, foundation)
    assert (foundation / "metrics.jsonl").read_text() == before


def test_it_goes_on_on_another_mesh(text, tmp_path):
    workdir = tmp_path / "moved"
    pretrain(text, workdir, "--config.evaluation.every=1000", "--config.checkpoint.keep=10")
    last = workdir / "checkpoints" / "40"
    expected = last_loss(workdir)
    for step in ("30", "40"):
        subprocess.run(["rm", "-r", str(last.parent / step)], check=True)
    pretrain(text, workdir, "--config.mesh.fsdp=4", "--config.mesh.data=1", devices=4)
    assert last_loss(workdir) == pytest.approx(expected, rel=1e-5)
    assert [r["step"] for r in records(workdir) if r["phase"] == "train"] == list(range(5, 41, 5))


def test_a_flipped_bit_is_found_and_the_step_before_is_used(text, foundation, tmp_path):
    workdir = tmp_path / "damaged"
    subprocess.run(["cp", "-r", str(foundation), str(workdir)], check=True)
    flip_a_bit(workdir / "checkpoints" / "40" / "params")
    done = command("evaluate", f"--checkpoint={workdir}", f"--text={text}", "--json")
    assert "checkpoint 40 is damaged" in done.stderr and json.loads(done.stdout)["tokens"] > 0
    resumed = pretrain(text, workdir)
    assert "checkpoint 40 is damaged" in resumed.stderr and "resumed at step 30" in resumed.stderr
    assert arrays_of(workdir, 40) == arrays_of(foundation, 40)
    assert [p.name.split("-")[0] for p in (workdir / "damaged").iterdir()] == ["40"]


def test_checkpoints_are_listed_verified_compared_and_pruned(foundation, tmp_path):
    workdir = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(foundation), str(workdir)], check=True)
    listed = command("checkpoint_files", "ls", str(workdir)).stdout
    assert "checkpoints" in listed and " 30 " in listed and " 40 " in listed
    assert command("checkpoint_files", "verify", str(workdir)).stdout.count("sound") == 2
    assert "are the same, bit for bit" in command("checkpoint_files", "diff", str(workdir), str(foundation)).stdout
    flip_a_bit(workdir / "checkpoints" / "40" / "params")
    found = command("checkpoint_files", "verify", str(workdir), check=False)
    assert found.returncode == 1 and "checkpoints/40: checksum differs: params/" in found.stderr
    # The newest is damaged, so the only sound one stays.
    assert "deleted nothing; kept 40, 30" in command("checkpoint_files", "prune", str(workdir), "--keep=1").stdout
    differing = command("checkpoint_files", "diff", str(workdir), str(foundation)).stdout
    assert "params/backbone/" in differing and "opt_state/" in differing
    whole = tmp_path / "whole"
    subprocess.run(["cp", "-r", str(foundation), str(whole)], check=True)
    assert "would delete 30; kept 40" in command("checkpoint_files", "prune", str(whole), "--dry_run").stdout
    command("checkpoint_files", "prune", str(whole))
    assert [p.name for p in (whole / "checkpoints").iterdir() if p.name.isdecimal()] == ["40"]


def test_evaluate_prints_and_keeps_about_what_training_logged(text, foundation, tmp_path):
    tail = tmp_path / "tail.txt"
    whole = text.read_text()
    tail.write_text(whole[int(len(whole) * 0.9) :])
    kept = tmp_path / "results.json"
    arguments = (f"--checkpoint={foundation}", f"--text={tail}", f"--output={kept}")
    figures = json.loads(command("evaluate", *arguments, "--json").stdout)
    logged = [r for r in records(foundation) if r["phase"] == "eval"][-1]
    # Training cuts the text into rows that do not see each other.
    assert figures["nats_per_token"] == pytest.approx(logged["loss"], rel=0.02)
    assert figures["bits_per_byte"] == pytest.approx(logged["bits_per_byte"], rel=0.02)
    assert figures["tokens"] == len(tail.read_text()) + 1
    command("evaluate", *arguments, "--stride=1", "--window=16")
    evaluations = json.loads(kept.read_text())["evaluations"]
    assert list(evaluations) == [f"text {tail}"] and evaluations[f"text {tail}"]["tokens"] == figures["tokens"]
    assert evaluations[f"text {tail}"] != figures


def test_generate_is_a_function_of_its_seed(foundation):
    def generated(*extra):
        return command(
            "generate", f"--checkpoint={foundation}", "--prompt=the cat", "--max_new_tokens=12", *extra
        ).stdout

    assert generated("--temperature=0").startswith("the cat")
    assert generated("--seed=1") == generated("--seed=1") != generated("--seed=2")


def test_finetuning_learns_prints_the_table_and_records_its_lineage(foundation, classifier):
    results = json.loads((classifier / "results.json").read_text())
    assert list(results["models"]) == [
        "majority-class baseline", "foundation, zero-shot", "foundation, 3-shot",
        "random initialization", "fine-tuned",
    ]  # fmt: skip
    accuracy = results["models"]["fine-tuned"]["accuracy"]
    assert accuracy["value"] >= 0.95 and accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    gain = results["gain"]["foundation, zero-shot"]["accuracy"]
    assert not gain["intervals_overlap"] and gain["relative_gain"] > 0.33
    assert "<svg" in (classifier / "report.html").read_text()
    record = json.loads((classifier / "run.json").read_text())
    assert record["task"]["classes"] == ["even", "odd"]
    assert [run["directory"] for run in record["lineage"]] == [str(foundation)]


def test_a_finetuned_run_is_scored_from_its_directory_alone(classifier, labelled):
    figures = json.loads(command("evaluate", f"--checkpoint={classifier}", f"--data={labelled}", "--json").stdout)
    assert figures["rows"] == 200 and figures["accuracy"]["value"] > 0.9


def digest(directory):
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != ".lock")
    return hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()


def test_wrong_input_gives_one_clear_line_and_loses_nothing(text, foundation, classifier, labelled, tmp_path):
    def bad(name, content):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    empty, latin = bad("empty.txt", b""), bad("latin.txt", "caf\xe9".encode("latin-1"))
    broken = bad("broken.jsonl", b'{"text": "one"}\n{"text": "two"\n')
    test_only = bad("test.jsonl", b'{"text": "never", "label": "third"}\n')
    other = bad("other.txt", b"0123456789\n" * 50)
    store = tmp_path / "store"
    command("prepare", f"--input={other}", f"--output={store}", "--tokenizer=chars", "--validation_split=tail")
    fresh = tmp_path / "fresh"
    cases = [
        (pretrain, (tmp_path / "none.txt", fresh), "none.txt"),
        (pretrain, (empty, fresh), "empty.txt"),
        (pretrain, (latin, fresh), "latin.txt"),
        (pretrain, (broken, fresh), "broken.jsonl:2"),
        (pretrain, (text, fresh, "--config.batch_size=7", "--config.mesh.data=2"), "config.mesh"),
        (pretrain, (text, fresh, "--config.bach_size=8"), "batch_size"),
        (pretrain, (text, fresh, "--config.model.embed=8"), "embed"),
        (pretrain, (text, fresh, "--config.batch_size=1.5"), "batch_size"),
        (pretrain, (text, fresh, "--config.model.norm=batchnorm"), "rmsnorm, layernorm"),
        (pretrain, (text, foundation, "--config.optimizer.learning_rate=1"), "config.optimizer.learning_rate"),
        (pretrain, (store, fresh, f"--init_from={foundation}"), "vocabulary"),
        (finetune, (foundation, labelled, fresh, f"--config.task.test_path={test_only}"), "'third'"),
        (finetune, (tmp_path, labelled, fresh), "run.json"),
        (command, ("evaluate", f"--checkpoint={foundation}"), "--text is missing"),
        (command, ("evaluate", f"--checkpoint={classifier}", f"--data={test_only}"), "'third'"),
        (command, ("generate", f"--checkpoint={foundation}"), "--prompt is missing"),
        (command, ("generate", f"--checkpoint={classifier}", "--prompt=x"), "legal: a pre-training run"),
    ]
    before = [digest(foundation), digest(classifier)]
    for function, arguments, expected in cases:
        done = function(*arguments, check=False)
        lines = [line for line in done.stderr.splitlines() if line.startswith("rootstock: error:")]
        assert done.returncode in (1, 2) and len(lines) == 1, (arguments, done.stderr)
        assert expected in lines[0], (expected, lines[0])
        assert "Traceback" not in done.stderr, (arguments, done.stderr)
    assert [digest(foundation), digest(classifier)] == before


def test_a_batch_that_the_mesh_does_not_divide_names_the_nearest(text, tmp_path):
    done = pretrain(text, tmp_path / "run", "--config.batch_size=7", devices=2, check=False)
    assert done.returncode == 1 and "which config.mesh.data = 2 does not divide" in done.stderr
    assert "nearest: 6 or 8" in done.stderr
