"""Seconds from the start of a process to its first generated token: `rootstock generate` beside transformers.

    python -m venv HF && HF/bin/pip install torch==2.13.0 transformers
    rootstock import-hf MODEL --workdir=runs/model
    python -m benchmarks.first_token --model=MODEL --run=runs/model --peer_python=HF/bin/python

Each process loads the model, writes one token and ends; they take turns. Cold means that no compiled program is kept
from an earlier process, warm that it is; transformers compiles nothing. Files are in the page cache for both.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

PROMPT = "The contract ends on"
PEER = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).float().eval()
text = tokenizer(sys.argv[2], return_tensors="pt")
print(tokenizer.decode(model.generate(**text, max_new_tokens=1, do_sample=False)[0]))
"""


def seconds(command: list[str]) -> float:
    """Returns how long a process takes from its start to its end."""
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[:4])} failed:\n{done.stderr[-2000:]}")
    return time.perf_counter() - begin


def main() -> None:
    """Prints the median seconds of each way, and the ratio of transformers' to ours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory of a Hugging Face model with its tokenizer")
    parser.add_argument("--run", required=True, help="run directory of the same model, from import-hf")
    parser.add_argument("--peer_python", required=True, help="a Python with torch and transformers")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    own = [sys.executable, "-m", "train", "generate", f"--run={arguments.run}", f"--prompt={PROMPT}"]
    own += ["--max_new_tokens=1", "--temperature=0"]
    os.environ["XLA_FLAGS"] = "--xla_cpu_max_isa=AVX512"  # float32, as the peer
    peer = [arguments.peer_python, "-c", PEER, arguments.model, PROMPT]
    found: dict[str, list[float]] = {"rootstock, cold": [], "rootstock, warm": [], "transformers": []}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for state in ("cold", "warm"):
                found[f"rootstock, {state}"].append(seconds([*own, f"--compilation_cache={cache}"]))
        found["transformers"].append(seconds(peer))
    theirs = statistics.median(found["transformers"])
    for name, times in found.items():
        median = statistics.median(times)
        print(f"{name:16} {median:5.1f} s ({min(times):.1f} to {max(times):.1f})  ratio {theirs / median:.2f}")


if __name__ == "__main__":
    main()
