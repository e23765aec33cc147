"""Classifies texts with an imported model: LoRA on every matrix of its layers, for three passes over the rows.

Command:  rootstock import-hf gemma-3-270m-q4_k_m.gguf --workdir=runs/gemma
          rootstock finetune --config=configs/finetune/imported.py --init_from=runs/gemma --workdir=runs/intent \
              --config.data.path=train.jsonl --config.task.test_path=test.jsonl
Data:     JSONL, CSV, Parquet or hf:NAME with columns "text" and "label".
Mesh:     one CPU; any `--config.mesh` that matches the number of devices.
"""

from ml_collections import ConfigDict

from configs.finetune import intent


def get_config() -> ConfigDict:
    """Returns the config: that of the intent task, with adapters and without a second run from random weights."""
    config = intent.get_config()
    config.batch_size = 8
    config.num_steps = 100  # the least; min_epochs takes more where there are more rows
    config.adapt.method = "lora"
    config.adapt.rank = 16
    config.adapt.alpha = 32.0
    config.adapt.targets = ("query", "key", "value", "output", "gate", "up", "down")
    config.task.pooling = "auto"
    config.task.min_epochs = 3.0
    config.task.baseline = False
    config.task.zero_shot_rows = 0
    config.optimizer.warmup_steps = 20
    return config
