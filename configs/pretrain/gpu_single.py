"""A 110-million-parameter Llama-like model on one GPU: bfloat16, cuDNN attention, Muon.

Command:  rootstock pretrain --config=configs/pretrain/gpu_single.py --workdir=runs/gpu --config.data.path=STORE
Mesh:     one GPU. Bytes per device: 12.9 GB at the peak (rootstock plan --topology=h100, attention without its flash
          kernel), so it fits a card of 24 GB; on a smaller one, increase config.microbatches.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns the config: 0.5 million tokens per step, in 16 microbatches of 32 rows of 1,024 tokens."""
    config = default.get_config()
    config.tokenizer = "bpe:32768"
    config.batch_size = 512
    config.microbatches = 16
    config.sequence_length = 1024
    config.num_steps = 5000
    config.model.embed_dim = 768
    config.model.num_layers = 12
    config.model.num_heads = 12
    config.model.num_kv_heads = 12
    config.model.mlp_dim = 2048
    # Without a scan over the layers, a step took 0.95 of the time on an H200 (docs/benchmarks.md).
    config.model.scan_layers = False
    # Matrix products are kept for the backward pass; norms and activations are recomputed.
    config.model.remat = "dots"
    config.loss.chunk = 128
    config.loss.z_loss = 1e-4
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.muon_learning_rate = 0.02
    config.optimizer.schedule = "wsd"
    config.optimizer.warmup_steps = 100
    config.evaluation.every = 500
    config.evaluation.batches = 20
    config.checkpoint.every = 500
    config.data.num_workers = 2
    return config
