"""Compares Rootstock with nanoGPT: tiny-shakespeare by character, with the CPU budget of nanoGPT's README.

  git clone https://github.com/karpathy/nanoGPT
  python benchmarks/nanogpt.py --nanogpt=nanoGPT --torch_python=VENV/bin/python --text=input.txt

Both programs train for the same number of steps and characters on the first 90 % of the text, each with its own
recipe, one after the other on the same cores. Both are scored on all of the last 10 %, in consecutive rows of 64
characters; Rootstock also predicts the first character and the end of the text. Both clocks run from the start of the
process to its last step. Rootstock's time includes tokenization and compilation; nanoGPT's excludes the preparation of
its data and includes its own evaluations. Nothing else should use the cores during the run. nanoGPT runs in a copy of
the given checkout, which is not modified.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# rich and torch are imported where they are used, because two Python environments import this file.

ROOT = Path(__file__).resolve().parent.parent
BLOCK = 64
# The flags of the laptop command in nanoGPT's README, except its 2,000 steps, which are --steps here.
README_FLAGS = (
    "--device=cpu",
    "--compile=False",
    "--eval_iters=20",
    "--log_interval=1",
    f"--block_size={BLOCK}",
    "--batch_size=12",
    "--n_layer=4",
    "--n_head=4",
    "--n_embd=128",
    "--dropout=0.0",
)
# Values from nanoGPT's config/train_shakespeare_char.py.
EVAL_INTERVAL = 250
WARMUP = 100
DATASET = Path("data/shakespeare_char")
CHECKPOINT = Path("out-shakespeare-char/ckpt.pt")


class BenchmarkError(Exception):
    """A failure of the benchmark, described in one line."""


@dataclasses.dataclass(frozen=True)
class Result:
    """One side of the comparison.

    Attributes:
        name: name of the program.
        loss: nats per character over the whole validation part.
        targets: number of characters in the loss.
        step: training step of the parameters that were scored.
        parameters: number of unique parameters, position tables included.
        seconds: wall time of training; the module docstring says where each clock starts and stops.
        disturbed: whether other programs slowed it down.
        note: a further figure that the program reported.
    """

    name: str
    loss: float
    targets: int
    step: int
    parameters: int
    seconds: float
    disturbed: bool
    note: str


def main() -> None:
    """Trains both models and prints a table, a verdict and one line of JSON."""
    arguments = parse_arguments()
    busy = is_busy()
    try:
        with contextlib.ExitStack() as stack:
            if arguments.keep:
                work = Path(arguments.keep)
                work.mkdir(parents=True)
            else:
                work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nanogpt-benchmark-")))
            results = [
                train(arguments, work / name)
                for name, train in (("nanogpt", run_nanogpt), ("rootstock", run_rootstock))
                if arguments.only in ("", name)
            ]
    except (BenchmarkError, OSError) as error:
        sys.exit(f"nanogpt.py: error: {error}")
    report(results, arguments.steps, busy)


def parse_arguments() -> argparse.Namespace:
    """Returns the checked command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--torch_python", required=True, help="a Python with torch and numpy, for nanoGPT")
    parser.add_argument("--text", type=Path, required=True, help="tiny-shakespeare's input.txt")
    parser.add_argument("--steps", type=int, default=2000, help="training steps of both (default: %(default)s)")
    parser.add_argument("--only", choices=("nanogpt", "rootstock"), default="", help="run one side alone")
    parser.add_argument("--keep", default="", help="a new directory to keep both runs in")
    arguments = parser.parse_args()
    if not (arguments.nanogpt / "train.py").is_file():
        parser.error(f"--nanogpt={arguments.nanogpt} contains no train.py; expected a checkout of nanoGPT")
    if not arguments.text.is_file():
        parser.error(f"--text={arguments.text} does not exist")
    if not shutil.which(arguments.torch_python):
        parser.error(f"--torch_python={arguments.torch_python} is not an executable")
    if arguments.steps <= WARMUP:
        parser.error(f"--steps={arguments.steps} must be greater than {WARMUP}, nanoGPT's warm-up steps")
    return arguments


