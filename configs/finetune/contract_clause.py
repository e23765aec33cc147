"""Classifies contract clauses into 41 kinds (CUAD); the test set consists of contracts not seen in training.

Command:  rootstock finetune --config=configs/finetune/contract_clause.py --init_from=runs/books \
              --workdir=runs/clause --config.data.path=clauses.jsonl
Data:     JSONL, CSV, Parquet or hf:NAME with columns "text", "label" and "contract"; for rows without contracts:
          --config.task.group=""
Mesh:     one CPU; any `--config.mesh` that matches the number of devices.
"""

from ml_collections import ConfigDict

from configs.finetune import intent


def get_config() -> ConfigDict:
    """Returns the config: that of the intent task, with longer rows."""
    config = intent.get_config()
    config.sequence_length = 256
    config.num_steps = 400
    config.task.group = "{contract}"
    config.task.prompt = "Clause: {input}\nKind of clause:"
    config.evaluation.every = 200
    config.checkpoint.every = 200
    return config
