"""A 2.6-million-parameter foundation model for tasks of today, half an hour on two cores: old and new texts, manuals.

Command:  python -m benchmarks.foundation_texts --data=DATA --output=texts
          rootstock pretrain --config=configs/pretrain/foundation.py --workdir=runs/foundation
          in a directory with books/ and texts/
Mesh:     one CPU. Bytes per device: 24 MB of state.
"""

from ml_collections import ConfigDict

from configs.pretrain import books


def get_config() -> ConfigDict:
    """Returns the config: that of the books, with sources beside them whose words the tasks use."""
    config = books.get_config()
    config.num_steps = 1000
    config.data.mixture = (
        ("books", "books/children/*.txt,books/prose/*.txt", 0.6),
        ("today", "texts/today.jsonl", 0.25),
        ("manual", "texts/manual.jsonl", 0.15),
    )
    config.data.max_epochs = 6.0
    config.data.validation_fraction = 0.02
    config.evaluation.every = 500
    config.evaluation.batches = 10
    return config
