"""Whether a message is spam (SMS Spam Collection: ham or spam), on a foundation model.

Command:  rootstock finetune --config=configs/finetune/email_spam.py --init_from=runs/books --workdir=runs/spam \
              --config.data.path=messages.jsonl
Data:     JSONL, CSV, Parquet or hf:NAME with a column "text" and a column "label".
Mesh:     one CPU; any `--config.mesh` that the machine has devices for.
"""

from ml_collections import ConfigDict

from configs.finetune import intent


def get_config() -> ConfigDict:
    """Returns the config: the intent task's, with fewer steps for its two classes."""
    config = intent.get_config()
    config.num_steps = 200
    config.task.prompt = "Message: {input}\nKind of message:"
    config.evaluation.every = 100
    config.checkpoint.every = 100
    return config
