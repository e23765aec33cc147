"""Translates English sentences (Tatoeba) into German ("de") or Vietnamese ("vi").

Command:  rootstock finetune --config=configs/finetune/translation.py:de --init_from=runs/books \
              --workdir=runs/german --config.data.path=pairs.jsonl
Data:     JSONL, CSV, Parquet or hf:NAME with a column "en" and a column named after the target language.
Mesh:     one CPU; any `--config.mesh` that matches the number of devices.
"""

from ml_collections import ConfigDict

from configs import default

_NAMES = {"de": "German", "vi": "Vietnamese", "fr": "French", "es": "Spanish"}


def get_config(language: str = "de") -> ConfigDict:
    """Returns the config for a target language, which is also the name of its column."""
    config = default.get_config()
    config.batch_size = 16
    config.sequence_length = 256
    config.num_steps = 500
    config.task.name = "generation"
    config.task.input = "{en}"
    config.task.target = language
    config.task.group = "{en}"
    config.task.metrics = ("bleu",)
    config.task.max_new_tokens = 48
    config.task.test_fraction = 0.1
    config.task.test_rows = 500
    config.task.prompt = f"English: {{input}}\n{_NAMES.get(language, language)}:"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 50
    config.evaluation.every = 250
    config.checkpoint.every = 250
    return config
