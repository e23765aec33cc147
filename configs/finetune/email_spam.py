"""Whether a message is spam (SMS Spam Collection: ham or spam), on a foundation model.

Command:  rootstock finetune --config=configs/finetune/email_spam.py --init_from=runs/books --workdir=runs/spam \
              --config.data.path=messages.jsonl
Data:     JSONL, CSV or Parquet with a column "text" and a column "label".
Mesh:     one CPU; any `--config.mesh` that the machine has devices for.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns the config."""
    config = default.get_config()
    config.batch_size = 16
    config.sequence_length = 128
    config.num_steps = 200
    config.task.pooling = "mean"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 50
    config.evaluation.every = 100
    config.checkpoint.every = 100
    return config
