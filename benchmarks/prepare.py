"""Text -> tokens: `rootstock prepare` beside datatrove's tokenizer pipeline and the tokenizer alone, turn by turn.

python -m benchmarks.prepare --books=DIR --megabytes 40 200 --peer_python=PYTHON

The text is the .txt files below DIR, cut into documents of 5 to 25 paragraphs and repeated with another first line
until it has the size. All use one tokenizer, trained on 10 MB before anything is timed. `prepare` uses all cores; the
tokenizer alone one thread; datatrove one process for each of its tasks in turn, because the CPU time of its pool cannot
be read. So ratios compare CPU seconds, which other programs disturb less than wall times. The peers run at
the first size; the other sizes show how memory grows. PYTHON has datatrove[io], tokenizers and orjson.
"""

import argparse
import dataclasses
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from data.engines import cores
from data.tokenizer_training import train_tokenizer

RAW = """
import json, sys, time
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[2])
with open(sys.argv[1], encoding="utf-8") as file:
    texts = [json.loads(line)["text"] for line in file]
begin, cpu = time.perf_counter(), time.process_time()
for first in range(0, len(texts), 1024):
    tokenizer.encode_batch_fast(texts[first : first + 1024], add_special_tokens=False)
print(json.dumps([time.perf_counter() - begin, time.process_time() - cpu]))
"""
DATATROVE = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
if __name__ == "__main__":
    source, tokenizer, output, workers = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    step = DocumentTokenizer(output_folder=output + "/tokens", local_working_dir=output + "/work",
                             tokenizer_name_or_path=tokenizer, eos_token="<|eos|>", shuffle_documents=True, seed=0)
    steps = [JsonlReader(source), step]
    # One task after the other in this process: its pool's CPU time is not that of children.
    LocalPipelineExecutor(steps, tasks=workers, workers=1, logging_dir=output + "/logs").run()
"""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a command took.

    Attributes:
        wall: seconds.
        cpu: seconds of all its processes.
        peak_mb: resident memory of its largest process.
    """

    wall: float
    cpu: float
    peak_mb: float


def write_text(books: Path, path: Path, size: int, parts: int) -> int:
    """Writes about `size` bytes of JSON lines into `parts` files and returns their bytes."""
    texts = [file.read_text(encoding="utf-8") for file in sorted(books.rglob("*.txt"))]
    choose, written, copy = random.Random(0), 0, 0
    path.mkdir()
    files = [(path / f"{part}.jsonl").open("w", encoding="utf-8") for part in range(parts)]
    while written < size:
        for number, text in enumerate(texts):
            paragraphs = text.split("\n\n")
            while paragraphs and written < size:
                count = choose.randint(5, 25)
                document = "\n\n".join([f"Copy {copy}.", *paragraphs[:count]])
                del paragraphs[:count]
                line = json.dumps({"text": document}, ensure_ascii=False) + "\n"
                written += len(line.encode())
                files[number % parts].write(line)
        copy += 1
    for file in files:
        file.close()
    return written


def run(command: list[str], **environment: str) -> tuple[Cost, str]:
    """Runs a command and returns what it took, and what it printed."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    # A process of its own, whose children's memory is not mixed with that of earlier commands.
    code = (
        "import json, resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)\n"
        "sys.exit(done.stderr) if done.returncode else None\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
        "print(done.stdout)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} failed:\n{done.stderr[-2000:]}")
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    peak, _, output = done.stdout.partition("\n")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(wall, cpu, int(peak) / 1024), output


def measure(size: int, books: Path, tokenizer: Path, peer_python: str, folder: Path) -> None:
    """Prints what each program takes for a text."""
    megabytes = write_text(books, folder / "text", size * 10**6, cores()) / 1e6
    costs = {}
    if peer_python:
        walls, cpus, peak = 0.0, 0.0, 0.0
        for file in sorted((folder / "text").iterdir()):
            cost, printed = run(
                [sys.executable, "-c", RAW, str(file), str(tokenizer / "tokenizer.json")],
                TOKENIZERS_PARALLELISM="false",
            )
            wall, cpu = json.loads(printed)
            walls, cpus, peak = walls + wall, cpus + cpu, max(peak, cost.peak_mb)
        costs["the tokenizer alone, 1 thread"] = Cost(walls, cpus, peak)
    store = ["--input", str(folder / "text"), "--output", str(folder / "store"), "--tokenizer", str(tokenizer)]
    costs["rootstock prepare"], _ = run([sys.executable, "-m", "train", "prepare", *store])
    if peer_python:
        (folder / "datatrove").mkdir()
        (folder / "peer.py").write_text(DATATROVE)
        paths = [str(folder / "text"), str(tokenizer / "tokenizer.json"), str(folder / "datatrove")]
        command = [peer_python, str(folder / "peer.py"), *paths, str(cores())]
        costs["datatrove"], _ = run(command, TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    own = costs["rootstock prepare"]
    for name, cost in costs.items():
        rate = megabytes / cost.cpu
        print(
            f"{megabytes:6.0f} MB  {name:28} {cost.wall:7.1f} s {cost.cpu:7.1f} CPU-s {rate:6.2f} MB per CPU-s",
            f"{1e6 / rate / 3600:6.0f} core-hours per TB  peak {cost.peak_mb:5.0f} MB  CPU {cost.cpu / own.cpu:.2f}",
            flush=True,
        )


def main() -> None:
    """Prints a line per size and program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", type=Path, required=True, help="a directory of .txt files")
    parser.add_argument("--megabytes", type=int, nargs="+", default=[40, 200])
    parser.add_argument("--peer_python", default="", help="a Python with datatrove")
    parser.add_argument("--vocab_size", type=int, default=8192)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        write_text(arguments.books, folder / "sample", 10**7, 1)
        with (folder / "sample" / "0.jsonl").open(encoding="utf-8") as file:
            texts = [json.loads(line)["text"] for line in file]
        train_tokenizer(f"bpe:{arguments.vocab_size}", texts).save(folder / "tokenizer")
        for number, size in enumerate(arguments.megabytes):
            (folder / str(size)).mkdir()
            peer = arguments.peer_python if number == 0 else ""
            measure(size, arguments.books, folder / "tokenizer", peer, folder / str(size))


if __name__ == "__main__":
    main()
