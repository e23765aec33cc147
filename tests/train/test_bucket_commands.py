"""The commands around a run, with every path of theirs in a bucket: they print and write what they do on the disk."""

import io
import json
import sys

import pytest

from data.storage import files
from data.storage.paths import at
from tests.buckets import new_folder
from tests.runs import rootstock, write_rows, write_text

SMALL = [
    "--config.batch_size=8", "--config.sequence_length=32", "--config.optimizer.warmup_steps=1",
    "--config.model.embed_dim=32", "--config.model.num_layers=1", "--config.model.num_heads=2",
    "--config.model.num_kv_heads=2", "--config.model.mlp_dim=32", "--config.logging.every=1",
    "--config.evaluation.batches=2", "--config.tokenizer=bytes", "--config.data.validation_split=tail",
]  # fmt: skip


def put_inputs(root, scratch):
    folder = scratch / "inputs"
    folder.mkdir()
    write_text(folder / "a.txt", 150)
    write_rows(folder / "rows.jsonl", 80)
    (folder / "prompts.txt").write_text("the cat\na dog\n")
    copy = ["from configs.pretrain import tiny", "def get_config():", "    return tiny.get_config()"]
    (folder / "mine.py").write_text("\n".join(copy))
    (folder / "evals").mkdir()
    task = {"task": "parity", "output_type": "multiple_choice", "test_split": "test", "doc_to_text": "{{text}} is"}
    task |= {"doc_to_choice": "choices", "doc_to_target": "answer", "metadata": {"columns": ["text", "label"]}}
    (folder / "evals" / "parity.yaml").write_text(json.dumps(task))
    files.copy_tree(folder, at(root))


def chat(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    return rootstock("chat", f"--run={run}", "--max_new_tokens=4", "--seed=1").stdout


def used(root, monkeypatch):
    """Runs the commands with all paths below `root`; returns what they printed and wrote, by command."""
    config, run, tuned = f"--config={root}/mine.py", f"{root}/run", f"{root}/tuned"
    data = f"--config.data.path={root}/a.txt"
    found = {"show-batch": rootstock("show-batch", config, *SMALL, data, "--rows=2").stdout}
    length = ["--config.num_steps=6", "--config.checkpoint.every=3", "--config.evaluation.every=3"]
    rootstock("pretrain", config, *SMALL, *length, data, f"--workdir={run}")
    found["replay"] = json.loads(rootstock("replay", f"--run={run}", "--step=5", "--json").stdout)
    found["chat"] = chat(run, monkeypatch)
    rootstock(
        "generate", f"--run={run}", f"--prompts={root}/prompts.txt", f"--output={root}/texts.jsonl",
        "--max_new_tokens=4",
    )  # fmt: skip
    found["generate"] = (at(root) / "texts.jsonl").read_text()
    rootstock(
        "evaluate", f"--run={run}", "--tasks=parity", f"--task_files={root}/evals", f"--data={root}/rows.jsonl",
        "--shots=1", "--limit=8", f"--output={root}/scores.json",
    )  # fmt: skip
    found["evaluate"] = json.loads((at(root) / "scores.json").read_text())
    rootstock(
        "finetune", "--config=configs/finetune/email_spam.py", f"--config.data.path={root}/rows.jsonl", *SMALL[:3],
        "--config.num_steps=2", "--config.adapt.method=lora", "--config.task.zero_shot_rows=0", f"--init_from={run}",
        f"--workdir={tuned}",
    )  # fmt: skip
    rootstock("merge", f"--run={tuned}", f"--workdir={root}/merged")
    scored = [rootstock("evaluate", f"--run={root}/{name}", f"--data={root}/rows.jsonl", "--json").stdout
              for name in ("tuned", "merged")]  # fmt: skip
    found["merge"] = [json.loads(line)["accuracy"] for line in scored]
    monkeypatch.setenv("COLUMNS", "300")  # a table that cuts nothing
    compared = rootstock("checkpoint", "diff", run, f"{root}/merged").stdout
    found["diff"] = [[cell.strip() for cell in line.split("│")] for line in compared.splitlines() if "│" in line]
    return found


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    root = tmp_path_factory.mktemp("local")
    put_inputs(str(root), tmp_path_factory.mktemp("scratch"))
    with pytest.MonkeyPatch.context() as patch:
        return root, used(str(root), patch)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_commands_do_in_a_bucket_what_they_do_on_the_disk(scheme, on_disk, storage_environment, tmp_path, monkeypatch):
    root, expected = on_disk
    bucket = new_folder(scheme)
    put_inputs(bucket, tmp_path)
    found = used(bucket, monkeypatch)
    for name, value in expected.items():
        here = json.loads(json.dumps(value).replace(str(root), bucket))
        assert found[name] == here, name


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_sweep_and_a_demo_live_in_a_bucket(scheme, storage_environment, tmp_path):
    bucket = new_folder(scheme)
    put_inputs(bucket, tmp_path)
    sweep = [
        "--sizes=0.34,0.67,1",
        "--lengths=0.5,0.75,1",
        "--config.num_steps=8",
        f"--config.data.path={bucket}/a.txt",
    ]
    heads = ["--config.model.embed_dim=24", "--config.model.num_heads=3", "--config.model.num_kv_heads=3"]
    arguments = ["scaling", f"--config={bucket}/mine.py", *SMALL, *heads, *sweep, f"--workdir={bucket}/sweep", "--json"]
    first = json.loads(rootstock(*arguments).stdout)
    again = json.loads(rootstock(*arguments).stdout)
    assert first == again and len(first["runs"]) == 9
    rootstock("demo", "--scale=0.01", f"--workdir={bucket}/demo")
    assert (at(bucket) / "demo" / "classifier" / "report.html").is_file()
