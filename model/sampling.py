"""Decoding and scoring with a KV cache, pure and jitted: one prefill, then compiled steps.

Prompts are aligned at their ends, so one cache column serves the whole batch. A token's place is its column minus its
row's padding, which alone says what is padding (negative) and what is in the future (larger).
B batch, P prompt length, M new tokens, C choices, V vocabulary.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from configs.errors import UserError
from model import losses
from model.cache import KVCache, Room
from model.config import ModelConfig
from model.context import make_context
from model.heads import unembedding
from model.layers import compute_dtype
from model.transformer import Params, run_layers


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; each filter sees what the one before it left, in this order.

    Attributes:
        repetition_penalty: logits of tokens that the text has already are divided by it, or multiplied where negative
            (CTRL: arXiv:1909.05858, section 4.1); 1: off.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: draw among the k most likely; 0: all.
        top_p: draw among the fewest tokens that have this much probability together (arXiv:1904.09751); 1: all.
        min_p: draw among tokens at least this part as likely as the most likely one (arXiv:2407.01082); 0: all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        legal = {
            "temperature": (self.temperature >= 0, "at least 0"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "above 0, at most 1"),
            "min_p": (0 <= self.min_p <= 1, "0 to 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
        }
        faults = [f"{name} is {getattr(self, name)}; legal: {text}" for name, (ok, text) in legal.items() if not ok]
        if faults:
            raise UserError("; ".join(faults))


class Decoding(NamedTuple):
    """A batch of texts that is being written.

    Attributes:
        column: of the cache, where the next token goes.
        logits_BV: of the next token.
        cache: of the tokens so far.
        padding_B: columns before each text.
        seen_BV: which tokens each text has; (B, 0) where no penalty asks for it.
        done_B: whether a text has ended.
        rng: of the samples.
    """

    column: jax.Array
    logits_BV: jax.Array
    cache: tuple[KVCache, ...]
    padding_B: jax.Array
    seen_BV: jax.Array
    done_B: jax.Array
    rng: jax.Array


@partial(jax.jit, static_argnames=("config",), donate_argnames=("params",))
def for_inference(config: ModelConfig, params: Params) -> Params:
    """Returns a language model's parameters in the types in which each step reads them, so that none converts them."""
    dtype = compute_dtype(config)

    def cast(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype) if path[-1].key in ("kernel", "table") else leaf

    return jax.tree_util.tree_map_with_path(cast, params)


@partial(jax.jit, static_argnames=("config", "sampling", "max_new_tokens", "eos_id"))
def generate(
    config: ModelConfig,
    params: Params,
    prompts_BP: jax.Array,
    lengths_B: jax.Array,
    rng: jax.Array,
    sampling: Sampling,
    *,
    max_new_tokens: int,
    eos_id: int,
) -> jax.Array:
    """Returns the new tokens as tokens_BM; after a row's `eos_id` come only `eos_id`s.

    Args:
        config: the model.
        params: `{"backbone", "head"}` of a language model.
        prompts_BP: prompts, each at the end of its row.
        lengths_B: tokens of each prompt.
        rng: key of the samples; unused at temperature 0.
        sampling: how tokens are drawn.
        max_new_tokens: M.
        eos_id: ends a row.
    """
    state = prefill(config, params, prompts_BP, lengths_B, rng, sampling, max_new_tokens=max_new_tokens)
    return advance(config, params, state, sampling, steps=max_new_tokens, eos_id=eos_id)[0]


@partial(jax.jit, static_argnames=("config", "sampling", "max_new_tokens"))
def prefill(
    config: ModelConfig,
    params: Params,
    prompts_BP: jax.Array,
    lengths_B: jax.Array,
    rng: jax.Array,
    sampling: Sampling,
    *,
    max_new_tokens: int,
) -> Decoding:
    """Returns the state after the prompts, with room for `max_new_tokens`; see `generate`."""
    B, P = prompts_BP.shape
    padding_B = P - lengths_B
    x_BPD, cache = _read(config, params, prompts_BP, padding_B, Room(P + max_new_tokens))
    logits_BV = losses.logits(x_BPD[:, -1:], unembedding(params), config.logit_softcap)[:, 0]
    seen_BV = jnp.zeros((B, 0 if sampling.repetition_penalty == 1.0 else logits_BV.shape[1]), bool)
    if seen_BV.size:
        real_BP = jnp.arange(P) >= padding_B[:, None]
        seen_BV = jax.vmap(lambda seen, tokens, real: seen.at[tokens].max(real))(seen_BV, prompts_BP, real_BP)
    return Decoding(jnp.asarray(P), logits_BV, cache, padding_B, seen_BV, jnp.zeros(B, bool), rng)


