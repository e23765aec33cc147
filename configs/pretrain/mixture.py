"""Two sources and a second phase: prose, and a manual that has more weight in the last quarter of the run.

Command:  rootstock pretrain --config=configs/pretrain/mixture.py --workdir=runs/mixture
          in a directory with books/ and with runs/topics.txt of docs/quickstart.md; other sources with
          --config.data.mixture="(('NAME', 'PATH', WEIGHT), ...)"
Mesh:     one CPU. Bytes per device: 16 MB of state.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns the config."""
    config = default.get_config()
    config.data.mixture = (
        ("books", "books/children/*.txt,books/prose/*.txt", 0.9),
        ("manual", "runs/topics.txt", 0.1),
    )
    config.data.mixture_schedule = ((300, {"books": 0.5, "manual": 0.5}),)
    config.data.max_epochs = 4.0
    config.data.validation_split = "tail"
    config.data.validation_fraction = 0.05
    config.tokenizer = "bpe:4096"
    config.batch_size = 8
    config.sequence_length = 256
    config.num_steps = 400
    config.model.embed_dim = 128
    config.model.num_layers = 4
    config.model.mlp_dim = 352
    config.model.scan_layers = False
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 4e-3
    config.optimizer.final_fraction = 0.0
    config.evaluation.every = 100
    config.evaluation.batches = 8
    config.checkpoint.every = 100
    return config
