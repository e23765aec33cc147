"""`books.py` with experts: 8 of half the MLP's width per layer, 2 for each token: the same active FLOPs.

Command:  rootstock pretrain --config=configs/pretrain/moe_tiny.py --workdir=runs/moe \
              --config.data.path='books/children/*.txt,books/prose/*.txt'
Mesh:     one CPU. Bytes per device: 52 MB of state.
"""

from ml_collections import ConfigDict

from configs.pretrain import books


def get_config() -> ConfigDict:
    """Returns the config."""
    config = books.get_config()
    config.model.num_experts = 8
    config.model.experts_per_token = 2
    config.model.expert_dim = config.model.mlp_dim // 2
    config.loss.balance_loss = 0.01
    return config
