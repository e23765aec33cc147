"""More objectives: regression, span extraction, reward modeling and direct preference optimization.

The two answers of a comparison are neighboring segments of a row: 2k - 1 is the chosen one, 2k the rejected one.
B batch, T length, G segments of a row, D embed.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from model import losses
from model.config import ModelConfig
from model.heads import (
    NO_ROUTER_LOSSES,
    HeadLoss,
    Objective,
    RouterLosses,
    head_objective,
    init_linear_head,
    language_model,
    pool,
    unembedding,
)
from model.transformer import Batch, Params

CANDIDATE, START, END = 1, 2, 4


def segment_sum(x_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """Returns x_BG, the sum over each segment's tokens; column 0 sums the padding.

    A row of T tokens has at most T segments, so G = T + 1.
    """
    zeros_BG = jnp.zeros((len(x_BT), x_BT.shape[1] + 1), x_BT.dtype)
    return jax.vmap(lambda zeros, segments, x: zeros.at[segments].add(x))(zeros_BG, segments_BT, x_BT)


def segment_log_softmax(scores_BT: jax.Array, among_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """Returns log_p_BT, the log-softmax over each segment's tokens that `among_BT` selects; 0 at the other tokens."""
    lowest = jnp.finfo(scores_BT.dtype).min
    scores_BT = jnp.where(among_BT, scores_BT, lowest)
    lowest_BG = jnp.full((len(scores_BT), scores_BT.shape[1] + 1), lowest, scores_BT.dtype)
    highest_BG = jax.vmap(lambda low, segments, x: low.at[segments].max(x))(lowest_BG, segments_BT, scores_BT)
    shifted_BT = scores_BT - jax.lax.stop_gradient(jnp.take_along_axis(highest_BG, segments_BT, axis=1))
    sums_BG = segment_sum(jnp.where(among_BT, jnp.exp(shifted_BT), 0.0), segments_BT)
    sums_BT = jnp.where(among_BT, jnp.take_along_axis(sums_BG, segments_BT, axis=1), 1.0)
    return jnp.where(among_BT, shifted_BT - jnp.log(sums_BT), 0.0)


def pairs_of(x_BT: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (chosen, rejected, valid), each (B, pairs): sums of `x_BT` over segments, and whether both exist."""
    segments_BT = batch["segment_ids"]
    sums_BG = segment_sum(x_BT, segments_BT)[:, 1:]
    present_BG = segment_sum((segments_BT > 0).astype(jnp.float32), segments_BT)[:, 1:] > 0
    even = sums_BG.shape[1] // 2 * 2
    chosen, rejected = sums_BG[:, 0:even:2], sums_BG[:, 1:even:2]
    # Rows that only fill up a batch have weights of 0.
    weighted_BG = segment_sum(batch["weights"], segments_BT)[:, 1:] > 0
    valid_BG = present_BG & weighted_BG
    return chosen, rejected, valid_BG[:, 0:even:2] & valid_BG[:, 1:even:2]


def _pair_loss(margin: jax.Array, valid: jax.Array) -> HeadLoss:
    nll = (jax.nn.softplus(-margin) * valid).sum()
    valid = valid.astype(jnp.float32)
    return HeadLoss(losses.LossSums(nll, jax.lax.stop_gradient(nll), valid.sum()), valid.sum(1))


def regressor(
    config: ModelConfig, pooling: Literal["last", "mean"], router: RouterLosses = NO_ROUTER_LOSSES
) -> Objective:
    """Returns the `Objective` of regression: one linear output per example, squared error; targets are floats."""

    def predict(params: Params, x_BTD: jax.Array, batch: Batch) -> jax.Array:
        return losses.logits(pool(x_BTD, batch, pooling), params["head"]["table"])[..., 0]

    def loss(params: Params, x_BTD: jax.Array, batch: Batch) -> HeadLoss:
        weights_BT = batch["weights"]
        error = (jnp.square(predict(params, x_BTD, batch) - batch["targets"]) * weights_BT).sum()
        return HeadLoss(losses.LossSums(error, jax.lax.stop_gradient(error), weights_BT.sum()), weights_BT.sum(1))

    return head_objective(config, partial(init_linear_head, config, 1), loss, predict, router)


def span(config: ModelConfig, router: RouterLosses = NO_ROUTER_LOSSES) -> Objective:
    """Returns the `Objective` of extractive question answering: each token's scores as the start and end of the answer.

    Targets are bit flags: the softmax runs over a segment's `CANDIDATE` tokens, `START` and `END` mark the answer;
    the weight is 0.5 at each of these two. Predictions are (B, T, 2), for all tokens (BERT: arXiv:1810.04805, 4.2).
    """

    def predict(params: Params, x_BTD: jax.Array, batch: Batch) -> jax.Array:
        return losses.logits(x_BTD, params["head"]["table"])

    def loss(params: Params, x_BTD: jax.Array, batch: Batch) -> HeadLoss:
        flags_BT, segments_BT, weights_BT = batch["targets"], batch["segment_ids"], batch["weights"]
        scores_BT2, candidate_BT = predict(params, x_BTD, batch), flags_BT & CANDIDATE > 0
        nll = jnp.zeros(())
        for column, flag in enumerate((START, END)):
            log_p_BT = segment_log_softmax(scores_BT2[..., column], candidate_BT, segments_BT)
            answer_BT = (flags_BT & flag > 0) & (weights_BT > 0)
            nll -= 0.5 * jnp.where(answer_BT, log_p_BT, 0.0).sum()
        return HeadLoss(losses.LossSums(nll, jax.lax.stop_gradient(nll), weights_BT.sum()), weights_BT.sum(1))

    return head_objective(config, partial(init_linear_head, config, 2), loss, predict, router)


def reward(config: ModelConfig, router: RouterLosses = NO_ROUTER_LOSSES) -> Objective:
    """Returns the `Objective` of a reward model: -log sigmoid(r_chosen - r_rejected) (arXiv:2203.02155, eq. 1).

    An answer's score is the output at its last token, whose weight is 1.
    """

    def predict(params: Params, x_BTD: jax.Array, batch: Batch) -> jax.Array:
        return losses.logits(x_BTD, params["head"]["table"])[..., 0]

    def loss(params: Params, x_BTD: jax.Array, batch: Batch) -> HeadLoss:
        chosen, rejected, valid = pairs_of(predict(params, x_BTD, batch) * batch["weights"], batch)
        return _pair_loss(chosen - rejected, valid)

    return head_objective(config, partial(init_linear_head, config, 1), loss, predict, router)


def preference(config: ModelConfig, beta: float, chunk: int = 0, router: RouterLosses = NO_ROUTER_LOSSES) -> Objective:
    """Returns the `Objective` of direct preference optimization of a language model (arXiv:2305.18290, equation 7).

    The batch also has "reference": at each segment's last token the log-probability of the segment's targets under the
    initial model, 0 elsewhere.
    """

    def predict(params: Params, x_BTD: jax.Array, batch: Batch) -> jax.Array:
        softcap = config.logit_softcap
        return losses.token_nll(x_BTD, unembedding(params), batch["targets"], softcap=softcap, chunk=chunk)

    def loss(params: Params, x_BTD: jax.Array, batch: Batch) -> HeadLoss:
        log_p_BT = -predict(params, x_BTD, batch) * batch["weights"]
        chosen, rejected, valid = pairs_of(log_p_BT - batch["reference"], batch)
        return _pair_loss(beta * (chosen - rejected), valid)

    return head_objective(config, language_model(config).init, loss, predict, router)
