"""A 3-million-parameter model on any text: the first config to run on a laptop.

Command:  rootstock pretrain --config=configs/pretrain/tiny.py --workdir=runs/tiny --config.data.path='texts/*.txt'
Mesh:     one CPU; any `--config.mesh` that matches the number of devices.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns the config."""
    config = default.get_config()
    config.tokenizer = "bpe:2048"
    config.batch_size = 16
    config.sequence_length = 128
    config.num_steps = 300
    config.model.embed_dim = 192
    config.model.num_layers = 4
    config.model.mlp_dim = 512
    config.evaluation.every = 100
    config.checkpoint.every = 100
    return config
