"""Log-likelihoods of continuations with a KV cache: what texts have in common is read once.

All contexts of a batch may begin with the same tokens, such as answered examples, and each context may have several
continuations, such as the choices of a question. Logits are computed at the continuations only.
B batch of contexts, P common tokens, S last tokens of a context, C continuations of a context, M tokens of one.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from model import losses
from model.cache import Cache, CacheSize
from model.config import ModelConfig
from model.heads import unembedding
from model.transformer import Params, decode_layers, prefill_layers


class Contexts(NamedTuple):
    """A batch of contexts.

    Attributes:
        common_P: the tokens that every context begins with; may be empty.
        last_BS: the last S tokens of each context, some of which may also be the end of its common tokens. Without
            common tokens, a shorter context stands at the end of its row.
        lengths_B: number of tokens of each context, with the common ones.
    """

    common_P: jax.Array
    last_BS: jax.Array
    lengths_B: jax.Array


class Continuations(NamedTuple):
    """The continuations of a batch of contexts.

    Attributes:
        tokens_BCM: each at the start of its row.
        weights_BCM: 1 for its tokens, 0 for padding.
    """

    tokens_BCM: jax.Array
    weights_BCM: jax.Array


@partial(jax.jit, static_argnames=("config", "chunk"))
def continuation_scores(
    config: ModelConfig, params: Params, contexts: Contexts, continuations: Continuations, chunk: int = 0
) -> tuple[jax.Array, jax.Array]:
    """Returns (nats_BC, the log-likelihood of each continuation; greedy_BC, whether greedy decoding would write it).

    Args:
        config: the model.
        params: `{"backbone", "head"}` of a language model.
        contexts: what the continuations follow.
        continuations: of each context.
        chunk: positions of a continuation whose logits exist at a time on a device; divides its part of M; 0: all.
    """
    x_BSD, cache = _read(config, params["backbone"], contexts, continuations.tokens_BCM.shape[2] - 1)

    def score(continuation: Continuations) -> tuple[jax.Array, jax.Array]:
        tokens_BM, weights_BM = continuation
        # The context's last state predicts the first token, each token's state the next one.
        x_BMD = x_BSD[:, -1:]
        if tokens_BM.shape[1] > 1:
            # The last token is not read, and rows are padded to the longest continuation.
            lengths_B = contexts.lengths_B + jnp.maximum(weights_BM.sum(-1) - 1, 0).astype(jnp.int32)
            more, _ = decode_layers(config, params["backbone"], tokens_BM[:, :-1], cache, lengths_B)
            x_BMD = jnp.concatenate([x_BMD, more], axis=1)
        scores_BM2 = losses.token_scores(
            x_BMD, unembedding(params), tokens_BM, softcap=config.logit_softcap, chunk=chunk
        )
        nll_BM, least_BM = scores_BM2[..., 0], scores_BM2[..., 1]
        return -(nll_BM * weights_BM).sum(-1), ((nll_BM == least_BM) | (weights_BM == 0)).all(-1)

    nats_CB, greedy_CB = jax.lax.map(score, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), continuations))
    return nats_CB.T, greedy_CB.T


def _read(config: ModelConfig, backbone: Params, contexts: Contexts, room: int) -> tuple[jax.Array, Cache]:
    """Returns (x_BSD after the final norm, a cache of the contexts with room for as many more tokens)."""
    P, S = len(contexts.common_P), contexts.last_BS.shape[1]
    padding_B = P + S - contexts.lengths_B
    if not P:
        return prefill_layers(config, backbone, contexts.last_BS, padding_B, CacheSize(S + room, chunk=max(room, 1)))
    # Windows keep all columns too, because the contexts below do not begin in the same one.
    size = CacheSize(P + S + room, chunk=P + S + room)
    _, cache = prefill_layers(config, backbone, contexts.common_P[None], jnp.zeros(1, jnp.int32), size)

    def shifted(x: jax.Array) -> jax.Array:
        """Moves the common tokens behind each context's padding; what no longer fits is among its last tokens."""
        return jax.vmap(lambda padding: jnp.roll(x[:, 0], padding, axis=2), out_axes=1)(padding_B)

    stacks = jax.tree.map(shifted, cache.stacks)
    return decode_layers(config, backbone, contexts.last_BS, Cache(stacks, cache.column, padding_B))
