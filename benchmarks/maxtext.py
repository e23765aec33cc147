"""Compares memory and compile time of a train step with MaxText's, compiled ahead of time for a TPU slice.

Both programs use the same setting: fsdp over all chips, or fsdp times experts, 2,048 tokens, one row per chip, float32
parameters and Adam moments, bfloat16 compute, full rematerialization. Neither drops a token of an expert. They run one
after the other on the same machine, each as its own command. No TPU is needed.

  python3.12 -m venv MT && MT/bin/pip install 'maxtext[tpu]==0.2.5'
  python -m benchmarks.maxtext --maxtext_python=MT/bin/python
  python -m benchmarks.maxtext --maxtext_python=MT/bin/python --models=qwen3_30b_a3b --topology=v5p-64 --expert=8
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from train.planner.topology import parse_topology

ROOT = Path(__file__).resolve().parents[1]
# Our name of a model -> MaxText's.
MODELS = {
    "llama2_7b": "llama2-7b", "llama3_8b": "llama3-8b", "gemma2_2b": "gemma2-2b", "qwen3_0_6b": "qwen3-0.6b",
    "mixtral_8x7b": "mixtral-8x7b", "qwen3_30b_a3b": "qwen3-30b-a3b",
}  # fmt: skip
# MaxText's command prints XLA's memory analysis without the peak, so this prints the peak after it.
WITH_PEAK = """
import runpy, jax
analysis = jax.stages.Compiled.memory_analysis
def with_peak(compiled):
    found = analysis(compiled)
    print(f"peak_memory_in_bytes={found.peak_memory_in_bytes}", flush=True)
    return found
jax.stages.Compiled.memory_analysis = with_peak
runpy.run_module("maxtext.trainers.pre_train.train_compile", run_name="__main__")
"""
# Disables libtpu's logs and lets two processes load it.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_LOG_DIR": "disabled",
}  # fmt: skip


def run(command: list[str], cwd: Path) -> tuple[str, float]:
    """Returns (stdout, wall seconds) of a command; exits if it fails."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout, time.perf_counter() - start


def maxtext(python: str, model: str, topology: str, mesh: dict[str, int], folder: Path) -> tuple[float, float]:
    """Returns (peak bytes per chip, wall seconds) of MaxText's own compile command."""
    out, seconds = run(
        [
            python, "-c", WITH_PEAK, f"compile_topology={topology}",
            "compile_topology_num_slices=1", f"model_name={MODELS[model]}", "per_device_batch_size=1",
            "max_target_length=2048", "remat_policy=full", "dtype=bfloat16", "weight_dtype=float32",
            "run_name=benchmark", f"base_output_directory={folder}",
            *(f"ici_{axis}_parallelism={size}" for axis, size in mesh.items()),
        ],
        folder,
    )  # fmt: skip
    return float(re.search(r"peak_memory_in_bytes=(\d+)", out)[1]), seconds


def rootstock(model: str, topology: str, mesh: dict[str, int]) -> tuple[float, float]:
    """Returns (peak bytes per chip, wall seconds) of `rootstock plan`."""
    out, seconds = run(
        [
            sys.executable, "-m", "train", "plan",
            f"--config=configs/pretrain/llm.py:{model}", f"--topology={topology}",
            f"--config.batch_size={math.prod(mesh.values())}", "--config.sequence_length=2048", "--json",
            *(f"--config.mesh.{axis}={size}" for axis, size in mesh.items()),
        ],
        ROOT,
    )  # fmt: skip
    return json.loads(out)["peak_bytes_per_chip"], seconds


def main() -> None:
    """Prints one row per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maxtext_python", required=True, help="a Python with maxtext[tpu]")
    parser.add_argument(
        "--models", default="llama2_7b,llama3_8b,gemma2_2b", help=f"comma-separated, from {', '.join(MODELS)}"
    )
    parser.add_argument("--topology", default="v5e-16")
    parser.add_argument("--expert", type=int, default=1, help="size of the mesh axis of experts; fsdp has the rest")
    parser.add_argument("--folder", default=".", help="directory for MaxText's output")
    arguments = parser.parse_args()
    chips = parse_topology(arguments.topology).devices
    if chips % arguments.expert:
        sys.exit(f"--expert={arguments.expert} does not divide the {chips} chips of {arguments.topology}")
    mesh = {"fsdp": chips // arguments.expert, "expert": arguments.expert}
    print("model, peak GB per chip: MaxText, Rootstock, ratio; seconds of the command: MaxText, Rootstock, ratio")
    for model in arguments.models.split(","):
        theirs = maxtext(arguments.maxtext_python, model, arguments.topology, mesh, Path(arguments.folder).absolute())
        ours = rootstock(model, arguments.topology, mesh)
        print(
            f"{model}: {theirs[0] / 1e9:.3f}, {ours[0] / 1e9:.3f}, {ours[0] / theirs[0]:.2f}; "
            f"{theirs[1]:.0f}, {ours[1]:.0f}, {ours[1] / theirs[1]:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
