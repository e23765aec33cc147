"""Generation with a KV cache, pure and jitted: one `prefill`, then compiled steps of `advance`.

Prompts are aligned at their ends, so one cache column serves the whole batch. A token's position is its column minus
the padding of its row; negative positions are padding.
B batch, P prompt length, M new tokens, V vocabulary.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from configs.errors import UserError
from model import losses
from model.cache import Cache, CacheSize
from model.config import ModelConfig
from model.dtypes import compute_dtype, platform
from model.heads import unembedding
from model.transformer import Params, decode_layers, prefill_layers, unstacked

# Logits of float32 divided by less could overflow; the most likely token is drawn anyway.
_LOWEST_TEMPERATURE = 1e-6


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. The filters apply in this order, each to what the previous one left.

    Attributes:
        repetition_penalty: divides the logits of tokens that the text already contains, or multiplies them where
            negative (CTRL: arXiv:1909.05858, section 4.1); 1: off.
        temperature: divides the logits; below 1e-6, the most likely token is taken.
        top_k: keep the k most likely tokens; 0: all.
        top_p: keep the fewest most likely tokens whose probabilities sum to at least this (arXiv:1904.09751); 1: all.
        min_p: keep tokens at least this fraction as likely as the most likely one (arXiv:2407.01082); 0: all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        ranges = {
            "temperature": (self.temperature >= 0, "at least 0"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
        }
        errors = [f"{name}={getattr(self, name)} must be {text}" for name, (ok, text) in ranges.items() if not ok]
        if errors:
            raise UserError("; ".join(errors))

    @property
    def divisor(self) -> float:
        """The temperature, or 0 if the most likely token is taken."""
        return self.temperature if self.temperature >= _LOWEST_TEMPERATURE else 0.0


class Prompts(NamedTuple):
    """A batch of prompts.

    Attributes:
        tokens_BP: prompts, each at the end of its row.
        lengths_B: number of tokens of each prompt.
    """

    tokens_BP: jax.Array
    lengths_B: jax.Array


class Decoding(NamedTuple):
    """The state of a batch of texts that is being generated.

    Attributes:
        logits_BV: logits of the next token.
        cache: keys and values of the tokens so far.
        seen_BV: which tokens each text contains; (B, 0) without a repetition penalty.
        done_B: whether a text has ended.
        rng: key of the samples.
    """

    logits_BV: jax.Array
    cache: Cache
    seen_BV: jax.Array
    done_B: jax.Array
    rng: jax.Array


@partial(jax.jit, static_argnames=("config",), donate_argnames=("params",))
def for_inference(config: ModelConfig, params: Params) -> Params:
    """Returns a language model's parameters as decoding uses them, so that no step converts or copies them.

    Their dtypes are those of the computation; on a GPU, their layers are unstacked (`transformer.unstacked`).
    """
    dtype = compute_dtype(config)

    def cast(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype) if path[-1].key in ("kernel", "table") else leaf

    params = jax.tree_util.tree_map_with_path(cast, params)
    return params | {"backbone": unstacked(config, params["backbone"])} if platform() == "gpu" else params


@partial(jax.jit, static_argnames=("config", "sampling", "max_new_tokens"))
def prefill(
    config: ModelConfig, params: Params, prompts: Prompts, rng: jax.Array, sampling: Sampling, *, max_new_tokens: int
) -> Decoding:
    """Returns the state after the prompts.

    Args:
        config: the model.
        params: `{"backbone", "head"}` of a language model.
        prompts: the prompts.
        rng: key of the samples; unused at temperature 0.
        sampling: how tokens are drawn.
        max_new_tokens: the most tokens that `advance` may add; the cache is allocated for them.
    """
    tokens_BP, lengths_B = prompts
    B, P = tokens_BP.shape
    padding_B = P - lengths_B
    x_BPD, cache = prefill_layers(config, params["backbone"], tokens_BP, padding_B, CacheSize(P + max_new_tokens))
    logits_BV = losses.logits(x_BPD[:, -1:], unembedding(params), config.logit_softcap)[:, 0]
    seen_BV = jnp.zeros((B, 0 if sampling.repetition_penalty == 1.0 else logits_BV.shape[1]), bool)
    if seen_BV.size:
        real_BP = jnp.arange(P) >= padding_B[:, None]
        seen_BV = jax.vmap(lambda seen, tokens, real: seen.at[tokens].max(real))(seen_BV, tokens_BP, real_BP)
    return Decoding(logits_BV, cache, seen_BV, jnp.zeros(B, bool), rng)


@partial(jax.jit, static_argnames=("config", "sampling", "steps", "end_ids"), donate_argnames=("state",))
def advance(
    config: ModelConfig, params: Params, state: Decoding, sampling: Sampling, *, steps: int, end_ids: tuple[int, ...]
) -> tuple[jax.Array, Decoding]:
    """Returns (tokens_BM, the state after them), M = `steps`; what follows one of `end_ids` is the first of them.

    Stops early when all texts have ended.
    """

    def body(carry: tuple[jax.Array, jax.Array, Decoding]) -> tuple[jax.Array, jax.Array, Decoding]:
        """Samples one token of each text and computes the logits of the next."""
        i, tokens_BM, s = carry
        rng, key = jax.random.split(s.rng)
        token_B = jnp.where(s.done_B, end_ids[0], sample(s.logits_BV, s.seen_BV, key, sampling))
        tokens_BM = tokens_BM.at[:, i].set(token_B)
        seen_BV = s.seen_BV.at[jnp.arange(len(token_B)), token_B].set(True) if s.seen_BV.size else s.seen_BV
        x_B1D, cache = decode_layers(config, params["backbone"], token_B[:, None], s.cache)
        logits_BV = losses.logits(x_B1D, unembedding(params), config.logit_softcap)[:, 0]
        done_B = s.done_B | jnp.isin(token_B, jnp.array(end_ids))
        return i + 1, tokens_BM, Decoding(logits_BV, cache, seen_BV, done_B, rng)

    tokens_BM = jnp.full((len(state.done_B), steps), end_ids[0], jnp.int32)
    carry = (jnp.asarray(0), tokens_BM, state)
    _, tokens_BM, state = jax.lax.while_loop(lambda c: (c[0] < steps) & ~c[2].done_B.all(), body, carry)
    return tokens_BM, state


def sample(logits_BV: jax.Array, seen_BV: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """Returns one token per row: the most likely if `divisor` is 0, else a sample from what the filters leave."""
    if sampling.repetition_penalty != 1.0:
        p = sampling.repetition_penalty
        logits_BV = jnp.where(seen_BV, jnp.where(logits_BV > 0, logits_BV / p, logits_BV * p), logits_BV)
    if sampling.divisor == 0:
        return jnp.argmax(logits_BV, axis=-1)
    logits_BV = logits_BV / sampling.divisor
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