@partial(jax.jit, static_argnames=("config", "sampling", "steps", "eos_id"), donate_argnames=("state",))
def advance(
    config: ModelConfig, params: Params, state: Decoding, sampling: Sampling, *, steps: int, eos_id: int
) -> tuple[jax.Array, Decoding]:
    """Returns (tokens_BM of as many steps, the state after them); stops early, with `eos_id`s, where all have ended."""

    def body(carry: tuple[jax.Array, jax.Array, Decoding]) -> tuple[jax.Array, jax.Array, Decoding]:
        i, tokens_BM, s = carry
        rng, key = jax.random.split(s.rng)
        token_B = jnp.where(s.done_B, eos_id, sample(s.logits_BV, s.seen_BV, key, sampling))
        tokens_BM = tokens_BM.at[:, i].set(token_B)
        seen_BV = s.seen_BV.at[jnp.arange(len(token_B)), token_B].set(True) if s.seen_BV.size else s.seen_BV
        x_B1D, cache = _continue(config, params, token_B[:, None], s.padding_B, s.column, s.cache)
        logits_BV = losses.logits(x_B1D, unembedding(params), config.logit_softcap)[:, 0]
        done_B = s.done_B | (token_B == eos_id)
        return i + 1, tokens_BM, Decoding(s.column + 1, logits_BV, cache, s.padding_B, seen_BV, done_B, rng)

    tokens_BM = jnp.full((len(state.done_B), steps), eos_id, jnp.int32)
    carry = (jnp.asarray(0), tokens_BM, state)
    _, tokens_BM, state = jax.lax.while_loop(lambda c: (c[0] < steps) & ~c[2].done_B.all(), body, carry)
    return tokens_BM, state


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
    padding_B = P - lengths_B
    x_BPD, cache = _read(config, params, prompts_BP, padding_B, Room(P + M, chunk=M))

    def score(choice: tuple[jax.Array, jax.Array]) -> jax.Array:
        tokens_M, weights_M = choice
        tokens_BM = jnp.broadcast_to(tokens_M, (B, M))
        x_BMD, _ = _continue(config, params, tokens_BM, padding_B, jnp.asarray(P), cache)
        # The prompt's last state tells the first token, each token's state the next one.
        x_BMD = jnp.concatenate([x_BPD[:, -1:], x_BMD[:, :-1]], axis=1)
        nll_BM = losses.token_nll(x_BMD, unembedding(params), tokens_BM, softcap=config.logit_softcap)
        return -(nll_BM * weights_M).sum(-1) / weights_M.sum()

    return jax.lax.map(score, (choices_CM, weights_CM)).T


def _read(
    config: ModelConfig, params: Params, prompts_BP: jax.Array, padding_B: jax.Array, room: Room
) -> tuple[jax.Array, tuple[KVCache, ...]]:
    """Returns (x_BPD, a cache of the prompts' keys and values)."""
    if config.attention != "xla":
        # Prompts have lengths that training's kernel may not take.
        config = dataclasses.replace(config, attention="auto")
    places_BP = jnp.arange(prompts_BP.shape[1]) - padding_B[:, None]
    context = make_context(config, jnp.maximum(places_BP, 0), (places_BP >= 0).astype(jnp.int32))
    return run_layers(config, params["backbone"], prompts_BP, context, room=room)


def _continue(
    config: ModelConfig,
    params: Params,
    tokens_BT: jax.Array,
    padding_B: jax.Array,
    column: jax.Array,
    cache: tuple[KVCache, ...],
) -> tuple[jax.Array, tuple[KVCache, ...]]:
    """Returns (x_BTD, the cache with the tokens' keys and values from `column` on)."""
    places_BT = column + jnp.arange(tokens_BT.shape[1]) - padding_B[:, None]
    segments_BT = (places_BT >= 0).astype(jnp.int32)
    context = make_context(config, jnp.maximum(places_BT, 0), segments_BT, column, padding_B)
    return run_layers(config, params["backbone"], tokens_BT, context, cache)


def sample(logits_BV: jax.Array, seen_BV: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """Returns one token a row: the most likely at temperature 0, else drawn from what the filters leave."""
    if sampling.repetition_penalty != 1.0:
        p = sampling.repetition_penalty
        logits_BV = jnp.where(seen_BV, jnp.where(logits_BV > 0, logits_BV / p, logits_BV * p), logits_BV)
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1)
    logits_BV = logits_BV / sampling.temperature
    if sampling.top_k:
        kth_B1 = jax.lax.top_k(logits_BV, min(sampling.top_k, logits_BV.shape[-1]))[0][:, -1:]
        logits_BV = jnp.where(logits_BV < kth_B1, -jnp.inf, logits_BV)
    if sampling.top_p < 1:
        ordered_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        before_BV = jnp.cumsum(jax.nn.softmax(ordered_BV), axis=-1) - jax.nn.softmax(ordered_BV)
        lowest_B1 = jnp.where(before_BV < sampling.top_p, ordered_BV, jnp.inf).min(-1, keepdims=True)
        logits_BV = jnp.where(logits_BV < lowest_B1, -jnp.inf, logits_BV)
    if sampling.min_p > 0:
        lowest_B1 = logits_BV.max(-1, keepdims=True) + jnp.log(sampling.min_p)
        logits_BV = jnp.where(logits_BV < lowest_B1, -jnp.inf, logits_BV)
    return jax.random.categorical(key, logits_BV, axis=-1)
