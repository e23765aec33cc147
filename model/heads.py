"""Hidden states -> task outputs: an `Objective` holds the pure functions that pre-training and fine-tuning compile.

Every task has the same batch: tokens, segment_ids, positions, targets and weights, all (B, T). A language model has a
target at each token, a classifier at the last token of each example, so packed rows need no special case.
B batch, T length, S keys, D embed, V vocabulary or classes.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from model import losses
from model.config import ModelConfig
from model.experts import RouterSums
from model.sharding import with_axes
from model.transformer import Batch, Params, forward, forward_with_routers, in_compute_dtype, init_backbone

Pooling = Literal["last", "mean", "none"]


class Objective(NamedTuple):
    """A model with its head, as pure functions of `params = {"backbone": ..., "head": ...}`.

    Attributes:
        init: rng -> boxed parameters.
        cast: parameters -> the parameters that the loss is differentiated by (`transformer.in_compute_dtype`).
        loss: (params, batch) -> `LossSums`.
        predict: (params, batch) -> what evaluation reads: nll_BT of a language model, logits_BTV of a classifier.
        trained: the groups of parameters that are trained; the others are frozen.
    """

    init: Callable[[jax.Array], Params]
    cast: Callable[[Params], Params]
    loss: Callable[[Params, Batch], losses.LossSums]
    predict: Callable[[Params, Batch], jax.Array]
    trained: tuple[str, ...] = ("backbone", "head")


class RouterLosses(NamedTuple):
    """Weights of the losses of routers, which are added to the objective of a model with experts.

    Attributes:
        z: of `RouterSums.z`.
        balance: of `RouterSums.balance`.
    """

    z: float = 0.0
    balance: float = 0.0


NO_ROUTER_LOSSES = RouterLosses()


class HeadLoss(NamedTuple):
    """The loss of a head, without those of routers.

    Attributes:
        sums: over the batch.
        weight_B: `sums.weight` of each row.
    """

    sums: losses.LossSums
    weight_B: jax.Array


def head_objective(
    config: ModelConfig,
    init: Callable[[jax.Array], Params],
    loss: Callable[[Params, jax.Array, Batch], HeadLoss],
    predict: Callable[[Params, jax.Array, Batch], jax.Array],
    router: RouterLosses = NO_ROUTER_LOSSES,
) -> Objective:
    """Returns the `Objective` of a head: its `loss` and `predict` are functions of (params, x_BTD, batch)."""

    def whole_loss(params: Params, batch: Batch) -> losses.LossSums:
        x_BTD, routers = forward_with_routers(config, params["backbone"], batch)
        found = loss(params, x_BTD, batch)
        return found.sums if routers is None else _with_routers(found, routers, router, batch)

    def whole_predict(params: Params, batch: Batch) -> jax.Array:
        return predict(params, forward(config, params["backbone"], batch), batch)

    return Objective(init, partial(in_compute_dtype, config), whole_loss, whole_predict)


def _with_routers(found: HeadLoss, routers: RouterSums, router: RouterLosses, batch: Batch) -> losses.LossSums:
    """Returns the loss with those of routers: for each row, the mean over its tokens times the row's weight.

    So a coefficient means the same whether each token, or one in a hundred, has a target; and because each row has its
    own factor, the sum does not depend on how rows are divided into microbatches.
    """
    tokens_B = (batch["segment_ids"] > 0).sum(1)
    factor_B = found.weight_B / jnp.maximum(tokens_B, 1)
    objective = found.sums.objective
    for weight, sums_LB in ((router.z, routers.z), (router.balance, routers.balance)):
        if weight:
            objective += weight * (sums_LB * factor_B).sum()
    routers = routers._replace(z=routers.z.sum(-1), balance=routers.balance.sum(-1))
    return found.sums._replace(objective=objective, routers=jax.lax.stop_gradient(routers))


def unembedding(params: Params) -> jax.Array:
    """Returns table_VD of a language model: the head's own table, or the tied token embedding."""
    head = params["head"]
    return head["table"] if "table" in head else params["backbone"]["embedding"]["table"]


def language_model(
    config: ModelConfig,
    z_loss: float = 0.0,
    chunk: int = 0,
    smoothing: float = 0.0,
    router: RouterLosses = NO_ROUTER_LOSSES,
    few_targets: bool = False,
) -> Objective:
    """Returns the `Objective` of next-token prediction; see `losses.LossOptions` for the arguments."""
    options = losses.LossOptions("vocab", config.logit_softcap, z_loss, smoothing, chunk, few_targets)

    def init(rng: jax.Array) -> Params:
        head = {}
        if not config.tie_embeddings:
            std = 0.0 if config.output_init == "zero" else config.embed_dim**-0.5
            table = with_axes(nn.initializers.normal(std), "vocab", "vocab_embed")
            head["table"] = table(jax.random.fold_in(rng, 1), (config.vocab_size, config.embed_dim), jnp.float32)
        return {"backbone": init_backbone(config, rng), "head": head}

    def loss(params: Params, x_BTD: jax.Array, batch: Batch) -> HeadLoss:
        weights_BT = batch["weights"]
        sums = losses.cross_entropy(x_BTD, unembedding(params), batch["targets"], weights_BT, options)
        return HeadLoss(sums, weights_BT.sum(1))

    def predict(params: Params, x_BTD: jax.Array, batch: Batch) -> jax.Array:
        softcap = config.logit_softcap
        return losses.token_nll(x_BTD, unembedding(params), batch["targets"], softcap=softcap, chunk=chunk)

    return head_objective(config, init, loss, predict, router)


