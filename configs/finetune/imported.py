"""Fine-tunes an imported model for any task of this folder: LoRA on every matrix of its layers, for three passes.

Command:  rootstock import-hf gemma-3-270m-q4_k_m.gguf --workdir=runs/gemma
          rootstock finetune --config=configs/finetune/imported.py --init_from=runs/gemma --workdir=runs/intent \
              --config.data.path=train.jsonl --config.task.test_path=test.jsonl
          ...imported.py:dialogue_summary, or imported.py:question_answering:generative, for another task
Data:     that of the task's file; without a name that of intent.py: columns "text" and "label".
Mesh:     one CPU; any `--config.mesh` that matches the number of devices.
"""

import importlib
import pkgutil

from ml_collections import ConfigDict

from configs import finetune
from configs.errors import UserError


def get_config(task: str = "intent") -> ConfigDict:
    """Returns the config of a task, "NAME" or "NAME:VARIANT", with adapters and without a run from random weights.

    Raises:
        UserError: there is no such file.
    """
    name, _, variant = task.partition(":")
    names = sorted(module.name for module in pkgutil.iter_modules(finetune.__path__) if module.name != "imported")
    if name not in names:
        raise UserError(f"imported.py:{task} is unknown; expected one of {', '.join(names)}")
    config = importlib.import_module(f"configs.finetune.{name}").get_config(*[variant] * bool(variant))
    config.batch_size = 8
    config.num_steps = 100  # the least; min_epochs takes more where there are more rows
    config.adapt.method = "lora"
    config.adapt.rank = 16
    config.adapt.alpha = 32.0
    config.adapt.targets = ("query", "key", "value", "output", "gate", "up", "down")
    config.task.pooling = "auto"
    config.task.min_epochs = 3.0
    if name != "preference":  # which has no run from random weights
        config.task.baseline = False
    config.task.zero_shot_rows = 0
    config.optimizer.learning_rate = 1e-3  # measured with 270 million parameters; 0: chosen by method and width
    config.optimizer.warmup_steps = 20
    return config
