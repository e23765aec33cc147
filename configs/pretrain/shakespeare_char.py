"""tiny-shakespeare by characters, at nanoGPT's CPU budget: 2,000 steps of 12 rows of 64 characters.

Command:  rootstock pretrain --config=configs/pretrain/shakespeare_char.py --workdir=runs/shakespeare \
              --config.data.path=input.txt
Mesh:     one CPU. Bytes per device: 6 MB of state.
Expect:   1.58 nats per character over the whole validation part (the last 10% of the text).
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns the config."""
    config = default.get_config()
    config.tokenizer = "chars"
    config.data.validation_split = "tail"
    config.batch_size = 12
    config.sequence_length = 64
    config.num_steps = 2000
    config.model.embed_dim = 128
    config.model.num_layers = 3
    config.model.num_heads = 4
    config.model.num_kv_heads = 4
    config.model.mlp_dim = 256
    config.model.tie_embeddings = False
    # On rows this short, normalizing 32-wide heads costs a fifth of the step time and gains nothing.
    config.model.qk_norm = False
    config.model.scan_layers = False
    # Matrices this small are faster with one thread each, two at a time, than with both threads on one product.
    config.xla_flags = "--xla_cpu_multi_thread_eigen=false --xla_cpu_experimental_ynn_fusion_type="
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 5e-3
    config.optimizer.muon_learning_rate = 0.015
    config.optimizer.muon_iterations = 3
    config.optimizer.weight_decay = 0.1
    config.optimizer.final_fraction = 0.0
    config.evaluation.every = 2000
    config.checkpoint.every = 2000
    config.logging.every = 50
    return config
