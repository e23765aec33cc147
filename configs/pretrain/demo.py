"""The pre-trained model of `rootstock demo`: this machine's Python documentation, a few minutes on two cores.

Command:  rootstock demo
Mesh:     one CPU.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns the config."""
    config = default.get_config()
    config.tokenizer = "bpe:4096"
    config.batch_size = 16
    config.sequence_length = 128
    config.num_steps = 400
    config.model.embed_dim = 192
    config.model.num_layers = 4
    config.model.mlp_dim = 512
    config.model.scan_layers = False
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.final_fraction = 0.0
    config.data.validation_fraction = 0.02
    config.evaluation.every = 400
    config.evaluation.batches = 20
    config.checkpoint.every = 200
    return config
