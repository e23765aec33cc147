"""Mixture of experts: a router chooses K of E experts for each token; every choice is computed, none is dropped.

A token's choices are its assignments. They are sorted by expert, so that each expert multiplies one group of rows. A
group is padded to whole blocks on a CPU, where a loop over blocks is as fast as one dense product (`grouped`); XLA's
`ragged_dot` multiplies each row by every expert there. Padding tokens have no assignments: no expert computes them and
no count contains them.

B batch, T length, D embed, E experts, K experts per token, F expert width, S tokens, A assignments (S x K), R rows of
all groups, n blocks of b rows.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from model.config import ModelConfig
from model.dtypes import platform
from model.layers import MLP, activated, output_std
from model.sharding import ACTIVATION_RULES, PARAMETER_RULES, shards, spec, with_axes

_LARGEST_BLOCK = 128


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
    """

    load_E: jax.Array
    entropy: jax.Array
    z: jax.Array
    balance: jax.Array
    tokens: jax.Array


class Experts(nn.Module):
    """The router, its experts and the shared expert, which take the place of a layer's MLP."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array, real_BT: jax.Array) -> tuple[jax.Array, RouterSums]:
        """Returns (y_BTD, the router's sums); y is 0 where `real_BT` is false, except for the shared expert."""
        cfg = self.config
        D, E, F = cfg.embed_dim, cfg.num_experts, cfg.expert_width
        logits_BTE = Router(cfg, name="router")(x_BTD)
        experts_BTK, gates_BTK, probabilities_BTE = route(cfg, logits_BTE)
        names = ("gate", "up") if cfg.gated else ("up",)
        kernels = {name: _Kernel((E, D, F), ("experts", "embed", "mlp"), D**-0.5, name=name)() for name in names}
        std = output_std(cfg, fan_in=F)
        kernels["down"] = _Kernel((E, F, D), ("experts", "mlp", "embed"), std, name="down")()
        if self.is_initializing():
            # Layers are initialized under `vmap`, which `ragged_dot` does not support.
            y_BTD = jnp.zeros_like(x_BTD)
        else:
            y_BTD = dispatch(cfg, x_BTD, jnp.where(real_BT[..., None], experts_BTK, E), gates_BTK, kernels)
        if cfg.shared_expert_dim:
            y_BTD = y_BTD + MLP(cfg, cfg.shared_expert_dim, name="shared")(x_BTD)
        return y_BTD, _sums(cfg, logits_BTE, probabilities_BTE, experts_BTK, real_BT)


class Router(nn.Module):
    """The router's projection, in float32: in bfloat16, rounding would change which experts are chosen."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Returns logits_BTE in float32."""
        shape = (self.config.embed_dim, self.config.num_experts)
        init = with_axes(nn.initializers.normal(shape[0] ** -0.5), "embed", "router")
        weight_DE = self.param("weight", init, shape)
        return jnp.einsum("BTD,DE->BTE", x_BTD.astype(jnp.float32), weight_DE, precision="highest")


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


def route(config: ModelConfig, logits_BTE: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (experts_BTK, gates_BTK, probabilities_BTE): each token's experts, their weights, all probabilities.

    "softmax" and "sigmoid" weight an expert by its score among all experts; "softmax_top" by its softmax among the
    chosen.
    """
    if config.router == "sigmoid":
        scores_BTE = jax.nn.sigmoid(logits_BTE)
        probabilities_BTE = scores_BTE / scores_BTE.sum(-1, keepdims=True)
    else:
        probabilities_BTE = jax.nn.softmax(logits_BTE, axis=-1)
        scores_BTE = logits_BTE if config.router == "softmax_top" else probabilities_BTE
    experts_BTK = jax.lax.top_k(jax.lax.stop_gradient(scores_BTE), config.experts_per_token)[1]
    gates_BTK = jnp.take_along_axis(scores_BTE, experts_BTK, axis=-1)
    if config.router == "softmax_top":
        gates_BTK = jax.nn.softmax(gates_BTK, axis=-1)
    if config.router_renormalize:
        gates_BTK = gates_BTK / gates_BTK.sum(-1, keepdims=True)
    return experts_BTK, gates_BTK, probabilities_BTE


def _sums(
    config: ModelConfig,
    logits_BTE: jax.Array,
    probabilities_BTE: jax.Array,
    experts_BTK: jax.Array,
    real_BT: jax.Array,
) -> RouterSums:
    """Returns the sums over the tokens that are not padding."""
    E, K = config.num_experts, config.experts_per_token
    weights_BT = real_BT.astype(jnp.float32)
    load_BE = (jax.nn.one_hot(experts_BTK, E).sum(2) * weights_BT[..., None]).sum(1)
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
    )


def dispatch(
    config: ModelConfig, x_BTD: jax.Array, experts_BTK: jax.Array, gates_BTK: jax.Array, kernels: dict[str, jax.Array]
) -> jax.Array:
    """Returns y_BTD: the sum over each token's experts of gate times the expert's MLP.

    Args:
        config: the model.
        x_BTD: the tokens.
        experts_BTK: index of each choice; E: none, for padding.
        gates_BTK: weight of each choice.
        kernels: "up", "down" and, in a gated MLP, "gate": one matrix per expert.
    """
    mesh, (B, T, _) = jax.sharding.get_abstract_mesh(), x_BTD.shape
    if mesh.empty or B % shards("batch") or T % shards("length"):
        return _dispatch(config, x_BTD, experts_BTK, gates_BTK, kernels)
    tokens = spec(("batch", "length", "activation"), ACTIVATION_RULES)
    axes = {name: ("experts", *(("mlp", "norm") if name == "down" else ("norm", "mlp"))) for name in kernels}
    split = {name: spec(names, PARAMETER_RULES) for name, names in axes.items()}

    def local(x: jax.Array, experts: jax.Array, gates: jax.Array, kernels: dict[str, jax.Array]) -> jax.Array:
        # Each device has a part of every expert's width, and so a part of the sum over it.
        return jax.lax.psum(_dispatch(config, x, experts, gates, kernels), PARAMETER_RULES["mlp"])

    return jax.shard_map(local, in_specs=(tokens, tokens, tokens, split), out_specs=tokens, check_vma=False)(
        x_BTD, experts_BTK, gates_BTK, kernels
    )


def _dispatch(
    config: ModelConfig, x_BTD: jax.Array, experts_BTK: jax.Array, gates_BTK: jax.Array, kernels: dict[str, jax.Array]
) -> jax.Array:
    """Returns what `dispatch` does, for the tokens of one device."""
    B, T, D = x_BTD.shape
    E, K = config.num_experts, config.experts_per_token
    x_SD, experts_A, gates_A = x_BTD.reshape(-1, D), experts_BTK.reshape(-1), gates_BTK.reshape(-1)
    order_A = jnp.argsort(experts_A, stable=True)
    groups = make_groups(jnp.bincount(experts_A, length=E + 1)[:E], block_size(len(experts_A), E), len(experts_A))
    assignment_R = order_A[groups.source_R]
    x_RD = jnp.where(groups.real_R[:, None], x_SD[assignment_R // K], 0)
    y_RD = expert_mlp(config, x_RD, groups, kernels).astype(jnp.float32) * gates_A[assignment_R][:, None]
    y_SD = jnp.zeros((B * T, D), jnp.float32)
    y_SD = y_SD.at[assignment_R // K].add(jnp.where(groups.real_R[:, None], y_RD, 0))
    return y_SD.astype(x_BTD.dtype).reshape(B, T, D)


class Groups(NamedTuple):
    """Rows sorted by expert, each expert's group padded to whole blocks.

    Attributes:
        sizes_E: rows of each group, a multiple of `block`.
        source_R: index among the sorted assignments that each row holds.
        real_R: whether a row holds an assignment.
        block: rows per block; static.
    """

    sizes_E: jax.Array
    source_R: jax.Array
    real_R: jax.Array
    block: int


def block_size(assignments: int, experts: int) -> int:
    """Returns the rows per block: 1, without padding, where `ragged_dot` is native; else near an expert's load."""
    if platform() != "cpu":
        return 1
    return min(_LARGEST_BLOCK, 1 << max(assignments // experts, 1).bit_length() - 1)


def make_groups(load_E: jax.Array, block: int, most: int) -> Groups:
    """Returns the groups of experts with these numbers of assignments, which are at most `most` together."""
    sizes_E = -(-load_E // block) * block
    ends_E, last_E = jnp.cumsum(sizes_E), jnp.cumsum(load_E)
    rows = -(-(most + len(load_E) * (block - 1)) // block) * block
    row_R = jnp.arange(rows)
    expert_R = jnp.minimum(jnp.searchsorted(ends_E, row_R, side="right"), len(load_E) - 1)
    offset_R = row_R - (ends_E - sizes_E)[expert_R]
    real_R = offset_R < load_E[expert_R]
    source_R = jnp.where(real_R, (last_E - load_E)[expert_R] + offset_R, 0)
    return Groups(sizes_E.astype(jnp.int32), source_R, real_R, block)


def expert_mlp(config: ModelConfig, x_RD: jax.Array, groups: Groups, kernels: dict[str, jax.Array]) -> jax.Array:
    """Returns y_RD: each row through its expert's MLP; rows beyond the groups are undefined."""

    def product(x: jax.Array, name: str) -> jax.Array:
        return grouped(x, kernels[name].astype(x.dtype), groups.sizes_E, groups.block)

    h_RF = product(x_RD, "up")
    h_RF = activated(config.mlp, product(x_RD, "gate"), h_RF) if config.gated else activated(config.mlp, h_RF)
    # Beyond the groups, `ragged_dot` leaves memory uninitialized on some platforms.
    return product(jnp.where(groups.real_R[:, None], h_RF, 0), "down")


def grouped(x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array, block: int) -> jax.Array:
    """Returns y_RF: rows of group e times w[e]; every size is a multiple of `block`."""
    if platform() != "cpu":
        return jax.lax.ragged_dot(x_RD, w_EDF, sizes_E)
    y_nbF: jax.Array = _blocks(x_RD.reshape(-1, block, x_RD.shape[1]), w_EDF, sizes_E // block)
    return y_nbF.reshape(len(x_RD), -1)


@jax.custom_vjp
def _blocks(x_nbD: jax.Array, w_EDF: jax.Array, counts_E: jax.Array) -> jax.Array:
    """Returns each block times its group's matrix; the loop ends with the last block of a group."""
    expert_n = _experts_of_blocks(counts_E, len(x_nbD))

    def body(i: jax.Array, y_nbF: jax.Array) -> jax.Array:
        return y_nbF.at[i].set(x_nbD[i] @ w_EDF[expert_n[i]])

    y_nbF = jnp.zeros((*x_nbD.shape[:2], w_EDF.shape[2]), x_nbD.dtype)
    return jax.lax.fori_loop(0, counts_E.sum(), body, y_nbF)


def _experts_of_blocks(counts_E: jax.Array, blocks: int) -> jax.Array:
    expert_n = jnp.searchsorted(jnp.cumsum(counts_E), jnp.arange(blocks), side="right")
    return jnp.minimum(expert_n, len(counts_E) - 1)


def _blocks_fwd(x_nbD: jax.Array, w_EDF: jax.Array, counts_E: jax.Array) -> tuple[jax.Array, Any]:
    return _blocks(x_nbD, w_EDF, counts_E), (x_nbD, w_EDF, counts_E)


def _blocks_bwd(residuals: Any, dy_nbF: jax.Array) -> tuple[jax.Array, jax.Array, None]:  # noqa: ANN401
    x_nbD, w_EDF, counts_E = residuals
    expert_n = _experts_of_blocks(counts_E, len(x_nbD))

    def body(i: jax.Array, grads: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        dx_nbD, dw_EDF = grads
        e = expert_n[i]
        dx_nbD = dx_nbD.at[i].set(dy_nbF[i] @ w_EDF[e].T)
        return dx_nbD, dw_EDF.at[e].add(x_nbD[i].T @ dy_nbF[i])

    zeros = jnp.zeros_like(x_nbD), jnp.zeros_like(w_EDF)
    dx_nbD, dw_EDF = jax.lax.fori_loop(0, counts_E.sum(), body, zeros)
    return dx_nbD, dw_EDF, None


_blocks.defvjp(_blocks_fwd, _blocks_bwd)
