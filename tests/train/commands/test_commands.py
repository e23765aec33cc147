"""The commands end to end on small text: train, resume, fine-tune, evaluate, generate; and every invalid input."""

import hashlib
import json
import shutil

import pytest

from tests.damage import flip_a_bit
from tests.runs import STEPS, error_lines, last_loss, records, rootstock, run_process, write_rows
from train.cli import COMMANDS

PRETRAIN = [
    "pretrain", "--config=configs/pretrain/tiny.py", "--config.tokenizer=bytes",
    "--config.data.validation_split=tail", "--config.batch_size=8", "--config.sequence_length=64",
    "--config.model.embed_dim=32", "--config.model.num_layers=2", "--config.model.num_heads=2",
    "--config.model.num_kv_heads=2", "--config.model.mlp_dim=64", "--config.optimizer.warmup_steps=4",
    "--config.logging.every=5", f"--config.num_steps={STEPS}", "--config.checkpoint.every=10",
    "--config.evaluation.every=20",
]  # fmt: skip
MESH = ["--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"]
FINETUNE = [
    "finetune", "--config=configs/finetune/email_spam.py", "--config.batch_size=8", "--config.sequence_length=64",
    "--config.num_steps=60", "--config.optimizer.warmup_steps=5", "--config.optimizer.learning_rate=3e-3",
]  # fmt: skip


def pretrain(text, workdir, *flags):
    """Pre-trains on eight devices, as the foundation model was."""
    return rootstock(*PRETRAIN, f"--config.data.path={text}", f"--workdir={workdir}", *flags, devices=8)


def checksums(workdir, step):
    """Returns {path: checksum} of the parameters and the optimizer state in a checkpoint."""
    manifest = json.loads((workdir / "checkpoints" / str(step) / "manifest" / "metadata").read_text())
    return {path: leaf["checksum"] for path, leaf in manifest["leaves"].items()}


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("labeled") / "rows.jsonl")


