"""The classifier of `rootstock demo`: predicts the library that a docstring belongs to.

Command:  rootstock demo
Mesh:     one CPU.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns the config."""
    config = default.get_config()
    config.batch_size = 16
    config.sequence_length = 128
    config.num_steps = 120
    config.model.scan_layers = False
    config.task.pooling = "mean"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 20
    config.evaluation.every = 120
    config.checkpoint.every = 60
    return config
