"""Summarizes dialogues (MTS-Dialog: doctor and patient).

Command:  rootstock finetune --config=configs/finetune/dialogue_summary.py --init_from=runs/books \
              --workdir=runs/summary --config.data.path=train.jsonl --config.task.test_path=test.jsonl
Data:     JSONL, CSV, Parquet or hf:NAME with a column "dialogue" and a column "summary".
Mesh:     one CPU; any `--config.mesh` that matches the number of devices.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns the config."""
    config = default.get_config()
    config.batch_size = 8
    config.sequence_length = 512
    config.num_steps = 300
    config.task.name = "generation"
    config.task.input = "{dialogue}"
    config.task.target = "summary"
    config.task.metrics = ("rouge",)
    config.task.max_new_tokens = 96
    config.task.prompt = "{input}\nSummary:"
    config.task.shots = 2
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 30
    config.evaluation.every = 100
    config.checkpoint.every = 150
    return config
