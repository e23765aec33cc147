"""Which parameters are matrices: Muon updates them, and weight decay applies to no others."""

import jax
import jax.numpy as jnp
import pytest
from conftest import tiny_model
from flax import linen as nn

from configs import default
from model.heads import language_model
from model.sharding import is_partitioned
from train.optimizer import is_matrix, make_optimizer
from train.settings import from_config
from train.trees import boxed_params

MODELS = {
    "GPT-2": {"norm": "layernorm", "position": "learned", "mlp": "gelu", "qkv_bias": True, "output_bias": True,
              "mlp_bias": True, "num_kv_heads": 4, "qk_norm": False},
    "experts": {"num_experts": 4, "experts_per_token": 2, "expert_dim": 16, "shared_expert_dim": 16},
}  # fmt: skip


def boxes_of(name):
    boxed = boxed_params(language_model(tiny_model(**MODELS[name])))
    return boxed, dict(jax.tree.leaves_with_path(boxed, is_leaf=is_partitioned))


@pytest.mark.parametrize("name", MODELS)
def test_kernels_and_tables_are_matrices_and_nothing_else(name):
    _, boxes = boxes_of(name)
    found = {jax.tree_util.keystr(path, simple=True, separator="/"): is_matrix(box) for path, box in boxes.items()}
    others = {path for path, matrix in found.items() if not matrix}
    assert any(path.endswith("output/bias") for path in others) == (name == "GPT-2")
    assert all(path.endswith(("bias", "scale", "router/kernel", "table", "positions")) for path in others), others
    assert not [path for path, matrix in found.items() if matrix and path.endswith(("bias", "scale"))]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", MODELS)
def test_a_zero_gradient_decays_matrices_alone(name, optimizer):
    config = default.get_config()
    config.optimizer.name, config.optimizer.weight_decay, config.optimizer.warmup_steps = optimizer, 0.1, 0
    boxed, boxes = boxes_of(name)
    matrices = {path for path, box in boxes.items() if is_matrix(box)}
    transformation = make_optimizer(from_config(config.to_dict()).optimizer, 10, boxed)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), nn.meta.unbox(boxed))

    @jax.jit
    def decay(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return transformation.update(zeros, transformation.init(params), params)[0]

    moved = {path for path, update in jax.tree.leaves_with_path(decay(params)) if update.any()}
    assert moved == matrices
