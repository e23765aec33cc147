"""Trains a chat model on pairs of answers of which people chose one (DPO), or a reward model with task.name=reward.

Command:  rootstock finetune --config=configs/finetune/preference.py --init_from=runs/assistant \
              --workdir=runs/preferred --config.data.path=pairs.jsonl
Data:     JSONL, CSV, Parquet or hf:NAME with columns "prompt", "chosen" and "rejected".
Mesh:     one CPU; any `--config.mesh` that matches the number of devices.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns the config."""
    config = default.get_config()
    config.batch_size = 16
    config.sequence_length = 256
    config.num_steps = 300
    config.task.name = "preference"
    config.task.input = "{prompt}"
    config.optimizer.learning_rate = 1e-5
    config.optimizer.warmup_steps = 30
    config.evaluation.every = 100
    config.checkpoint.every = 150
    return config