def run_nanogpt(arguments: argparse.Namespace, work: Path) -> Result:
    """Returns nanoGPT's result: trains in a copy of the checkout and scores the saved checkpoint."""
    leave = shutil.ignore_patterns(".git", "out*", "*.bin", "*.pkl")
    shutil.copytree(arguments.nanogpt, work, ignore=leave)
    shutil.copyfile(arguments.text, work / DATASET / "input.txt")
    # prepare.py imports requests for a download that the line above makes unnecessary.
    (work / DATASET / "requests.py").write_text("")
    # Symbolic links are not resolved: the path of the link selects the virtual environment.
    python = os.path.abspath(str(shutil.which(arguments.torch_python)))
    run([python, str(DATASET / "prepare.py")], work)

    steps = arguments.steps
    # nanoGPT saves only when it evaluates, so the last step must evaluate.
    interval = EVAL_INTERVAL if steps % EVAL_INTERVAL == 0 else steps
    length = [f"--max_iters={steps}", f"--lr_decay_iters={steps}", f"--eval_interval={interval}"]
    iteration = re.compile(r"iter (\d+): loss \S+ time ([\d.]+)ms")
    evaluation = re.compile(r"step (\d+): train loss \S+ val loss ([\d.]+)")
    ended: dict[int, float] = {}
    milliseconds: dict[int, float] = {}
    own_losses: dict[int, float] = {}

    def watch(line: str) -> None:
        if found := iteration.match(line):
            ended[int(found[1])] = time.perf_counter()
            milliseconds[int(found[1])] = float(found[2])
        elif found := evaluation.match(line):
            own_losses[int(found[1])] = float(found[2])
            print(f"nanoGPT: {line}", file=sys.stderr)

    start = time.perf_counter()
    run([python, "train.py", "config/train_shakespeare_char.py", *README_FLAGS, *length], work, watch)
    if steps not in ended or not (work / CHECKPOINT).is_file():
        raise BenchmarkError(f"nanoGPT's train.py did not reach step {steps} or did not write {CHECKPOINT}")
    # The time of a step that evaluates includes the evaluation.
    disturbed = is_disturbed([ms for step, ms in milliseconds.items() if step not in own_losses])
    script = "from nanogpt import score_checkpoint; score_checkpoint()"
    score = json.loads(run([python, "-c", script], work, path=Path(__file__).resolve().parent)[-1])
    own = own_losses[score["step"]]
    note = f"its own estimate from 20 random batches is {own:.4f} at step {score['step']}"
    return Result("nanoGPT", **score, seconds=ended[steps] - start, disturbed=disturbed, note=note)


def is_busy() -> bool:
    """Returns whether other programs are using the cores, and prints a warning if so.

    PyTorch's threads spin while they wait, so shared cores slow nanoGPT down many times more than Rootstock, and the
    ratio of the two times is meaningless.
    """
    load = os.getloadavg()[0]
    busy = load > 0.25 * (os.cpu_count() or 1)
    if busy:
        print(f"warning: other programs are using the cores (load {load:.1f})", file=sys.stderr)
    return busy


def is_disturbed(milliseconds: list[float]) -> bool:
    """Returns whether some of nanoGPT's steps took far longer than most, and prints a warning if so."""
    mean, median = statistics.fmean(milliseconds), statistics.median(milliseconds)
    disturbed = mean > 1.5 * median
    if disturbed:
        message = f"nanoGPT's steps took {mean:.0f} ms in the mean and {median:.0f} ms in the median"
        print(f"warning: {message}: other programs used the cores", file=sys.stderr)
    return disturbed


