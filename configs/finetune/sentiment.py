"""Whether a sentence of a review is positive or negative (Sentence Polarity), on a foundation model.

Command:  rootstock finetune --config=configs/finetune/sentiment.py --init_from=runs/books --workdir=runs/sentiment \
              --config.data.path=reviews.jsonl
Data:     JSONL, CSV, Parquet or hf:NAME with a column "text" and a column "label".
Mesh:     one CPU; any `--config.mesh` that the machine has devices for.
"""

from ml_collections import ConfigDict

from configs.finetune import intent


def get_config() -> ConfigDict:
    """Returns the config: the intent task's, with another prompt."""
    config = intent.get_config()
    config.task.prompt = "Review: {input}\nThe review is"
    return config
