"""Decoding tokens per second beside the time that reading the weights and the KV cache takes at full bandwidth."""

import time
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from benchmarks.accelerator.chip import attached_chip, seconds_of
from benchmarks.accelerator.sizes import config_of
from model.config import ModelConfig
from model.sampling import Prompts, Sampling, advance, for_inference, prefill
from train.settings import from_config, planned_model
from train.step import objective_of

_NO_END = (-1,)


def measure(model: str, prompt: int, new: int, rows: int) -> dict[str, Any]:
    """Returns tokens per second of a random model on one device, greedy, and the bandwidth limit.

    Args:
        model: key of `SHAPES`.
        prompt: tokens per prompt.
        new: generated tokens per prompt.
        rows: prompts in the batch.
    """
    settings = from_config(config_of(model, 1, prompt + new).to_dict())
    config = planned_model(settings)
    objective = objective_of(settings, config)
    params = for_inference(config, jax.jit(lambda rng: nn.meta.unbox(objective.init(rng)))(jax.random.key(0)))
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (rows, prompt), np.int32)
    prompts, rng = Prompts(tokens, np.full(rows, prompt, np.int32)), jax.random.key(0)

    def filled() -> Any:
        return prefill(config, params, prompts, rng, Sampling(), max_new_tokens=2 * new)

    prefill_seconds = seconds_of(filled, repeats=3)
    # The first call compiles; both fill an own part of the cache, so the second one decodes what a user would.
    _, state = advance(config, params, filled(), Sampling(), steps=new, end_ids=_NO_END)
    jax.block_until_ready(state)
    start = time.perf_counter()
    jax.block_until_ready(advance(config, params, state, Sampling(), steps=new, end_ids=_NO_END))
    seconds = time.perf_counter() - start
    weights = sum(x.nbytes for x in jax.tree.leaves(params))
    cache = rows * (prompt + 1.5 * new) * _cache_bytes_per_token(config)
    chip = attached_chip()
    limit = chip.hbm_bandwidth / (weights + cache) * rows if chip else None
    return {
        "model": model,
        "rows": rows,
        "prompt": prompt,
        "new": new,
        "tokens_per_second": rows * new / seconds,
        "seconds_per_token": seconds / new,
        "prefill_seconds": prefill_seconds,
        "weight_bytes": weights,
        "cache_bytes": cache,
        "limit_tokens_per_second": limit,
        "peak_bytes": (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
    }


def _cache_bytes_per_token(config: ModelConfig) -> int:
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * 2
