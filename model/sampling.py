"""Decoding and scoring with a KV cache, pure and jitted: one prefill, then one compiled loop.

Prompts are aligned at their ends, so one cache column serves the whole batch. A token's place is its column minus its
row's padding, which alone says what is padding (negative) and what is in the future (larger).
B batch, P prompt length, M new tokens, S = P + M, C choices, L layers, K kv heads, H head dim, V vocabulary.
"""

from functools import partial

import jax
import jax.numpy as jnp

from model import losses
from model.attention import KVCache
from model.config import ModelConfig
from model.context import make_context
from model.heads import unembedding
from model.layers import compute_dtype
from model.transformer import Params, run_layers


@partial(jax.jit, static_argnames=("config", "max_new_tokens", "top_k", "eos_id"))
def generate(
    config: ModelConfig,
    params: Params,
    prompts_BP: jax.Array,
    lengths_B: jax.Array,
    rng: jax.Array,
    temperature: jax.Array,
    *,
    max_new_tokens: int,
    top_k: int,
    eos_id: int,
) -> jax.Array:
    """Returns the new tokens as tokens_BM; after a row's `eos_id` come only `eos_id`s.

    Args:
        config: the model.
        params: `{"backbone", "head"}` of a language model.
        prompts_BP: prompts, each at the end of its row.
        lengths_B: tokens of each prompt.
        rng: key of the samples; unused at temperature 0.
        temperature: divides the logits; 0 takes the most likely token.
        max_new_tokens: M.
        top_k: sample among the k most likely; 0 for all.
        eos_id: ends a row.
    """
    P = prompts_BP.shape[1]
    empty, places_BS = _empty_cache(config, prompts_BP, lengths_B, max_new_tokens)

    def forward(tokens_BT: jax.Array, slot: jax.Array, cache: KVCache | None) -> tuple[jax.Array, KVCache | None]:
        x_BTD, cache = _forward(config, params, tokens_BT, places_BS, slot, cache)
        return losses.logits(x_BTD[:, -1:], unembedding(params), config.logit_softcap)[:, 0], cache

    def body(carry: tuple) -> tuple:
        i, logits_BV, cache, tokens_BM, done_B, rng = carry
        rng, key = jax.random.split(rng)
        token_B = jnp.where(done_B, eos_id, sample(logits_BV, key, temperature, top_k))
        tokens_BM = tokens_BM.at[:, i].set(token_B)
        logits_BV, cache = forward(token_B[:, None], P + i, cache)
        return i + 1, logits_BV, cache, tokens_BM, done_B | (token_B == eos_id), rng

    logits_BV, cache = forward(prompts_BP, jnp.asarray(0), empty)
    tokens_BM = jnp.full((len(prompts_BP), max_new_tokens), eos_id, jnp.int32)
    carry = (jnp.asarray(0), logits_BV, cache, tokens_BM, jnp.zeros(len(prompts_BP), bool), rng)
    return jax.lax.while_loop(lambda c: (c[0] < max_new_tokens) & ~c[4].all(), body, carry)[3]


@partial(jax.jit, static_argnames=("config",))
def score_choices(
    config: ModelConfig,
    params: Params,
    prompts_BP: jax.Array,
    lengths_B: jax.Array,
    choices_CM: jax.Array,
    weights_CM: jax.Array,
) -> jax.Array:
    """Returns scores_BC: the log-likelihood a token, in nats, of each choice as the continuation of each prompt.

    A prompt is read once, whatever the number of choices.

    Args:
        config: the model.
        params: `{"backbone", "head"}` of a language model.
        prompts_BP: prompts, each at the end of its row.
        lengths_B: tokens of each prompt.
        choices_CM: continuations, each at the start of its row.
        weights_CM: 1 for a choice's tokens, 0 for what fills its row up.
    """
    B, P = prompts_BP.shape
    M = choices_CM.shape[1]
    empty, places_BS = _empty_cache(config, prompts_BP, lengths_B, M)
    x_BPD, cache = _forward(config, params, prompts_BP, places_BS, jnp.asarray(0), empty)

    def score(choice: tuple[jax.Array, jax.Array]) -> jax.Array:
        tokens_M, weights_M = choice
        tokens_BM = jnp.broadcast_to(tokens_M, (B, M))
        x_BMD, _ = _forward(config, params, tokens_BM, places_BS, jnp.asarray(P), cache)
        # The prompt's last state tells the first token, each token's state the next one.
        x_BMD = jnp.concatenate([x_BPD[:, -1:], x_BMD[:, :-1]], axis=1)
        nll_BM = losses.token_nll(x_BMD, unembedding(params), tokens_BM, softcap=config.logit_softcap)
        return -(nll_BM * weights_M).sum(-1) / weights_M.sum()

    return jax.lax.map(score, (choices_CM, weights_CM)).T


def _empty_cache(
    config: ModelConfig, prompts_BP: jax.Array, lengths_B: jax.Array, more: int
) -> tuple[KVCache, jax.Array]:
    """Returns a cache with room for the prompts and `more` tokens, and places_BS of its columns."""
    B, P = prompts_BP.shape
    places_BS = jnp.arange(P + more)[None, :] - (P - lengths_B)[:, None]
    shape = (config.num_layers, B, P + more, config.num_kv_heads, config.head_dim)
    return KVCache(*(jnp.zeros(shape, compute_dtype(config)) for _ in range(2))), places_BS


def _forward(
    config: ModelConfig,
    params: Params,
    tokens_BT: jax.Array,
    places_BS: jax.Array,
    slot: jax.Array,
    cache: KVCache | None,
) -> tuple[jax.Array, KVCache | None]:
    """Returns (x_BTD, the cache with the tokens' keys and values at `slot`)."""
    places_BT = jax.lax.dynamic_slice_in_dim(places_BS, slot, tokens_BT.shape[1], axis=1)
    keys = (places_BS, (places_BS >= 0).astype(jnp.int32), slot)
    positions_BT, segments_BT = jnp.maximum(places_BT, 0), (places_BT >= 0).astype(jnp.int32)
    context = make_context(config, positions_BT, segments_BT, keys)
    return run_layers(config, params["backbone"], tokens_BT, context, cache)


def sample(logits_BV: jax.Array, key: jax.Array, temperature: jax.Array, top_k: int) -> jax.Array:
    """Returns one token a row: the most likely at temperature 0, else drawn from softmax(logits / temperature)."""
    likeliest_B = jnp.argmax(logits_BV, axis=-1)
    if top_k:
        kth_B1 = jax.lax.top_k(logits_BV, min(top_k, logits_BV.shape[-1]))[0][:, -1:]
        logits_BV = jnp.where(logits_BV < kth_B1, -jnp.inf, logits_BV)
    drawn_B = jax.random.categorical(key, logits_BV / jnp.maximum(temperature, 1e-6), axis=-1)
    return jnp.where(temperature > 0, drawn_B, likeliest_B)
