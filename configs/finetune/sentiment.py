"""Classifies sentences of reviews as positive or negative (Sentence Polarity).

Command:  rootstock finetune --config=configs/finetune/sentiment.py --init_from=runs/books --workdir=runs/sentiment \
              --config.data.path=reviews.jsonl
Data:     JSONL, CSV, Parquet or hf:NAME with columns "text" and "label".
Mesh:     one CPU; any `--config.mesh` that matches the number of devices.
"""

from ml_collections import ConfigDict

from configs.finetune import intent


def get_config() -> ConfigDict:
    """Returns the config: that of the intent task, with another prompt."""
    config = intent.get_config()
    config.task.prompt = "Review: {input}\nThe review is"
    return config
