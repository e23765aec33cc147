"""A published architecture by name: `--config=configs/pretrain/llm.py:llama2_7b` (names: configs/models.py).

Command:  rootstock pretrain --config=configs/pretrain/llm.py:smollm2_135m --workdir=runs/smollm2 \
              --config.data.path=STORE --config.mesh.fsdp=8
Mesh:     fsdp over all devices unless told otherwise; float32 parameters and Adam moments need 12 bytes per
          parameter, divided over fsdp x tensor.
"""

from ml_collections import ConfigDict

from configs import default, models


def get_config(name: str = "smollm2_135m") -> ConfigDict:
    """Returns the default config with the architecture `name`, 8 rows of 2,048 tokens per step."""
    config = default.get_config()
    # The published architecture replaces the default's choices for small models.
    config.model.update({"qk_norm": False, "output_init": "scaled", "remat": "full"})
    config.model.update(models.architecture(name))
    # A vocabulary that meshes do not divide (GPT-2's 50,257) is padded with rows that no token uses.
    if config.model.vocab_size % 128:
        config.model.vocab_size = -(-config.model.vocab_size // 512) * 512
    config.batch_size = 8
    config.sequence_length = min(2048, config.model.context_length)
    config.num_steps = 10_000
    config.loss.chunk = 256
    config.loss.z_loss = 1e-4
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.optimizer.learning_rate = 3e-4
    config.optimizer.warmup_steps = 500
    config.evaluation.batches = 50
    return config
