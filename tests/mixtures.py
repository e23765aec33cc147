"""A small mixture of experts, a dense reference of it, and loads of its experts, for the tests of both."""

import jax
import jax.numpy as jnp
import numpy as np

from model.heads import RouterLosses, language_model
from model.layers import activated
from train.step import summed_gradients

MIXTURE = {"num_experts": 8, "experts_per_token": 2, "expert_dim": 24}
LOADS = ("usual", "all_to_two", "half_empty", "padding")


def dense(config, x, experts, gates, kernels):
    """Every expert computes every token; the gates of the experts that were not chosen are 0."""
    weights = (jax.nn.one_hot(experts, config.num_experts) * gates[..., None]).sum(2)
    up = jnp.einsum("BTD,EDF->BTEF", x, kernels["up"])
    gate = (jnp.einsum("BTD,EDF->BTEF", x, kernels["gate"]), up) if config.gated else (up,)
    return jnp.einsum("BTEF,EFD,BTE->BTD", activated(config.mlp, *gate), kernels["down"], weights), jnp.ones(1)


def batch_of(rows=8, length=16, seed=0, padding=3):
    tokens = np.random.default_rng(seed).integers(3, 64, (rows, length))
    real = np.ones_like(tokens)
    real[:, length - padding :] = 0
    return {
        "tokens": tokens, "targets": np.roll(tokens, -1, 1), "segment_ids": real,
        "positions": np.tile(np.arange(length), (rows, 1)), "weights": real.astype(np.float32),
    }  # fmt: skip


def assert_close(found, expected, tolerance=1e-5):
    def leaf(path, a, b):
        a, b = np.asarray(a), np.asarray(b)
        assert np.isfinite(a).all(), jax.tree_util.keystr(path)
        scale = max(np.abs(b).max(), 1e-6)
        assert np.abs(a - b).max() / scale < tolerance, f"{jax.tree_util.keystr(path)}: {np.abs(a - b).max() / scale}"

    jax.tree_util.tree_map_with_path(leaf, found, expected)


def logits_of(load, rng, shape):
    logits = rng.standard_normal(shape).astype(np.float32)
    if load == "all_to_two":
        logits[..., 2:] -= 50
    if load == "half_empty":
        logits[..., shape[-1] // 2 :] -= 50
    return jnp.asarray(logits)


def gradient_of(model, params, batch, microbatches=1, dispatch_by=None, monkeypatch=None):
    """Returns (gradient, sums); the rounds, which depend on devices and microbatches, are left out."""
    if dispatch_by is not None:
        monkeypatch.setattr("model.experts.dispatch", dispatch_by)
    objective = language_model(model, router=RouterLosses(z=0.01, balance=0.02))
    grads, sums = jax.jit(lambda p: summed_gradients(objective, p, batch, microbatches))(params)
    return grads, sums._replace(routers=sums.routers._replace(rounds_P=None))
