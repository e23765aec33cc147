"""Rootstock's program of the comparison: `python -m benchmarks.training.own JSON`."""

import json
import sys
from typing import Any

from ml_collections import ConfigDict

from benchmarks.own_steps import own_steps
from configs import default
from model.adaptation import Adaptation


def config_of(work: dict[str, Any]) -> ConfigDict:
    """Returns the config of a `Work` as JSON."""
    config = default.get_config()
    config.batch_size, config.sequence_length, config.optimizer.warmup_steps = work["rows"], work["length"], 0
    config.model.update(
        {
            "vocab_size": work["vocab"],
            "embed_dim": work["embed"],
            "num_layers": work["layers"],
            "num_heads": work["heads"],
            "num_kv_heads": work["kv_heads"],
            "head_dim": work["embed"] // work["heads"],
            "mlp_dim": work["mlp"],
            "context_length": work["length"],
            "qk_norm": False,
            "compute_dtype": work["dtype"],
        }
    )
    for name, value in work["options"].items():
        setattr(config.model, name, value)
    return config


def main() -> None:
    """Trains `steps` steps per line of the input."""
    work = json.loads(sys.argv[1])
    rank = work["rank"]
    adaptation = Adaptation("lora", 0, rank, 2.0 * rank, ("query", "value")) if rank else None
    steps = own_steps(config_of(work), work["steps"], adaptation, work["answer"])
    about = next(steps)
    print(json.dumps({"version": f"jax {about['jax']}", "parameters": about["parameters"]}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"loss": next(steps)[-1]}), flush=True)


if __name__ == "__main__":
    main()
