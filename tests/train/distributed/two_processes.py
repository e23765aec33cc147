"""One process of two that train, evaluate and fine-tune together; `test_multihost.py` starts both and reads the output.

python tests/train/distributed/two_processes.py FOLDER
"""

import contextlib
import gc
import importlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from absl import flags

from configs.errors import UserError, end
from train import cli
from train.distributed.processes import run_on_process_zero, run_together

STEPS = 6
PRETRAIN = [
    "pretrain", "--config=configs/pretrain/tiny.py", "--config.tokenizer=chars",
    "--config.data.validation_split=tail", "--config.batch_size=8", "--config.sequence_length=16",
    "--config.model.embed_dim=32", "--config.model.num_layers=1", "--config.model.num_heads=2",
    "--config.model.num_kv_heads=2", "--config.model.mlp_dim=32", "--config.optimizer.warmup_steps=2",
    "--config.logging.every=1", f"--config.num_steps={STEPS}", "--config.checkpoint.every=3",
    f"--config.evaluation.every={STEPS}",
]  # fmt: skip
FINETUNE = [
    "finetune", "--config=configs/finetune/email_spam.py", "--config.batch_size=8", "--config.sequence_length=16",
    "--config.num_steps=3", "--config.optimizer.warmup_steps=1", "--config.task.baseline=False",
    "--config.task.zero_shot_rows=0",
]  # fmt: skip


def run(name: str, *arguments: str) -> None:
    """Runs a command inside the processes that have joined already."""
    command = importlib.import_module(f"train.commands.{name}")
    command.run(cli.parse(name, command, list(arguments)))


def make_unreadable(trained: Path, copy: Path, part: str) -> bool:
    """Copies a run and truncates what process `part` wrote to its last checkpoint."""
    shutil.copytree(trained, copy)
    for file in (copy / "checkpoints" / str(STEPS) / "params" / f"ocdbt.process_{part}" / "d").iterdir():
        os.truncate(file, 10)
    return True


def main(folder: Path) -> None:
    """Runs all checks; writes what each printed to output-PROCESS.json; ends with an error that one process has."""
    process = os.environ["JAX_PROCESS_ID"]
    trained, text = folder / "trained", f"--config.data.path={folder / 'text.txt'}"
    printed: dict[str, dict[str, str]] = {}

    def check(name: str, action: Callable[..., None], *arguments: str) -> None:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            action(*arguments)
            # asyncio prints what became of the reads that failed when they are collected.
            gc.collect()
        printed[name] = {"stdout": out.getvalue(), "stderr": err.getvalue()}

    fsdp = "--config.mesh.fsdp=2"
    check("train", run, *PRETRAIN, text, f"--workdir={trained}", fsdp)
    check("share rows", run, *PRETRAIN, text, f"--workdir={folder / 'shared'}", "--config.mesh.context=2")
    # Each process holds half of every parameter, so process 0 can read its half of the damaged checkpoint.
    run_on_process_zero(lambda: make_unreadable(trained, folder / "damaged", "1"))
    check("unreadable", run, *PRETRAIN, text, f"--workdir={folder / 'damaged'}", fsdp)
    check("evaluate", run, "evaluate", f"--run={trained}", f"--text={folder / 'tail.txt'}", "--json")
    rows = f"--config.data.path={folder / 'rows.jsonl'}"
    check("fine-tune", run, *FINETUNE, f"--init_from={trained}", rows, f"--workdir={folder / 'tuned'}")
    (folder / f"output-{process}.json").write_text(json.dumps(printed))
    run(*PRETRAIN, text, f"--workdir={folder / process}")


if __name__ == "__main__":
    flags.FLAGS(["rootstock"])
    try:
        run_together(lambda: main(Path(sys.argv[1])), preemptible=True)
    except UserError as error:
        end(str(error), 1)
