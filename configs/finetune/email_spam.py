"""Classifies messages as ham or spam (SMS Spam Collection).

Command:  rootstock finetune --config=configs/finetune/email_spam.py --init_from=runs/books --workdir=runs/spam \
              --config.data.path=messages.jsonl
Data:     JSONL, CSV, Parquet or hf:NAME with columns "text" and "label".
Mesh:     one CPU; any `--config.mesh` that matches the number of devices.
"""

from ml_collections import ConfigDict

from configs.finetune import intent


def get_config() -> ConfigDict:
    """Returns the config: that of the intent task, with fewer steps."""
    config = intent.get_config()
    config.num_steps = 200
    config.task.prompt = "Message: {input}\nKind of message:"
    config.evaluation.every = 100
    config.checkpoint.every = 100
    return config