def score_checkpoint() -> None:
    """Prints the loss of nanoGPT's checkpoint over all of val.bin, its step and number of parameters, as JSON.

    Runs inside the copied checkout, with the Python that has torch.
    """
    import numpy as np
    import torch

    # `model` is the checkout's module, which is first on sys.path there.
    from model import GPT, GPTConfig

    checkpoint = torch.load(CHECKPOINT, map_location="cpu")
    with contextlib.redirect_stdout(sys.stderr):
        model = GPT(GPTConfig(**checkpoint["model_args"])).eval()
    model.load_state_dict(checkpoint["model"])
    ids = torch.from_numpy(np.fromfile(DATASET / "val.bin", np.uint16).astype(np.int64))
    # The remainder after the rows of 64 is one shorter row, so that every character but the first is predicted.
    count = len(ids) - 1
    whole = count // BLOCK * BLOCK
    x_rows, y_rows = ids[:whole].view(-1, BLOCK), ids[1 : whole + 1].view(-1, BLOCK)
    batches = [*zip(x_rows.split(128), y_rows.split(128), strict=True)]
    if whole < count:
        batches.append((ids[None, whole:-1], ids[None, whole + 1 :]))
    total = 0.0
    with torch.no_grad():
        for x, y in batches:
            total += model(x, y)[1].item() * y.numel()
    score = {
        "loss": total / count,
        "targets": count,
        "step": checkpoint["iter_num"],
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    print(json.dumps(score))


def run_rootstock(arguments: argparse.Namespace, work: Path) -> Result:
    """Returns Rootstock's result: runs one `rootstock pretrain` and reads its last evaluation."""
    command = [
        *(sys.executable, "-m", "train", "pretrain", "--config=configs/pretrain/shakespeare_char.py"),
        f"--workdir={work.resolve()}",
        f"--config.data.path={arguments.text.resolve()}",
        "--config.model.compute_dtype=float32",  # as the peer
    ]
    if arguments.steps != 2000:
        command.append(f"--config.num_steps={arguments.steps}")
    counts: list[int] = []
    ended: list[float] = []

    def watch(line: str) -> None:
        if f"pretrain {arguments.steps}/{arguments.steps}" in line:
            ended.append(time.perf_counter())
        if found := re.search(r"([\d,]+) parameters", line):
            counts.append(int(found[1].replace(",", "")))
        print(f"Rootstock: {line}", file=sys.stderr)

    start = time.perf_counter()
    run(command, ROOT, watch)
    whole = time.perf_counter() - start
    records = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    evaluations = [record for record in records if record["phase"] == "eval"]
    if not evaluations or not counts or not ended:
        raise BenchmarkError("rootstock pretrain reported no evaluation, no last step or no number of parameters")
    last = evaluations[-1]
    note = f"{whole:.1f} s with the last evaluation and the checkpoint"
    loss, targets, step = last["loss"], int(last["targets"]), last["step"]
    return Result("Rootstock", loss, targets, step, counts[0], ended[0] - start, disturbed=False, note=note)


def run(
    command: list[str],
    directory: Path,
    watch: Callable[[str], None] = lambda line: None,
    path: Path | None = None,
) -> list[str]:
    """Returns the lines that a program printed.

    Args:
        command: program and arguments.
        directory: working directory.
        watch: called with each line of stdout and stderr as it is printed.
        path: an additional directory for Python to import from.

    Raises:
        BenchmarkError: the program failed; the message contains the end of its output.
    """
    environment = os.environ | {
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
        # A compilation cache from an earlier run would shorten Rootstock's time.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    lines = []
    pipes = {"text": True, "encoding": "utf-8", "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, cwd=directory, env=environment, **pipes) as process:
        for line in process.stdout or ():
            lines.append(line.rstrip())
            watch(lines[-1])
    if process.returncode:
        tail = "\n".join(lines[-15:])
        raise BenchmarkError(f"{' '.join(command)} exited with {process.returncode}:\n{tail}")
    return lines


def report(results: list[Result], steps: int, busy: bool) -> None:
    """Prints a table, a verdict and one line of JSON."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(title=f"tiny-shakespeare by character, CPU, {steps:,} steps of 12 rows of {BLOCK}")
    table.add_column("")
    for heading in ("nats/character", "wall seconds", "parameters", "step", "characters"):
        table.add_column(heading, justify="right")
    for r in results:
        counts = [f"{number:,}" for number in (r.parameters, r.step, r.targets)]
        table.add_row(r.name, f"{r.loss:.4f}", f"{r.seconds:.1f}", *counts)
    console.print(table)
    console.print("step: of the scored parameters; characters: number of characters in the loss", soft_wrap=True)
    for r in results:
        console.print(f"{r.name}: {r.note}", soft_wrap=True)
    if len(results) == 2:
        theirs, ours = results
        console.print(verdict(theirs, ours, busy), style="bold", soft_wrap=True)
    print(json.dumps({"steps": steps, "busy": busy, "results": [dataclasses.asdict(r) for r in results]}))


def verdict(theirs: Result, ours: Result, busy: bool) -> str:
    """Returns a sentence with the lower loss and the shorter time; no time verdict if other programs used the cores."""
    better = ours if ours.loss < theirs.loss else theirs
    faster = ours if ours.seconds < theirs.seconds else theirs
    loss = f"{better.name} has the lower loss, by {abs(ours.loss - theirs.loss):.4f} nats"
    clock = f"Rootstock took {ours.seconds / theirs.seconds:.2f} times nanoGPT's time"
    if busy or theirs.disturbed:
        return f"{loss}. {clock}, but other programs used the cores, so the times cannot be compared."
    winner = f"{better.name} is better in both" if better is faster else "each is better in one"
    return f"{loss}. {clock}: {faster.name} is faster. {winner}."


if __name__ == "__main__":
    main()