def pool(x_BTD: jax.Array, batch: Batch, pooling: Pooling) -> jax.Array:
    """Returns x_BTD for a head to read: each token's state, or with "mean" the mean state of its segment so far."""
    return running_mean(x_BTD, batch["segment_ids"]) if pooling == "mean" else x_BTD


def init_linear_head(config: ModelConfig, outputs: int, rng: jax.Array) -> Params:
    """Returns the boxed parameters of a backbone and a linear head that is initialized to zero."""
    table = with_axes(nn.initializers.zeros, "classes", "vocab_embed")
    head = {"table": table(rng, (outputs, config.embed_dim), jnp.float32)}
    return {"backbone": init_backbone(config, rng), "head": head}


def classifier(
    config: ModelConfig,
    num_classes: int,
    pooling: Pooling,
    smoothing: float = 0.0,
    router: RouterLosses = NO_ROUTER_LOSSES,
) -> Objective:
    """Returns the `Objective` of classification: a linear layer on the pooled states.

    "last" reads the example's last token, like the ...ForSequenceClassification models of `transformers`; "mean"
    averages the example's tokens; "none" is for token tagging, where each target reads its own token.
    """
    options = losses.LossOptions(symbols="classes", smoothing=smoothing)

    def loss(params: Params, x_BTD: jax.Array, batch: Batch) -> HeadLoss:
        x_BTD, weights_BT = pool(x_BTD, batch, pooling), batch["weights"]
        sums = losses.cross_entropy(x_BTD, params["head"]["table"], batch["targets"], weights_BT, options)
        return HeadLoss(sums, weights_BT.sum(1))

    return _linear_head(config, num_classes, pooling, loss, router)


def multi_label_classifier(
    config: ModelConfig,
    num_classes: int,
    pooling: Pooling,
    smoothing: float = 0.0,
    class_weights_2V: np.ndarray | None = None,
    router: RouterLosses = NO_ROUTER_LOSSES,
) -> Objective:
    """Returns the `Objective` of classification where each class is a separate yes/no decision.

    Targets are float (B, T, V), the loss is the mean binary cross-entropy over the classes, weighted by
    `class_weights_2V[y]` for a class with target y. Otherwise as `classifier`.
    """

    def loss(params: Params, x_BTD: jax.Array, batch: Batch) -> HeadLoss:
        logits_BTV = losses.logits(pool(x_BTD, batch, pooling), params["head"]["table"])
        soft_BTV = batch["targets"] * (1.0 - smoothing) + 0.5 * smoothing
        weights_BTV = batch["weights"][..., None] * jnp.ones(num_classes)
        if class_weights_2V is not None:
            weights_BTV *= jnp.where(batch["targets"] > 0, class_weights_2V[1], class_weights_2V[0])
        objective, nll = (
            (optax.sigmoid_binary_cross_entropy(logits_BTV, y) * weights_BTV).mean(-1).sum()
            for y in (soft_BTV, batch["targets"])
        )
        weight_B = weights_BTV.mean(-1).sum(1)
        return HeadLoss(losses.LossSums(objective, jax.lax.stop_gradient(nll), weights_BTV.mean(-1).sum()), weight_B)

    return _linear_head(config, num_classes, pooling, loss, router)


def _linear_head(
    config: ModelConfig,
    outputs: int,
    pooling: Pooling,
    loss: Callable[[Params, jax.Array, Batch], HeadLoss],
    router: RouterLosses,
) -> Objective:
    def predict(params: Params, x_BTD: jax.Array, batch: Batch) -> jax.Array:
        return losses.logits(pool(x_BTD, batch, pooling), params["head"]["table"])

    return head_objective(config, partial(init_linear_head, config, outputs), loss, predict, router)


def running_mean(x_BTD: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """Returns, at each token, the mean of its segment up to there; at an example's last token, the example's mean."""
    same_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]
    visible_BTS = jnp.tril(same_BTS).astype(x_BTD.dtype)
    return jnp.einsum("BTS,BSD->BTD", visible_BTS / visible_BTS.sum(-1, keepdims=True), x_BTD)


def parameter_count(params: Params) -> int:
    """Returns the number of parameters in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