@pytest.fixture(scope="module")
def classifier(foundation, labeled, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "classifier"
    rootstock(*FINETUNE, f"--init_from={foundation}", f"--config.data.path={labeled}", f"--workdir={workdir}")
    return workdir


@pytest.fixture
def copied(foundation, tmp_path):
    """A copy of the foundation run."""
    return shutil.copytree(foundation, tmp_path / "copy")


def test_pretraining_lowers_the_loss_and_logs_every_field(foundation):
    train = [r for r in records(foundation) if r["phase"] == "train"]
    fields = {
        "step",
        "phase",
        "loss",
        "tokens",
        "seconds",
        "tokens_per_second",
        "learning_rate",
        "grad_norm",
        "timeline",
    }
    assert set(train[0]) - {"mfu"} == fields
    assert [r["step"] for r in train] == list(range(5, STEPS + 1, 5))
    assert train[-1]["loss"] < train[0]["loss"] - 0.5 and train[-1]["tokens"] == STEPS * 8 * 64
    evaluations = [r for r in records(foundation) if r["phase"] == "eval"]
    assert [r["step"] for r in evaluations] == [20, 40] and evaluations[-1]["bits_per_byte"] > 0
    record = json.loads((foundation / "run.json").read_text())
    assert record["stage"] == "pretrain" and record["model"]["num_layers"] == 2 and record["lineage"] == []


@pytest.mark.integration
def test_rerunning_a_finished_run_changes_nothing(text, copied):
    before = (copied / "metrics.jsonl").read_text()
    pretrain(text, copied, *MESH)
    assert (copied / "metrics.jsonl").read_text() == before


@pytest.mark.integration
def test_resume_on_another_mesh_gives_the_same_losses(text, foundation, copied):
    shutil.rmtree(copied / "checkpoints" / "40")
    done = pretrain(text, copied, "--config.mesh.fsdp=8", "--config.mesh.data=1")
    assert "resumed at step 30" in done.stderr
    assert last_loss(copied) == pytest.approx(last_loss(foundation), rel=1e-5)
    assert [r["step"] for r in records(copied) if r["phase"] == "train"] == list(range(5, STEPS + 1, 5))


@pytest.mark.integration
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(text, foundation, copied):
    flip_a_bit(copied / "checkpoints" / "40" / "params")
    done = rootstock("evaluate", f"--run={copied}", f"--text={text}", "--json")
    assert "checkpoint 40 is damaged" in done.stderr and json.loads(done.stdout)["tokens"] > 0
    resumed = pretrain(text, copied, *MESH)
    assert "checkpoint 40 is damaged" in resumed.stderr and "resumed at step 30" in resumed.stderr
    assert checksums(copied, 40) == checksums(foundation, 40)
    assert [p.name.split("-")[0] for p in (copied / "damaged").iterdir()] == ["40"]


@pytest.mark.integration
def test_checkpoint_lists_verifies_compares_and_prunes(foundation, copied):
    # What a kill during a save leaves behind, and a loss that was not finite.
    (copied / "checkpoints" / "50.orbax-checkpoint-tmp").mkdir()
    metrics = copied / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    lines = [line | {"loss": None} if line["phase"] == "eval" and line["step"] == 40 else line for line in lines]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    listed = rootstock("checkpoint", "ls", copied).stdout
    assert "checkpoints" in listed and " 30 " in listed and " 40 " in listed
    assert " nan " in listed and "orbax" not in listed
    assert rootstock("checkpoint", "verify", copied).stdout.count("sound") == 2
    same = rootstock("checkpoint", "diff", copied, foundation).stdout
    assert "params/backbone/" not in same and f"{len(checksums(copied, 40))} leaves are" in same
    assert "would delete 30; kept 40" in rootstock("checkpoint", "prune", copied, "--dry_run").stdout
    assert checksums(copied, 30)
    empty = copied.parent / "empty"
    shutil.copytree(copied, empty, ignore=shutil.ignore_patterns("checkpoints"))
    assert error_lines(rootstock("checkpoint", "verify", empty, check=False)) == [
        f"rootstock: error: {empty} contains no checkpoint"
    ]
    rootstock("checkpoint", "prune", copied)
    assert [p.name for p in (copied / "checkpoints").iterdir() if p.name.isdecimal()] == ["40"]


@pytest.mark.integration
def test_prune_keeps_the_newest_sound_checkpoint(foundation, copied):
    flip_a_bit(copied / "checkpoints" / "40" / "params")
    assert "deleted nothing; kept 40, 30" in rootstock("checkpoint", "prune", copied, "--keep=1").stdout
    differing = rootstock("checkpoint", "diff", copied, foundation).stdout
    assert "params/backbone/" in differing and "opt_state/" in differing


@pytest.mark.integration
def test_checkpoint_verify_of_a_damaged_run_names_the_leaf_and_exits_1(copied):
    flip_a_bit(copied / "checkpoints" / "40" / "params")
    done = run_process("checkpoint", "verify", copied)
    assert done.returncode == 1 and "sound" in done.stdout
    (line,) = error_lines(done)
    assert "checkpoints/40: checksum differs: params/" in line


@pytest.mark.integration
def test_evaluate_reports_about_the_loss_that_training_logged(text, foundation, tmp_path):
    tail = tmp_path / "tail.txt"
    whole = text.read_text()
    tail.write_text(whole[int(len(whole) * 0.9) :])
    output = tmp_path / "results.json"
    arguments = (f"--run={foundation}", f"--text={tail}", f"--output={output}")
    figures = json.loads(rootstock("evaluate", *arguments, "--json").stdout)
    logged = [r for r in records(foundation) if r["phase"] == "eval"][-1]
    # Training cuts the text into rows, each without the context of the row before it.
    assert figures["nats_per_token"] == pytest.approx(logged["loss"], rel=0.02)
    assert figures["bits_per_byte"] == pytest.approx(logged["bits_per_byte"], rel=0.02)
    assert figures["tokens"] == len(tail.read_text()) + 1
    rootstock("evaluate", *arguments, "--stride=1", "--window=16")
    evaluations = json.loads(output.read_text())["evaluations"]
    assert list(evaluations) == [f"text {tail}"] and evaluations[f"text {tail}"]["tokens"] == figures["tokens"]
    assert evaluations[f"text {tail}"] != figures


@pytest.mark.integration
def test_generate_depends_on_nothing_but_its_seed(foundation):
    def generated(*flags):
        return rootstock("generate", f"--run={foundation}", "--prompt=the cat", "--max_new_tokens=12", *flags).stdout

    assert generated("--temperature=0").startswith("the cat")
    assert generated("--seed=1") == generated("--seed=1") != generated("--seed=2")


@pytest.mark.integration
def test_finetuning_beats_its_baselines_and_records_its_lineage(foundation, classifier):
    results = json.loads((classifier / "results.json").read_text())
    assert list(results["models"]) == [
        "majority-class baseline", "TF-IDF + linear SVM", "foundation, zero-shot", "foundation, 3-shot",
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


@pytest.mark.integration
def test_evaluate_scores_a_fine_tuned_run_from_its_directory_alone(classifier, labeled):
    figures = json.loads(rootstock("evaluate", f"--run={classifier}", f"--data={labeled}", "--json").stdout)
    assert figures["rows"] == 200 and figures["accuracy"]["value"] > 0.9


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_starts_and_explains_its_flags(command):
    done = rootstock(command, "--help")
    assert done.stdout.startswith(f"rootstock {command}: ") and "flags:" in done.stdout


def digest(directory):
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != ".lock")
    return hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()


@pytest.fixture(scope="module")
def inputs(text, foundation, classifier, labeled, tmp_path_factory):
    """Paths that the flags below name: valid runs and data, and files that no command can read."""
    folder = tmp_path_factory.mktemp("inputs")
    files = {
        "empty": ("empty.txt", b""),
        "latin": ("latin.txt", "caf\xe9".encode("latin-1")),
        "broken": ("broken.jsonl", b'{"text": "one"}\n{"text": "two"\n'),
        "unlabeled": ("unlabeled.jsonl", b'{"text": "never", "label": null}\n'),
        "digits": ("digits.txt", b"0123456789\n" * 50),
    }
    for name, content in files.values():
        (folder / name).write_bytes(content)
    store = folder / "store"
    tail = "--validation_split=tail"
    rootstock("prepare", f"--input={folder / 'digits.txt'}", f"--output={store}", "--tokenizer=chars", tail)
    paths = {key: folder / name for key, (name, _) in files.items()}
    known = {"text": text, "foundation": foundation, "classifier": classifier, "labeled": labeled, "store": store}
    return paths | known | {"folder": folder}


PRETRAIN_ON = [*PRETRAIN, "--workdir={new}"]
FINETUNE_ON = [*FINETUNE, "--config.data.path={labeled}", "--workdir={new}"]
INVALID = {
    "missing file": ([*PRETRAIN_ON, "--config.data.path={folder}/none.txt"], "none.txt"),
    "empty file": ([*PRETRAIN_ON, "--config.data.path={empty}"], "empty.txt"),
    "not UTF-8": ([*PRETRAIN_ON, "--config.data.path={latin}"], "latin.txt"),
    "broken JSON": ([*PRETRAIN_ON, "--config.data.path={broken}"], "broken.jsonl:2"),
    "mesh of 7": ([*PRETRAIN_ON, "--config.data.path={text}", "--config.mesh.data=7"], "config.mesh"),
    "misspelled field": ([*PRETRAIN_ON, "--config.data.path={text}", "--config.bach_size=8"], "batch_size"),
    "unknown field": ([*PRETRAIN_ON, "--config.data.path={text}", "--config.model.embed=8"], "embed"),
    "fraction for a count": ([*PRETRAIN_ON, "--config.data.path={text}", "--config.batch_size=1.5"], "batch_size"),
    "unknown choice": (
        [*PRETRAIN_ON, "--config.data.path={text}", "--config.model.norm=batchnorm"], "rmsnorm, layernorm"
    ),
    "changed field": (
        [*PRETRAIN, "--config.data.path={text}", "--workdir={foundation}", "--config.optimizer.learning_rate=1"],
        "config.optimizer.learning_rate",
    ),
    "other vocabulary": (
        [*PRETRAIN_ON, "--config.data.path={store}", "--init_from={foundation}"],
        "was tokenized with another tokenizer",
    ),
    "missing class": (
        [*FINETUNE_ON, "--init_from={foundation}", "--config.task.test_path={unlabeled}"],
        "row 1: 'label' is null",
    ),
    "not a run": ([*FINETUNE_ON, "--init_from={folder}"], "run.json"),
    "nothing to evaluate": (["evaluate", "--run={foundation}"], "--text is missing"),
    "missing class in evaluate": (["evaluate", "--run={classifier}", "--data={unlabeled}"], "row 1: 'label' is null"),
    "nothing to continue": (["generate", "--run={foundation}"], "--prompt is missing"),
    "a classifier to continue": (["generate", "--run={classifier}", "--prompt=x"], "pre-train"),
}  # fmt: skip


@pytest.mark.integration
@pytest.mark.parametrize("name", INVALID)
def test_invalid_input_is_a_one_line_error_and_changes_no_run(name, inputs, tmp_path):
    arguments, expected = INVALID[name]
    runs = inputs["foundation"], inputs["classifier"]
    before = [digest(run) for run in runs]
    done = rootstock(*(a.format(**inputs, new=tmp_path / "new") for a in arguments), check=False)
    (line,) = error_lines(done)
    assert done.returncode in (1, 2) and expected in line
    assert [digest(run) for run in runs] == before


def test_a_batch_that_the_mesh_does_not_divide_names_the_nearest_sizes(text, tmp_path):
    arguments = [*PRETRAIN, f"--config.data.path={text}", f"--workdir={tmp_path / 'new'}", "--config.batch_size=12"]
    done = rootstock(*arguments, devices=8, check=False)
    (line,) = error_lines(done)
    assert done.returncode == 1 and "config.mesh" in line and "8 or 16" in line


def test_a_process_with_an_invalid_flag_ends_with_one_line_and_status_2(text, tmp_path):
    arguments = [*PRETRAIN, f"--config.data.path={text}", f"--workdir={tmp_path / 'new'}", "--config.bach_size=8"]
    done = run_process(*arguments)
    (line,) = error_lines(done)
    assert done.returncode == 2 and "did you mean 'config.batch_size'" in line
    assert "Traceback" not in done.stderr and done.stdout == "" and not (tmp_path / "new").exists()
