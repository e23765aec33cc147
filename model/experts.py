"""Mixture of experts: a router chooses K of E experts for each token; every choice is computed, none is dropped.

The router is here, with its statistics and the balancing of its load; `dispatch.py` computes the experts that it chose.
Padding tokens go to no expert, and no count contains them.

B batch, T length, D embed, E experts, K experts per token, F expert width, P devices that tokens are split over, L
layers with experts.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from model.config import ModelConfig
from model.dispatch import dispatch
from model.layers import MLP, output_std
from model.sharding import with_axes

# The name by which rematerialization keeps the router's choices: recomputed, a near tie could have another result.
ROUTER_CHOICES = "router_choices"


class RouterSums(NamedTuple):
    """What a layer's router did, summed over tokens, padding excluded; stacked over the layers with experts.

    Attributes:
        load_E: number of tokens of each expert.
        entropy: entropy of the router's distribution, in nats.
        z: log(Z)^2 of the router's logits (ST-MoE, arXiv:2202.08906, equation 5); of each row, until `heads.py` sums.
        balance: for each row its number of tokens times E sum_e f_e p_e (Switch, arXiv:2101.03961, equation 4), where
            f_e is the part of the row's assignments and p_e the mean probability of expert e; 1 per token if uniform.
            As z, of each row until `heads.py` sums.
        tokens: number of tokens.
        rounds_P: number of rounds that each device took for its experts (`dispatch.py`), summed over microbatches.
    """

    load_E: jax.Array
    entropy: jax.Array
    z: jax.Array
    balance: jax.Array
    tokens: jax.Array
    rounds_P: jax.Array


class Experts(nn.Module):
    """The router, its experts and the shared expert, which take the place of a layer's MLP."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array, real_BT: jax.Array) -> tuple[jax.Array, RouterSums]:
        """Returns (y_BTD, the router's sums); y is 0 where `real_BT` is false, except for the shared expert."""
        cfg = self.config
        D, E, F = cfg.embed_dim, cfg.num_experts, cfg.expert_width
        logits_BTE, bias_E = Router(cfg, name="router")(x_BTD)
        choices = route(cfg, logits_BTE, bias_E)
        names = ("gate", "up") if cfg.gated else ("up",)
        axes = ("experts", "expert_embed", "mlp")
        kernels = {name: _Kernel((E, D, F), axes, D**-0.5, name=name)() for name in names}
        std = output_std(cfg, fan_in=F)
        kernels["down"] = _Kernel((E, F, D), ("experts", "mlp", "expert_embed"), std, name="down")()
        if self.is_initializing():
            # Layers are initialized under `vmap`, which `ragged_dot` does not support.
            y_BTD, rounds_P = jnp.zeros_like(x_BTD), jnp.ones(1)
        else:
            experts_BTK = jnp.where(real_BT[..., None], choices.experts_BTK, E)
            y_BTD, rounds_P = dispatch(cfg, x_BTD, experts_BTK, choices.gates_BTK, kernels)
        if cfg.shared_expert_dim:
            y_BTD = y_BTD + MLP(cfg, cfg.shared_expert_dim, name="shared")(x_BTD)
        return y_BTD, _sums(cfg, logits_BTE, choices, real_BT, rounds_P)


class Router(nn.Module):
    """The router's projection, in float32: in bfloat16, rounding would change which experts are chosen."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Returns (logits_BTE in float32, bias_E of the choice or None)."""
        shape = (self.config.embed_dim, self.config.num_experts)
        init = with_axes(nn.initializers.normal(shape[0] ** -0.5), "embed", "router")
        weight_DE = self.param("weight", init, shape)
        bias_E = None
        if self.config.router_bias:
            bias_E = self.param("bias", with_axes(nn.initializers.zeros, "router"), shape[1:])
        return jnp.einsum("BTD,DE->BTE", x_BTD.astype(jnp.float32), weight_DE, precision="highest"), bias_E


class _Kernel(nn.Module):
    """One matrix per expert, with the names that an MLP's matrix has."""

    shape: tuple[int, ...]
    names: tuple[str, ...]
    std: float

    @nn.compact
    def __call__(self) -> jax.Array:
        """Returns the weight."""
        weight: jax.Array = self.param("kernel", with_axes(nn.initializers.normal(self.std), *self.names), self.shape)
        return weight


