"""Llama 2 7B from scratch on a v5e-16 slice: parameters and moments over all chips, every layer recomputed.

Command:  rootstock pretrain --config=configs/pretrain/v5e_16.py --workdir=runs/7b --config.data.path=STORE
Mesh:     fsdp 16, four hosts (docs/clusters.md). Bytes per device: 14.3 GB of 17.2 GB at the peak (rootstock plan).
"""

from ml_collections import ConfigDict

from configs.pretrain import llm


def get_config() -> ConfigDict:
    """Returns the config: 128 rows of 2,048 tokens per step, 8 per chip."""
    config = llm.get_config("llama2_7b")
    config.tokenizer = "bpe:32000"
    config.batch_size = 128
    config.num_steps = 100_000
    config.mesh.fsdp = 16
    config.optimizer.warmup_steps = 2000
    config.optimizer.weight_decay = 0.1
    config.evaluation.every = 1000
    config.checkpoint.every = 1000
    config.data.num_workers = 2
    return config
