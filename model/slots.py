"""Continuous batching: texts enter and leave a decoding batch of fixed size, so that few programs are compiled.

A slot is one row of the batch. `insert` reads a prompt into a slot; `decode` adds tokens to the texts of all slots.
Each slot has its own column in the cache, which is the number of its tokens, so that what a slot computes does not
depend on when its text came or on what the others contain.
S slots, R rows of a prefill, P prompt length, M new tokens, V vocabulary.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from model import losses
from model.cache import Cache, CacheSize, KVCache
from model.config import ModelConfig
from model.heads import unembedding
from model.sampling import Prompts, Sampling
from model.transformer import Params, decode_layers, prefill_layers

_SHORTEST_PROMPT = 64


class SlotSampling(NamedTuple):
    """`model.sampling.Sampling` of each slot, and its seed.

    Attributes:
        temperature_S: 0: the most likely token.
        top_k_S: 0: all tokens.
        top_p_S: 1: all tokens.
        min_p_S: 0: all tokens.
        repetition_penalty_S: 1: off.
        seed_S: of the samples; token i of a text is a function of its seed, i and the text before.
    """

    temperature_S: jax.Array
    top_k_S: jax.Array
    top_p_S: jax.Array
    min_p_S: jax.Array
    repetition_penalty_S: jax.Array
    seed_S: jax.Array


class Slots(NamedTuple):
    """The state of all slots. A slot without a text computes too; nobody reads its tokens.

    Attributes:
        logits_SV: logits of each text's next token.
        cache: keys and values of each text, from column 0 on.
        seen_SV: which tokens each text contains.
        count_S: number of tokens that were added to each prompt.
        sampling: how tokens are drawn.
    """

    logits_SV: jax.Array
    cache: Cache
    seen_SV: jax.Array
    count_S: jax.Array
    sampling: SlotSampling


def slot_sampling(sampling: Sampling, seed: int) -> SlotSampling:
    """Returns how the tokens of one text are drawn, for `insert`."""
    values = (
        np.float32(sampling.divisor),
        np.int32(sampling.top_k),
        np.float32(sampling.top_p),
        np.float32(sampling.min_p),
        np.float32(sampling.repetition_penalty),
        np.uint32(seed % 2**32),
    )
    return SlotSampling(*map(jnp.asarray, values))


def prompt_widths(columns: int) -> list[int]:
    """Returns the widths that prompts are padded to: powers of two, and the longest."""
    widths = [_SHORTEST_PROMPT]
    while widths[-1] < columns:
        widths.append(widths[-1] * 2)
    return [*widths[:-1], columns]


@partial(jax.jit, static_argnames=("config", "slots", "columns"))
def empty_slots(config: ModelConfig, params: Params, *, slots: int, columns: int) -> Slots:
    """Returns slots without texts.

    Args:
        config: the model.
        params: `{"backbone", "head"}` of a language model.
        slots: S.
        columns: the most tokens of a text, its prompt included.
    """
    prompts_SP, size = jnp.zeros((slots, 1), jnp.int32), CacheSize(columns)
    shapes = jax.eval_shape(
        lambda: prefill_layers(config, params["backbone"], prompts_SP, jnp.zeros(slots, jnp.int32), size)[1].stacks
    )
    stacks = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    zeros_S, ones_S = jnp.zeros(slots), jnp.ones(slots)
    integers_S = jnp.zeros(slots, jnp.int32)
    sampling = SlotSampling(zeros_S, integers_S, ones_S, zeros_S, ones_S, jnp.zeros(slots, jnp.uint32))
    # Sharded as those of a text, so that no program is compiled for the empty slots alone.
    logits_SV = losses.logits(jnp.zeros((slots, 1, config.embed_dim)), unembedding(params), config.logit_softcap)[:, 0]
    seen_SV = jnp.zeros(logits_SV.shape, bool)
    return Slots(logits_SV, Cache(stacks, integers_S, integers_S), seen_SV, integers_S, sampling)


@partial(jax.jit, static_argnames=("config", "columns"), donate_argnames=("slots",))
def insert(
    config: ModelConfig, params: Params, slots: Slots, prompts: Prompts, slot: jax.Array, sampling: SlotSampling,
    *, columns: int,
) -> Slots:  # fmt: skip
    """Returns the slots with a new text in one of them.

    Args:
        config: the model.
        params: `{"backbone", "head"}` of a language model.
        slots: the slots before.
        prompts: the prompt in the first of R rows, which the mesh may need.
        slot: index of the slot; what it contained is gone.
        sampling: how tokens are drawn, for one slot: all its fields are scalars.
        columns: of `empty_slots`.
    """
    tokens_RP, lengths_R = prompts
    P = tokens_RP.shape[1]
    padding_R = P - lengths_R
    x_RPD, cache = prefill_layers(config, params["backbone"], tokens_RP, padding_R, CacheSize(columns))
    logits_RV = losses.logits(x_RPD[:, -1:], unembedding(params), config.logit_softcap)[:, 0]

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        # The prompt is at the end of its row; in a slot, it starts at column 0.
        return old.at[:, slot].set(jnp.roll(new[:, 0], -padding_R[0], axis=2))

    stacks: tuple[KVCache, ...] = jax.tree.map(put, slots.cache.stacks, cache.stacks)
    seen_V = jnp.zeros(logits_RV.shape[1], bool).at[tokens_RP[0]].max(jnp.arange(P) >= padding_R[0])
    column_S = slots.cache.column.at[slot].set(lengths_R[0])
    return Slots(
        slots.logits_SV.at[slot].set(logits_RV[0]),
        Cache(stacks, column_S, slots.cache.padding_B),
        slots.seen_SV.at[slot].set(seen_V),
        slots.count_S.at[slot].set(0),
        jax.tree.map(lambda old, new: old.at[slot].set(new), slots.sampling, sampling),
    )


@partial(jax.jit, static_argnames=("config", "steps"), donate_argnames=("slots",))
def decode(config: ModelConfig, params: Params, slots: Slots, *, steps: int) -> tuple[jax.Array, Slots]:
    """Returns (tokens_SM, the slots after them), M = `steps`; texts do not end by themselves."""
    rows_S = jnp.arange(len(slots.count_S))

    def step(s: Slots, _: None) -> tuple[Slots, jax.Array]:
        token_S = draw(s)
        x_S1D, cache = decode_layers(config, params["backbone"], token_S[:, None], s.cache)
        logits_SV = losses.logits(x_S1D, unembedding(params), config.logit_softcap)[:, 0]
        seen_SV = s.seen_SV.at[rows_S, token_S].set(True)
        return Slots(logits_SV, cache, seen_SV, s.count_S + 1, s.sampling), token_S

    slots, tokens_MS = jax.lax.scan(step, slots, None, length=steps)
    return tokens_MS.T, slots


def draw(slots: Slots) -> jax.Array:
    """Returns the next token_S: what `model.sampling.sample` returns for each slot's options and key."""
    sampling, logits_SV = slots.sampling, slots.logits_SV
    penalty_S1 = sampling.repetition_penalty_S[:, None]
    penalized_SV = jnp.where(logits_SV > 0, logits_SV / penalty_S1, logits_SV * penalty_S1)
    logits_SV = jnp.where(slots.seen_SV, penalized_SV, logits_SV)
    greedy_S = jnp.argmax(logits_SV, axis=-1).astype(jnp.int32)

    def drawn() -> jax.Array:
        scaled_SV = logits_SV / jnp.where(sampling.temperature_S > 0, sampling.temperature_S, 1.0)[:, None]
        filters = ((sampling.top_k_S > 0) | (sampling.top_p_S < 1)).any()
        kept_SV = jax.lax.cond(
            filters, lambda x: jax.vmap(_top)(x, sampling.top_k_S, sampling.top_p_S), _same, scaled_SV
        )
        lowest_S = kept_SV.max(-1) + jnp.log(sampling.min_p_S)
        kept_SV = jnp.where(kept_SV < lowest_S[:, None], -jnp.inf, kept_SV)
        keys_S = jax.vmap(lambda seed, count: jax.random.fold_in(jax.random.key(seed), count))(
            sampling.seed_S, slots.count_S
        )
        return jax.vmap(jax.random.categorical)(keys_S, kept_SV).astype(jnp.int32)

    samples = sampling.temperature_S > 0
    # Sorting and drawing cost as much as a small model, and greedy texts need neither.
    return jnp.where(samples, jax.lax.cond(samples.any(), drawn, lambda: greedy_S), greedy_S)


def _same(x_SV: jax.Array) -> jax.Array:
    return x_SV


def _top(logits_V: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Returns the logits that top-k leaves and, of these, top-p; -inf elsewhere."""
    ordered_V = jnp.sort(logits_V, descending=True)
    kth = jnp.where(top_k > 0, ordered_V[jnp.minimum(top_k, len(ordered_V)) - 1], -jnp.inf)
    ordered_V = jnp.where(ordered_V < kth, -jnp.inf, ordered_V)
    probabilities_V = jax.nn.softmax(ordered_V)
    before_V = jnp.cumsum(probabilities_V) - probabilities_V
    nucleus = jnp.where(before_V < top_p, ordered_V, jnp.inf).min()
    lowest = jnp.maximum(kth, jnp.where(top_p < 1, nucleus, -jnp.inf))
    return jnp.where(logits_V < lowest, -jnp.inf, logits_V)
