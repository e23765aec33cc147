"""Compares `rootstock predict` with transformers' text-classification pipeline on the same exported model.

python -m venv HF && HF/bin/pip install torch==2.13.0 transformers
python -m benchmarks.predict --run=runs/classes --data=messages.jsonl --peer_python=HF/bin/python

The run must be one that can be exported: a classifier that was fine-tuned with config.task.pooling=last.
Exports it, then alternates between both on the same cores, in float32. The pipeline is measured at several
batch sizes; the fastest one counts. Both tokenize, run the model and return the best class of each text; programs are
compiled and weights are loaded before the clock starts. Prints rows per second, and how many predictions are equal.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.precision import in_float32
from data.readers import read_rows
from train.huggingface.exporting import export_hf
from train.prediction import load
from train.prediction.files import FileOptions, predict_file

# Reads a batch size per line; prints the seconds of one call over all texts, and writes the classes.
PEER = """
import json, sys, time
from transformers import pipeline
texts = json.load(open(sys.argv[2]))
classify = pipeline("text-classification", model=sys.argv[1], device="cpu")
classify(texts[:64], batch_size=8, truncation=True)
print("ready", flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    found = classify(texts, batch_size=int(line), truncation=True)
    print(time.perf_counter() - start, flush=True)
    json.dump([f["label"] for f in found], open(sys.argv[3], "w"))
"""


def main() -> None:
    """Prints a line per batch size of the peer, and the ratio to its fastest one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="a fine-tuned classification run that export-hf can export")
    parser.add_argument("--data", required=True, help="rows to predict")
    parser.add_argument("--rows", type=int, default=2000, help="rows to use")
    parser.add_argument("--peer_python", required=True, help="a Python with torch and transformers")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    in_float32()
    rows = [row for row, _ in zip(read_rows(arguments.data), range(arguments.rows), strict=False)]
    model = load(arguments.run)
    texts = [model.parse(row).fields["text"] for row in rows]
    with tempfile.TemporaryDirectory() as scratch:
        compare(arguments, model, texts, Path(scratch))


def compare(arguments: argparse.Namespace, model, texts: list[str], folder: Path) -> None:
    """Measures both in turns and prints the medians."""
    export_hf(Path(arguments.run), folder / "exported")
    (folder / "texts.json").write_text(json.dumps(texts))
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    command = [
        arguments.peer_python,
        "-c",
        PEER,
        *(str(folder / n) for n in ("exported", "texts.json", "classes.json")),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
        if peer.stdout is None or peer.stdin is None or peer.stdout.readline() != "ready\n":
            sys.exit(f"{arguments.peer_python} cannot load the exported model")

        def theirs(batch: int) -> float:
            peer.stdin.write(f"{batch}\n")
            peer.stdin.flush()
            return float(peer.stdout.readline())

        def ours() -> float:
            start = time.perf_counter()
            predict_file(model, str(folder / "rows.jsonl"), folder / "out.jsonl", FileOptions(overwrite=True))
            return time.perf_counter() - start

        ours()
        seconds: dict[str, list[float]] = {}
        for _ in range(arguments.rounds):
            measured = {"rootstock predict, file to file": ours}
            measured |= {f"pipeline, batch {batch}": functools.partial(theirs, batch) for batch in arguments.batches}
            for name, measure in measured.items():
                seconds.setdefault(name, []).append(measure())
                print(f"{name}: {seconds[name][-1]:.2f} s", flush=True)
        peer.stdin.close()
    rates = {name: len(texts) / statistics.median(times) for name, times in seconds.items()}
    for name, rate in rates.items():
        print(f"{name}: {rate:,.1f} rows/s ({', '.join(f'{s:.2f}' for s in seconds[name])} s)")
    own, *others = rates.values()
    found = [json.loads(line)["prediction"] for line in (folder / "out.jsonl").read_text().splitlines()]
    equal = sum(a == b for a, b in zip(found, json.loads((folder / "classes.json").read_text()), strict=True))
    print(f"ratio {own / max(others):.2f}; {equal:,} of {len(texts):,} predictions are equal")


if __name__ == "__main__":
    main()
