"""Which of 41 kinds a contract's clause is (CUAD), held out by contract, on a foundation model.

Command:  rootstock finetune --config=configs/finetune/contract_clause.py --init_from=runs/books \
              --workdir=runs/clause --config.data.path=clauses.jsonl
Data:     JSONL, CSV, Parquet or hf:NAME with columns "text", "label" and "contract"; rows without contracts:
          --config.task.group=""
Mesh:     one CPU; any `--config.mesh` that the machine has devices for.
"""

from ml_collections import ConfigDict

from configs.finetune import intent


def get_config() -> ConfigDict:
    """Returns the config: the intent task's, with longer rows."""
    config = intent.get_config()
    config.sequence_length = 256
    config.num_steps = 400
    config.task.group = "{contract}"
    config.task.prompt = "Clause: {input}\nKind of clause:"
    config.evaluation.every = 200
    config.checkpoint.every = 200
    return config
