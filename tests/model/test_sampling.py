"""Generation with the KV cache equals the model without a cache, for batches of prompts of different lengths."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import init, tiny_model

from configs.errors import UserError
from model import losses, sampling
from model.heads import language_model, unembedding
from model.sampling import Prompts, Sampling, advance, prefill, sample
from model.transformer import forward
from tests.often import often

EOS = 2
YARN = {"rope_scaling": "yarn", "rope_scaling_factor": 4.0, "rope_original_context": 6}
LONGROPE = {
    "rope_scaling": "longrope", "rope_scaling_factor": 4.0, "rope_original_context": 16,
    "rope_short_factors": (1.0, 1.1, 1.2, 1.4), "rope_long_factors": (2.0, 3.0, 5.0, 8.0),
}  # fmt: skip
VARIANTS = {
    "grouped heads": {},
    "learned positions": {"position": "learned"},
    "sliding window": {"sliding_window": (3, 0)},
    "windows of no period": {"sliding_window": (3, 0, 4), "num_layers": 5},
    "one window": {"sliding_window": (3,)},
    "two rotary kinds": {"sliding_window": (3, 0), "rope_layers": ("local", "rope"), "rope_theta": 500.0},
    "a layer without positions": {"rope_layers": ("rope", "rope", "none"), "num_layers": 4},
    "yarn, half rotated": YARN | {"rope_fraction": 0.5},
    "dynamic": {"rope_scaling": "dynamic", "rope_scaling_factor": 4.0, "rope_original_context": 16},
    "longrope in a window": LONGROPE | {"sliding_window": (3, 0)},
    "parallel, scaled": {"parallel": "one_norm", "residual_scale": 0.4, "embedding_scale": 3.0, "logit_scale": 0.2},
}


@partial(jax.jit, static_argnums=0)
def logits_of_row(model, params, row, length):
    positions = jnp.arange(row.shape[1])[None]
    batch = {"tokens": row, "segment_ids": (positions < length).astype(jnp.int32), "positions": positions}
    return losses.logits(forward(model, params["backbone"], batch), unembedding(params), model.logit_softcap)[0]


def uncached_logits(model, params, tokens):
    """The logits after each of `tokens`. Padding on the right changes nothing, and one length compiles once."""
    row = np.array([[*tokens, *[0] * (16 - len(tokens))]])
    return logits_of_row(model, params, row, np.int32(len(tokens)))[: len(tokens)]


def greedy_without_cache(model, params, prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(uncached_logits(model, params, tokens)[-1].argmax()))
        if tokens[-1] == EOS:
            break
    return tokens[len(prompt) :]


@pytest.mark.integration
@pytest.mark.parametrize("name", often(VARIANTS, "grouped heads", "windows of no period", "dynamic"))
def test_cached_tokens_equal_uncached_tokens(name):
    model = tiny_model(**VARIANTS[name])
    params = init(language_model(model))
    prompts = [[1, 5, 9, 30, 7], [1, 44], [1, 12, 13, 50, 51, 52, 8]]
    padded = np.zeros((3, 8), np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
        row[8 - len(prompt) :] = prompt
    lengths = np.array([len(p) for p in prompts], np.int32)
    state = prefill(model, params, Prompts(padded, lengths), jax.random.key(0), Sampling(), max_new_tokens=6)
    got, _ = advance(model, params, state, Sampling(), steps=6, end_ids=(EOS,))
    for row, prompt in zip(np.asarray(got).tolist(), prompts, strict=True):
        expected = greedy_without_cache(model, params, prompt, 6)
        assert row[: len(expected)] == expected
        assert set(row[len(expected) :]) <= {EOS}


@pytest.mark.integration
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_cached_logits_equal_uncached_logits(variant):
    model = tiny_model(**variant)
    params = init(language_model(model))
    prompts = [[1, 5, 9, 30, 7], [1, 44]]
    padded = np.array([prompts[0], [0, 0, 0, *prompts[1]]], np.int32)
    lengths = np.array([5, 2], np.int32)
    state = prefill(model, params, Prompts(padded, lengths), jax.random.key(0), Sampling(), max_new_tokens=5)
    texts = [list(prompt) for prompt in prompts]
    for _ in range(5):
        for row, tokens in enumerate(texts):
            expected = uncached_logits(model, params, tokens)[-1]
            np.testing.assert_allclose(state.logits_BV[row], expected, rtol=1e-5, atol=1e-5)
        new, state = advance(model, params, state, Sampling(), steps=1, end_ids=(-1,))
        for tokens, token in zip(texts, np.asarray(new)[:, 0].tolist(), strict=True):
            tokens.append(token)


@pytest.mark.integration
def test_cached_logits_beyond_the_original_context_equal_uncached_logits():
    model = tiny_model(**LONGROPE | {"rope_original_context": 4, "sliding_window": (3, 0)})
    params = init(language_model(model))
    tokens = [1, 5, 9, 30, 7]
    prompts = Prompts(np.array([[0, *tokens]], np.int32), np.array([5], np.int32))
    state = prefill(model, params, prompts, jax.random.key(0), Sampling(), max_new_tokens=4)
    for _ in range(4):
        expected = uncached_logits(model, params, tokens)[-1]
        np.testing.assert_allclose(state.logits_BV[0], expected, rtol=1e-5, atol=1e-5)
        new, state = advance(model, params, state, Sampling(), steps=1, end_ids=(-1,))
        tokens.append(int(new[0, 0]))
    short = dataclasses.replace(model, rope_long_factors=model.rope_short_factors)
    assert np.abs(uncached_logits(short, params, tokens)[-1] - uncached_logits(model, params, tokens)[-1]).max() > 1e-3


def decoded(model, params, count):
    """The logits before each of `count` tokens after two prompts of different lengths, and the final state."""
    padded = np.array([[1, 5, 9, 30, 7], [0, 0, 0, 1, 44]], np.int32)
    lengths = np.array([5, 2], np.int32)
    state = prefill(model, params, Prompts(padded, lengths), jax.random.key(0), Sampling(), max_new_tokens=count)
    logits = []
    for token in range(count):
        logits.append(state.logits_BV)
        # The next tokens are fixed, so that different cache dtypes are compared on the same texts.
        state = state._replace(logits_BV=jax.nn.one_hot(jnp.array([token + 3, token + 20]), model.vocab_size))
        _, state = advance(model, params, state, Sampling(), steps=1, end_ids=(-1,))
    return np.stack(logits), state


@pytest.mark.parametrize("prompt", [5, 2])
def test_sliding_window_cache_is_as_long_as_the_window(prompt):
    model = tiny_model(sliding_window=(3, 0))
    params = init(language_model(model))
    tokens, lengths = np.ones((2, prompt), np.int32), np.full(2, prompt, np.int32)
    state = prefill(model, params, Prompts(tokens, lengths), jax.random.key(0), Sampling(), max_new_tokens=9)
    assert [kept.k.shape for kept in state.cache.stacks] == [(1, 2, 2, 3, 8), (1, 2, 2, prompt + 9, 8)]


@pytest.mark.integration
@pytest.mark.parametrize(("cache_dtype", "error"), [("bfloat16", 0.01), ("int8", 0.02)])
@pytest.mark.parametrize("variant", [{}, {"sliding_window": (3, 0)}], ids=["global", "sliding window"])
def test_bfloat16_or_int8_cache_changes_logits_little(variant, cache_dtype, error):
    model = tiny_model(**variant)
    params = init(language_model(model))
    expected, large = decoded(model, params, 8)
    got, small = decoded(dataclasses.replace(model, cache_dtype=cache_dtype), params, 8)
    assert 0 < np.abs(got - expected)[1:].max() < error * np.abs(expected).max()
    size = [sum(leaf.nbytes for leaf in jax.tree.leaves(state.cache.stacks)) for state in (large, small)]
    # Heads of 8 values have one float32 scale; with the usual 64 or 128 values, the scale matters less.
    assert size[1] / size[0] == {"bfloat16": 1 / 2, "int8": (8 + 4) / 32}[cache_dtype]


@pytest.mark.integration
@pytest.mark.parametrize(
    "name", often(["grouped heads", "windows of no period", "two rotary kinds"], "windows of no period")
)
def test_unstacked_layers_of_a_gpu_generate_and_score_the_same(monkeypatch, name):
    model = tiny_model(**VARIANTS[name])
    params = init(language_model(model))
    tokens = np.array([[1, 5, 9, 30, 7], [0, 1, 44, 3, 8]], np.int32)
    prompts = Prompts(tokens, np.array([5, 4], np.int32))
    monkeypatch.setattr(sampling, "platform", lambda: "gpu")
    split = jax.tree.map(jnp.copy, params)
    split = sampling.for_inference.__wrapped__(model, split)
    assert isinstance(split["backbone"]["layers"], tuple) and len(split["backbone"]["layers"]) == model.num_layers
    states = [
        prefill(model, given, prompts, jax.random.key(0), Sampling(), max_new_tokens=5) for given in (params, split)
    ]
    np.testing.assert_allclose(states[1].logits_BV, states[0].logits_BV, rtol=1e-5, atol=1e-5)
    texts = [
        advance(model, given, state, Sampling(), steps=5, end_ids=(EOS,))[0]
        for given, state in zip((params, split), states, strict=True)
    ]
    np.testing.assert_array_equal(*texts)
    batch = {"tokens": tokens, "segment_ids": np.ones((2, 5), np.int32), "positions": np.tile(np.arange(5), (2, 1))}
    np.testing.assert_allclose(
        forward(model, split["backbone"], batch), forward(model, params["backbone"], batch), rtol=1e-5, atol=1e-5
    )


@pytest.mark.integration
def test_generation_in_parts_equals_generation_at_once():
    model = tiny_model()
    params = init(language_model(model))
    prompt, lengths = np.array([[1, 5, 9]], np.int32), np.array([3], np.int32)
    sampling = Sampling(temperature=1.0, top_p=0.9, repetition_penalty=1.3)
    arguments = (model, params, Prompts(prompt, lengths), jax.random.key(3), sampling)
    at_once, _ = advance(model, params, prefill(*arguments, max_new_tokens=8), sampling, steps=8, end_ids=(-1,))
    state = prefill(*arguments, max_new_tokens=8)
    first, state = advance(model, params, state, sampling, steps=3, end_ids=(-1,))
    second, _ = advance(model, params, state, sampling, steps=5, end_ids=(-1,))
    np.testing.assert_array_equal(at_once, np.concatenate([first, second], axis=1))


def drawn(probabilities, seen=(), **how):
    logits = jnp.log(jnp.array([probabilities]))
    mask = jnp.array([[i in seen for i in range(len(probabilities))]])
    keys = jax.random.split(jax.random.key(0), 2000)
    tokens = jax.vmap(lambda key: sample(logits, mask, key, Sampling(**how))[0])(keys)
    return np.bincount(np.asarray(tokens), minlength=len(probabilities)) / 2000


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"temperature": 1.0}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 1.0, "top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.6}, [0.625, 0.375, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.4}, [1, 0, 0, 0]),
        ({"temperature": 1.0, "min_p": 0.29}, [0.526, 0.316, 0.158, 0]),
        ({"temperature": 0.5}, [0.685, 0.247, 0.062, 0.007]),
        ({}, [1, 0, 0, 0]),
    ],
)
def test_each_filter_keeps_the_right_tokens(how, expected):
    np.testing.assert_allclose(drawn([0.5, 0.3, 0.15, 0.05], **how), expected, atol=0.04)


@pytest.mark.parametrize("temperature", [0.0, 1e-7, 1e-38, 5e-324])
def test_a_tiny_temperature_takes_the_most_likely_token(temperature):
    """Two logits divided by it are infinite, and their difference is not a number."""
    logits = jnp.array([[80.0, 81.0, 90.0, 89.9]])
    tokens = [int(sample(logits, jnp.zeros((1, 0)), jax.random.key(i), Sampling(temperature))[0]) for i in range(4)]
    assert tokens == [2] * 4
    assert Sampling(temperature).divisor == 0 and Sampling(1e-6).divisor == 1e-6


def test_repetition_penalty_makes_seen_tokens_less_likely():
    # log 0.5 * 3 = log 0.125
    found = drawn([0.5, 0.5], seen=(0,), temperature=1.0, repetition_penalty=3.0)
    np.testing.assert_allclose(found, [0.2, 0.8], atol=0.04)
    np.testing.assert_array_equal(drawn([0.6, 0.4], seen=(0,), repetition_penalty=3.0), [0, 1])


@pytest.mark.parametrize(
    ("how", "message"), [({"top_p": 0.0}, "top_p=0.0 must be above 0"), ({"temperature": -1}, "at least 0")]
)
def test_invalid_sampling_is_an_error(how, message):
    with pytest.raises(UserError, match=message):
        Sampling(**how)
