"""Continuations with a KV cache, after common tokens or not, have the likelihoods of whole texts without one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import init, tiny_model

from model.continuations import Contexts, Continuations, continuation_scores
from model.heads import language_model, unembedding
from model.losses import logits
from model.transformer import forward
from tests.often import often

COMMON = [1, 5, 9, 30, 7, 8]
CONTEXTS = [[*COMMON, 11, 4, 6, 20], [*COMMON, 3], [*COMMON, 40, 41]]
CONTINUATIONS = [[[6, 7, 8, 9], [11]], [[11, 12], [2, 2, 2, 2]], [[5], [44, 3, 9]]]
VARIANTS = {
    "plain": {},
    "windows": {"sliding_window": (3, 0)},
    "one window": {"sliding_window": (2,)},
    "learned positions": {"position": "learned"},
    "a layer without positions": {"rope_layers": ("rope", "none")},
    "one head for keys, softcap": {"num_kv_heads": 1, "logit_softcap": 5.0},
    "experts": {"num_experts": 4, "experts_per_token": 2, "expert_dim": 16},
}


@partial(jax.jit, static_argnums=0)
def log_probabilities(model, params, tokens):
    """(16, V) log-probabilities of the token after each of a row's, without a cache."""
    batch = {"tokens": tokens, "positions": jnp.arange(16), "segment_ids": (tokens > 0).astype(jnp.int32)}
    x = forward(model, params["backbone"], {name: array[None] for name, array in batch.items()})
    return jax.nn.log_softmax(logits(x, unembedding(params), model.logit_softcap))[0]


def whole_text_score(model, params, context, continuation):
    """Returns (nats, greedy) of a continuation."""
    tokens = np.zeros(16, np.int32)
    tokens[: len(context) + len(continuation)] = [*context, *continuation]
    own = np.asarray(log_probabilities(model, params, tokens))[len(context) - 1 : len(context) + len(continuation) - 1]
    return float(own[range(len(continuation)), continuation].sum()), own.argmax(-1).tolist() == continuation


def scores(model, params, common, width, chunk=0):
    last = np.zeros((3, width), np.int32)
    for row, context in zip(last, CONTEXTS, strict=True):
        row[-len(context) :] = context[-width:]
    tokens, weights = np.zeros((3, 2, 4), np.int32), np.zeros((3, 2, 4), np.float32)
    for b, c in np.ndindex(3, 2):
        own = CONTINUATIONS[b][c]
        tokens[b, c, : len(own)], weights[b, c, : len(own)] = own, 1
    lengths = np.array([len(context) for context in CONTEXTS], np.int32)
    contexts = Contexts(np.array(COMMON[:common], np.int32), last, lengths)
    return continuation_scores(model, params, contexts, Continuations(tokens, weights), chunk=chunk)


@pytest.mark.integration
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("common", "width"), often([(0, 12), (6, 4), (4, 6)], (4, 6)), ids=["none", "all", "some"])
def test_scores_equal_those_of_whole_texts(name, common, width):
    model = tiny_model(**VARIANTS[name])
    params = init(language_model(model))
    nats, greedy = scores(model, params, common, width)
    for b, c in np.ndindex(3, 2):
        expected = whole_text_score(model, params, CONTEXTS[b], CONTINUATIONS[b][c])
        assert nats[b, c] == pytest.approx(expected[0], abs=3e-5), (b, c)
        assert greedy[b, c] == expected[1]


@pytest.mark.integration
def test_what_greedy_decoding_would_write_is_recognized_in_chunks():
    model = tiny_model()
    params = init(language_model(model))
    written = list(CONTEXTS[0])
    for _ in range(4):
        best = next(token for token in range(1, 64) if whole_text_score(model, params, written, [token])[1])
        written.append(best)
    own = written[len(CONTEXTS[0]) :]
    tokens = np.array([[own, [*own[:3], own[3] % 50 + 1]]], np.int32)
    contexts = Contexts(np.zeros(0, np.int32), np.array([CONTEXTS[0]], np.int32), np.array([10], np.int32))
    _, greedy = continuation_scores(
        model, params, contexts, Continuations(tokens, np.ones((1, 2, 4), np.float32)), chunk=2
    )
    assert greedy.tolist() == [[True, False]]


@pytest.mark.integration
def test_an_int8_cache_changes_scores_little():
    model, small = tiny_model(), tiny_model(cache_dtype="int8")
    params = init(language_model(model))
    expected, _ = scores(model, params, 6, 4)
    got, _ = scores(small, params, 6, 4)
    assert 0 < np.abs(np.asarray(got - expected)).max() < 0.05 * np.abs(np.asarray(expected)).max()


@pytest.mark.parametrize("scaling", ["none", "dynamic", "longrope"])
def test_a_score_does_not_depend_on_the_longest_continuation(scaling):
    factors = {"rope_short_factors": (1.0,) * 4, "rope_long_factors": (2.0,) * 4} if scaling == "longrope" else {}
    model = tiny_model(
        rope_scaling=scaling, rope_original_context=8, rope_scaling_factor=4.0, context_length=64, **factors
    )
    params = init(language_model(model))
    contexts = Contexts(np.zeros(0, np.int32), np.array([[1, 5, 9, 30, 7]], np.int32), np.array([5], np.int32))
    found = []
    for width in (3, 16):
        tokens, weights = np.zeros((1, 1, width), np.int32), np.zeros((1, 1, width), np.float32)
        tokens[0, 0, :3], weights[0, 0, :3] = [6, 7, 8], 1
        nats, _ = continuation_scores(model, params, contexts, Continuations(tokens, weights))
        found.append(float(nats[0, 0]))
    assert found[1] == pytest.approx(found[0], abs=1e-5)
