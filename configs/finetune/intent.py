"""Classifies the intent of customer messages (BANKING77: 77 intents).

Command:  rootstock finetune --config=configs/finetune/intent.py --init_from=runs/books --workdir=runs/intent \
              --config.data.path=train.jsonl --config.task.test_path=test.jsonl
Data:     JSONL, CSV, Parquet or hf:NAME with columns "text" and "label".
Mesh:     one CPU; any `--config.mesh` that matches the number of devices.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns the config."""
    config = default.get_config()
    config.batch_size = 16
    config.sequence_length = 128
    config.num_steps = 450
    config.task.pooling = "mean"
    config.task.prompt = "Customer: {input}\nThe customer asks about:"
    config.optimizer.learning_rate = 0.0  # chosen by method and width
    config.optimizer.warmup_steps = 50
    config.evaluation.every = 150
    config.checkpoint.every = 150
    return config
