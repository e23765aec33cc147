"""Compares `evaluate --tasks` with lm-evaluation-harness's own `hf` model: the same task, rows, weights and cores.

python -m venv HF && HF/bin/pip install torch==2.13.0 transformers accelerate lm_eval
rootstock import-hf MODEL --workdir=runs/model
python -m benchmarks.lm_eval_hf --model=MODEL --run=runs/model --peer_python=HF/bin/python \
    --task=sentiment --data=reviews.jsonl --shots=8 --limit=16

Both run in float32, one after the other in each round; the first round compiles and is reported apart. Prints seconds,
CPU-seconds and peak memory of both, rows per second, and the largest difference between their metrics.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import yaml

from benchmarks.precision import in_float32
from data.columns import RowRules
from train.evaluation import harness
from train.run.language_model import open_language_model

TASKS = Path(__file__).resolve().parent.parent / "configs" / "evals"
# Reads a line per round; answers with the seconds, CPU-seconds and peak bytes so far, and the metrics.
PEER = """
import json, resource, sys, time
from datasets import Dataset
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
folder, given = sys.argv[1], json.load(open(sys.argv[2]))
rows = {name: Dataset.from_list(part) for name, part in given["rows"].items()}
task = given["task"] | {"custom_dataset": lambda **_: rows}
model = HFLM(pretrained=folder, device="cpu", batch_size=given["batch"], dtype="float32")
print("ready", flush=True)
for _ in sys.stdin:
    start, cpu = time.perf_counter(), time.process_time()
    found = simple_evaluate(model=model, tasks=[task], num_fewshot=given["shots"], limit=given["limit"],
                            bootstrap_iters=0)["results"]
    figures = {key.split(",")[0]: value for key, value in next(iter(found.values())).items()
               if isinstance(value, float)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([time.perf_counter() - start, time.process_time() - cpu, peak, figures]), flush=True)
"""


def main() -> None:
    """Prints a line per round and one of the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory of a Hugging Face model")
    parser.add_argument("--run", required=True, help="run directory of the same model, from import-hf")
    parser.add_argument("--peer_python", required=True, help="a Python with torch, transformers and lm_eval")
    parser.add_argument("--task", default="sentiment", help="a task of configs/evals")
    parser.add_argument("--data", required=True, help="rows of the task")
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--limit", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8, help="rows per batch of the peer")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    in_float32()
    given = Path(arguments.run) / "peer_task.json"
    given.write_text(json.dumps(_peer_task(arguments)))
    command = [arguments.peer_python, "-c", PEER, arguments.model, str(given)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
        if peer.stdout is None or peer.stdin is None or peer.stdout.readline() != "ready\n":
            sys.exit(f"{arguments.peer_python} cannot load {arguments.model}")
        model = open_language_model(Path(arguments.run), spread=True)
        options = harness.HarnessOptions([str(TASKS)], arguments.shots, arguments.limit, {"test": arguments.data})
        rounds = []
        for number in range(arguments.rounds + 1):
            peer.stdin.write("\n")
            peer.stdin.flush()
            theirs = json.loads(peer.stdout.readline())
            rounds.append((_ours(model, arguments.task, options), theirs))
            _report("first" if not number else f"round {number}", *rounds[-1])
        peer.stdin.close()
    seconds = [[one[side][0] for one in rounds[1:]] for side in range(2)]
    mine, others = (arguments.limit / statistics.median(times) for times in seconds)
    print(f"rows per second: rootstock {mine:.2f}, lm-eval hf {others:.2f}, ratio {mine / others:.2f}")
    ours, theirs = rounds[-1][0][3], rounds[-1][1][3]
    shared = [name for name in theirs if name in ours and not name.endswith("stderr")]
    print(f"largest difference in {', '.join(shared)}: {max(abs(ours[n] - theirs[n]) for n in shared):.2g}")


def _peer_task(arguments: argparse.Namespace) -> dict[str, object]:
    """Returns what the peer needs: the task file's content with the rows that ours reads, in the same order."""
    config = yaml.safe_load((TASKS / f"{arguments.task}.yaml").read_text())
    rows = harness.rows_of(arguments.data, config["metadata"]["columns"], RowRules())
    del config["metadata"]
    return {
        "task": config | {"fewshot_split": "test"},
        "rows": {"test": rows.to_list()},
        "shots": arguments.shots, "limit": arguments.limit, "batch": arguments.batch,
    }  # fmt: skip


def _ours(model, task: str, options: harness.HarnessOptions) -> list:
    start, cpu = time.perf_counter(), time.process_time()
    figures = harness.evaluate(model, [task], options)[task]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return [time.perf_counter() - start, time.process_time() - cpu, peak, figures]


def _report(name: str, ours: list, theirs: list) -> None:
    print(
        f"{name}: rootstock {ours[0]:.1f} s ({ours[1]:.1f} CPU-s, peak {ours[2] / 1e9:.2f} GB), "
        f"lm-eval hf {theirs[0]:.1f} s ({theirs[1]:.1f} CPU-s, peak {theirs[2] / 1e9:.2f} GB)",
        flush=True,
    )


if __name__ == "__main__":
    main()
