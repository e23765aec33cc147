"""Compares greedy generation with transformers' `generate`: tokens per second, float32, alternating on the same cores.

python -m venv HF && HF/bin/pip install torch==2.13.0 transformers
rootstock import-hf MODEL --workdir=runs/model
python -m benchmarks.transformers_generate --model=MODEL --run=runs/model --peer_python=HF/bin/python
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks.precision import in_float32
from model.sampling import Prompts, Sampling, advance, prefill
from train.distributed.mesh import single_device_mesh
from train.run.record import open_run

PROMPT, NEW = 16, 64
# Reads one batch size per line and prints the seconds of one call; the first call of each size is a warm-up.
PEER = """
import sys, time, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).float().eval()
print("ready", flush=True)
for line in sys.stdin:
    ids = torch.randint(3, 4000, (int(line), int(sys.argv[2])))
    count = int(sys.argv[3])
    start = time.perf_counter()
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count,
                   do_sample=False, pad_token_id=0)
    print(time.perf_counter() - start, flush=True)
"""


def main() -> None:
    """Prints one line per batch size: both medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory of a Hugging Face model")
    parser.add_argument("--run", required=True, help="run directory of the same model, from import-hf")
    parser.add_argument("--peer_python", required=True, help="a Python with torch and transformers")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    in_float32()
    command = [arguments.peer_python, "-c", PEER, arguments.model, str(PROMPT), str(NEW)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as peer:
        if peer.stdout is None or peer.stdin is None or peer.stdout.readline() != "ready\n":
            sys.exit(f"{arguments.peer_python} cannot load {arguments.model}")
        run = open_run(Path(arguments.run))
        model, params = run.model, run.load_merged(single_device_mesh(), ("backbone", "head"))

        def theirs(batch: int) -> float:
            peer.stdin.write(f"{batch}\n")
            peer.stdin.flush()
            return float(peer.stdout.readline())

        def ours(batch: int) -> float:
            prompts = np.random.default_rng(0).integers(3, 4000, (batch, PROMPT)).astype(np.int32)
            lengths = np.full(batch, PROMPT, np.int32)
            start = time.perf_counter()
            state = prefill(model, params, Prompts(prompts, lengths), jax.random.key(0), Sampling(), max_new_tokens=NEW)
            tokens, _ = advance(model, params, state, Sampling(), steps=NEW, end_ids=(-1,))
            jax.block_until_ready(tokens)
            return time.perf_counter() - start

        for batch in arguments.batches:
            ours(batch)
            theirs(batch)
            pairs = [(ours(batch), theirs(batch)) for _ in range(arguments.rounds)]
            mine, peers = (batch * NEW / statistics.median(times) for times in zip(*pairs, strict=True))
            ratio = mine / peers
            print(
                f"batch {batch}: rootstock {mine:.1f} tokens/s, transformers {peers:.1f}, ratio {ratio:.2f}", flush=True
            )
        peer.stdin.close()


if __name__ == "__main__":
    main()
