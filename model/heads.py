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
from model.sharding import with_axes
from model.transformer import Batch, Params, forward, forward_with_routers, in_compute_dtype, init_backbone


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
    """Weights of the losses of routers, which are added to the objective of a language model with experts.

    Attributes:
        z: of `RouterSums.z`.
        balance: of `RouterSums.balance`.
    """

    z: float = 0.0
    balance: float = 0.0


_NO_ROUTER_LOSSES = RouterLosses()


def unembedding(params: Params) -> jax.Array:
    """Returns table_VD of a language model: the head's own table, or the tied token embedding."""
    head = params["head"]
    return head["table"] if "table" in head else params["backbone"]["embedding"]["table"]


def language_model(
    config: ModelConfig,
    z_loss: float = 0.0,
    chunk: int = 0,
    smoothing: float = 0.0,
    router: RouterLosses = _NO_ROUTER_LOSSES,
) -> Objective:
    """Returns the `Objective` of next-token prediction; see `losses.LossOptions` for the arguments.

    The objective of a model with experts contains the routers' losses, and its `LossSums` their sums.
    """
    options = losses.LossOptions(softcap=config.logit_softcap, z_loss=z_loss, smoothing=smoothing, chunk=chunk)

    def init(rng: jax.Array) -> Params:
        head = {}
        if not config.tie_embeddings:
            std = 0.0 if config.output_init == "zero" else config.embed_dim**-0.5
            table = with_axes(nn.initializers.normal(std), "vocab", "vocab_embed")
            head["table"] = table(jax.random.fold_in(rng, 1), (config.vocab_size, config.embed_dim), jnp.float32)
        return {"backbone": init_backbone(config, rng), "head": head}

    def loss(params: Params, batch: Batch) -> losses.LossSums:
        x_BTD, routers = forward_with_routers(config, params["backbone"], batch)
        sums = losses.cross_entropy(x_BTD, unembedding(params), batch["targets"], batch["weights"], options)
        if routers is None:
            return sums
        objective = sums.objective
        for weight, of_layers in ((router.z, routers.z), (router.balance, routers.balance)):
            if weight:
                objective += weight * of_layers.sum()
        return sums._replace(objective=objective, routers=jax.lax.stop_gradient(routers))

    def predict(params: Params, batch: Batch) -> jax.Array:
        x_BTD = forward(config, params["backbone"], batch)
        softcap = config.logit_softcap
        return losses.token_nll(x_BTD, unembedding(params), batch["targets"], softcap=softcap, chunk=chunk)

    return Objective(init, partial(in_compute_dtype, config), loss, predict)


def pooled(config: ModelConfig, params: Params, batch: Batch, pooling: Literal["last", "mean", "none"]) -> jax.Array:
    """Returns x_BTD for a head to read: each token's state, or with "mean" the mean state of its segment so far."""
    x_BTD = forward(config, params["backbone"], batch)
    return running_mean(x_BTD, batch["segment_ids"]) if pooling == "mean" else x_BTD


def init_linear_head(config: ModelConfig, rng: jax.Array, outputs: int) -> Params:
    """Returns the boxed parameters of a backbone and a linear head that is initialized to zero."""
    table = with_axes(nn.initializers.zeros, "classes", "vocab_embed")
    head = {"table": table(rng, (outputs, config.embed_dim), jnp.float32)}
    return {"backbone": init_backbone(config, rng), "head": head}


def classifier(
    config: ModelConfig,
    num_classes: int,
    pooling: Literal["last", "mean", "none"],
    multi_label: bool = False,
    smoothing: float = 0.0,
    class_weights_2V: np.ndarray | None = None,
) -> Objective:
    """Returns the `Objective` of classification: a linear layer on the pooled states.

    "last" reads the example's last token, like the ...ForSequenceClassification models of `transformers`; "mean"
    averages the example's tokens; "none" is for token tagging, where each target reads its own token. With
    `multi_label` each class is a separate yes/no decision: targets are float (B, T, V), the loss is the mean binary
    cross-entropy over the classes, weighted by `class_weights_2V[y]` for a class with target y.
    """
    options = losses.LossOptions(symbols="classes", smoothing=smoothing)

    def loss(params: Params, batch: Batch) -> losses.LossSums:
        x_BTD, table_VD = pooled(config, params, batch, pooling), params["head"]["table"]
        if not multi_label:
            return losses.cross_entropy(x_BTD, table_VD, batch["targets"], batch["weights"], options)
        logits_BTV = losses.logits(x_BTD, table_VD)
        soft_BTV = batch["targets"] * (1.0 - smoothing) + 0.5 * smoothing
        weights_BTV = batch["weights"][..., None] * jnp.ones(num_classes)
        if class_weights_2V is not None:
            weights_BTV *= jnp.where(batch["targets"] > 0, class_weights_2V[1], class_weights_2V[0])
        objective, nll = (
            (optax.sigmoid_binary_cross_entropy(logits_BTV, y) * weights_BTV).mean(-1).sum()
            for y in (soft_BTV, batch["targets"])
        )
        return losses.LossSums(objective, jax.lax.stop_gradient(nll), weights_BTV.mean(-1).sum())

    def predict(params: Params, batch: Batch) -> jax.Array:
        return losses.logits(pooled(config, params, batch, pooling), params["head"]["table"])

    def init(rng: jax.Array) -> Params:
        return init_linear_head(config, rng, num_classes)

    return Objective(init, partial(in_compute_dtype, config), loss, predict)


def running_mean(x_BTD: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """Returns, at each token, the mean of its segment up to there; at an example's last token, the example's mean."""
    same_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]
    visible_BTS = jnp.tril(same_BTS).astype(x_BTD.dtype)
    return jnp.einsum("BTS,BSD->BTD", visible_BTS / visible_BTS.sum(-1, keepdims=True), x_BTD)


def parameter_count(params: Params) -> int:
    """Returns the number of parameters in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