class Choices(NamedTuple):
    """What a router chose.

    Attributes:
        experts_BTK: each token's experts.
        gates_BTK: their weights.
        probabilities_BTE: the router's distribution over all experts.
    """

    experts_BTK: jax.Array
    gates_BTK: jax.Array
    probabilities_BTE: jax.Array


def route(config: ModelConfig, logits_BTE: jax.Array, bias_E: jax.Array | None = None) -> Choices:
    """Returns the experts with the highest scores, and their weights.

    "softmax" and "sigmoid" weight an expert by its score among all experts; "softmax_top" by its softmax among the
    chosen. The bias is added to the scores for the choice alone and so has no gradient (arXiv:2408.15664).
    """
    if config.router == "sigmoid":
        scores_BTE = jax.nn.sigmoid(logits_BTE)
        probabilities_BTE = scores_BTE / scores_BTE.sum(-1, keepdims=True)
    else:
        probabilities_BTE = jax.nn.softmax(logits_BTE, axis=-1)
        scores_BTE = logits_BTE if config.router == "softmax_top" else probabilities_BTE
    ranks_BTE = jax.lax.stop_gradient(scores_BTE if bias_E is None else scores_BTE + bias_E)
    experts_BTK = checkpoint_name(jax.lax.top_k(ranks_BTE, config.experts_per_token)[1], ROUTER_CHOICES)
    gates_BTK = jnp.take_along_axis(scores_BTE, experts_BTK, axis=-1)
    if config.router == "softmax_top":
        gates_BTK = jax.nn.softmax(gates_BTK, axis=-1)
    if config.router_renormalize:
        gates_BTK = gates_BTK / gates_BTK.sum(-1, keepdims=True)
    return Choices(experts_BTK, gates_BTK, probabilities_BTE)


def _sums(
    config: ModelConfig, logits_BTE: jax.Array, choices: Choices, real_BT: jax.Array, rounds_P: jax.Array
) -> RouterSums:
    """Returns the sums over the tokens that are not padding."""
    E, K = config.num_experts, config.experts_per_token
    weights_BT, probabilities_BTE = real_BT.astype(jnp.float32), choices.probabilities_BTE
    load_BE = (jax.nn.one_hot(choices.experts_BTK, E).sum(2) * weights_BT[..., None]).sum(1)
    mass_BE = (probabilities_BTE * weights_BT[..., None]).sum(1)
    tokens_B = weights_BT.sum(1)
    balance_B = E / K * (load_BE * mass_BE).sum(-1) / jnp.maximum(tokens_B, 1.0)
    log_BTE = jnp.log(jnp.maximum(probabilities_BTE, jnp.finfo(jnp.float32).tiny))
    entropy_BT = -(probabilities_BTE * log_BTE).sum(-1)
    z_BT = jnp.square(jax.nn.logsumexp(logits_BTE, axis=-1))
    return RouterSums(
        load_E=jax.lax.stop_gradient(load_BE.sum(0)),
        entropy=jax.lax.stop_gradient((entropy_BT * weights_BT).sum()),
        z=(z_BT * weights_BT).sum(1),
        balance=balance_B,
        tokens=tokens_B.sum(),
        rounds_P=jax.lax.stop_gradient(rounds_P),
    )


def balanced(params: dict[str, Any], load_LE: jax.Array, rate: float) -> dict[str, Any]:
    """Returns the trained parameters with each router's bias moved by `rate` towards an even load.

    An expert with more tokens than the mean of its layer gets a lower bias, one with fewer a higher one (DeepSeek-V3,
    arXiv:2412.19437, section 2.1.2). Its gradient is zero, so no optimizer moves it, nor does it count in any norm.

    Args:
        params: a tree of stacked parameters; where the last layers alone train, their differences.
        load_LE: `RouterSums.load_E` of a step, over all of its tokens.
        rate: the change of a bias per step.
    """

    def leaf(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        if tuple(part.key for part in path[-3:]) != ("experts", "router", "bias"):
            return x
        own_LE = load_LE[-len(x) :]
        return x + rate * jnp.sign(own_LE.mean(-1, keepdims=True) - own_LE)

    moved: dict[str, Any] = jax.tree_util.tree_map_with_path(leaf, params)
    return moved
