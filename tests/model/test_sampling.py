"""Decoding with the cache gives the tokens of the uncached model, for batches of unequal prompts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import init, tiny_model

from model import losses
from model.heads import language_model, unembedding
from model.sampling import generate, sample
from model.transformer import backbone

EOS = 2
VARIANTS = {
    "grouped heads": {},
    "learned positions": {"position": "learned"},
    "sliding window": {"sliding_window": (3, 0)},
}


def greedy_without_cache(model, params, prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        row = jnp.asarray([tokens])
        batch = {"tokens": row, "segment_ids": jnp.ones_like(row), "positions": jnp.arange(len(tokens))[None]}
        z = losses.logits(backbone(model, params["backbone"], batch), unembedding(params), model.logit_softcap)
        tokens.append(int(z[0, -1].argmax()))
        if tokens[-1] == EOS:
            break
    return tokens[len(prompt) :]


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_cached_tokens_equal_uncached_ones(variant):
    model = tiny_model(**variant)
    params = init(language_model(model))
    prompts = [[1, 5, 9, 30, 7], [1, 44], [1, 12, 13, 50, 51, 52, 8]]
    padded = np.zeros((3, 8), np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
        row[8 - len(prompt) :] = prompt
    lengths = np.array([len(p) for p in prompts], np.int32)
    got = generate(
        model, params, padded, lengths, jax.random.key(0), jnp.float32(0.0), max_new_tokens=6, top_k=0, eos_id=EOS
    )
    for row, prompt in zip(np.asarray(got).tolist(), prompts, strict=True):
        expected = greedy_without_cache(model, params, prompt, 6)
        assert row[: len(expected)] == expected
        assert set(row[len(expected) :]) <= {EOS}


def test_sampling_follows_the_temperature_and_top_k():
    logits = jnp.log(jnp.array([[0.6, 0.3, 0.1]]))
    keys = jax.random.split(jax.random.key(0), 2000)

    def drawn(temperature, top_k):
        tokens = jax.vmap(lambda key: sample(logits, key, jnp.float32(temperature), top_k)[0])(keys)
        return np.bincount(np.asarray(tokens), minlength=3) / 2000

    np.testing.assert_allclose(drawn(1.0, 0), [0.6, 0.3, 0.1], atol=0.04)
    np.testing.assert_allclose(drawn(1.0, 2), [2 / 3, 1 / 3, 0], atol=0.04)
    np.testing.assert_array_equal(drawn(0.0, 0), [1, 0, 0])
    assert drawn(0.5, 0)[0] > 0.7
