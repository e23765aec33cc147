"""A 2.6-million-parameter foundation model from 20 MB of prose, for two cores and less than 40 minutes.

Command:  rootstock pretrain --config=configs/pretrain/books.py --workdir=runs/books \
              --config.data.path='books/children/*.txt,books/prose/*.txt'
Mesh:     one CPU. Bytes per device: 24 MB of state.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns the config."""
    config = default.get_config()
    config.tokenizer = "bpe:4096"
    config.batch_size = 16
    config.sequence_length = 256
    config.num_steps = 1800
    config.model.embed_dim = 192
    config.model.num_layers = 4
    config.model.mlp_dim = 512
    config.model.scan_layers = False
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 4e-3
    config.optimizer.warmup_steps = 50
    config.optimizer.final_fraction = 0.0
    config.data.validation_fraction = 0.05
    config.evaluation.every = 600
    config.evaluation.batches = 40
    config.checkpoint.every = 300
    return config
