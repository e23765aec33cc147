"""The program of the comparison for MaxText; `--maxtext_python` runs it without this project.

python maxtext_program.py JSON runs MaxText's own training loop on its synthetic data, `steps` steps per line of the
input.
"""

import json
import os
import sys
import tempfile

import jax
from maxtext.trainers.pre_train import train


def flags(work, folder):
    """Returns MaxText's command line for the work."""
    settings = {
        "run_name": "benchmark",
        "base_output_directory": folder,
        "hardware": "cpu",
        "skip_jax_distributed_system": True,
        "enable_checkpointing": False,
        "enable_goodput_recording": False,
        "dataset_type": "synthetic",
        "steps": 1_000_000,
        "decoder_block": "llama2",
        "base_emb_dim": work["embed"],
        "base_mlp_dim": work["mlp"],
        "base_num_decoder_layers": work["layers"],
        "base_num_query_heads": work["heads"],
        "base_num_kv_heads": work["kv_heads"],
        "head_dim": work["embed"] // work["heads"],
        "vocab_size": work["vocab"],
        "logits_via_embedding": True,
        "per_device_batch_size": work["rows"],
        "max_target_length": work["length"],
        "attention": "dot_product",
        "remat_policy": "minimal_with_context",  # the fastest of them
        "dtype": work["dtype"],
        "weight_dtype": "float32",
        "gradient_clipping_threshold": 1.0,
        "log_period": 1_000_000,
    }
    config = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(train.__file__))), "configs", "base.yml")
    return ["train", config, *(f"{name}={value}" for name, value in settings.items())]


def main():
    """Runs `train.main` with iterations that wait for the input."""
    work = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # MaxText prints to the standard output
    iterate, done = train.training_loop_iteration, 0

    def iteration(state, *arguments):
        nonlocal done
        if done == 0:
            count = sum(x.size for x in jax.tree.leaves(state["state"]) if x.ndim) // 3  # with both moments
            about = {"version": f"maxtext, jax {jax.__version__}", "parameters": count}
            print(json.dumps(about), file=answers, flush=True)
        if done % work["steps"] == 0 and not sys.stdin.readline():
            os._exit(0)
        metrics = iterate(state, *arguments)
        done += 1
        if done % work["steps"] == 0:
            jax.block_until_ready(state["state"])
            loss = float(metrics["scalar"]["learning/loss"])
            print(json.dumps({"loss": loss}), file=answers, flush=True)
        return metrics

    train.training_loop_iteration = iteration
    with tempfile.TemporaryDirectory() as folder:
        train.main(flags(work, folder))


if __name__ == "__main__":
    main()
