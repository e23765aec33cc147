"""A multi-turn customer-service assistant (Taskmaster-4 and short instructions).

Command:  rootstock finetune --config=configs/finetune/assistant.py --init_from=runs/books --workdir=runs/assistant \
              --config.data.path='dialogues.jsonl,instructions.jsonl'
Data:     JSONL, Parquet or hf:NAME with a column "messages" ([{role, content}]) or "conversations" ([{from, value}]),
          or "instruction", "input", "output".
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
    config.task.name = "chat"
    config.task.target = "messages"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 30
    config.evaluation.every = 100
    config.checkpoint.every = 150
    return config
