"""Rows of a million tokens: positions, packing, masks, loss and counts, none of which needs a (T, T) array."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_model

from configs import models
from data.packing import PackedRows
from data.store import store_from_documents
from model import losses, tiles
from model.context import segment_lengths
from model.flops import training_flops_per_token, visible_fraction
from model.rotary import rotation
from model.rotary_kind import FLOAT32_POSITIONS, Rotary
from model.tiles import Block, Keys, Scores

MILLION = 2**20
LLAMA3 = Rotary(128, 500_000.0)
KINDS = {
    "llama 3": LLAMA3,
    "llama 3.1": dataclasses.replace(LLAMA3, scaling="llama3", factor=8.0, original_context=8192, low=1.0, high=4.0),
    "yarn": dataclasses.replace(
        LLAMA3, scaling="yarn", factor=32.0, original_context=8192, beta_fast=32.0, beta_slow=1.0
    ),
    "linear": dataclasses.replace(LLAMA3, scaling="linear", factor=4.0),
    "longrope": dataclasses.replace(
        LLAMA3, scaling="longrope", original_context=4096, short_factors=(1.0,) * 64, long_factors=(1.3,) * 64
    ),
}


def positions():
    """All short positions, some of a million and the last ones, as (1, T)."""
    some = np.random.default_rng(0).integers(0, MILLION, 5000)
    return np.unique(np.concatenate([np.arange(3000), some, np.arange(MILLION - 50, MILLION)])).astype(np.int32)[None]


def in_float64(rotary, places):
    """The angles of each kind in float64, written down from its paper."""
    half = np.arange(rotary.width // 2)
    plain = rotary.theta ** (-half / len(half))
    if rotary.scaling == "linear":
        plain = plain / rotary.factor
    elif rotary.scaling == "longrope":
        plain = plain / np.array(rotary.long_factors)
    elif rotary.scaling == "llama3":
        turns = rotary.original_context * plain / (2 * np.pi)
        keep = np.clip((turns - rotary.low) / (rotary.high - rotary.low), 0, 1)
        plain = plain * (keep + (1 - keep) / rotary.factor)
    elif rotary.scaling == "yarn":

        def column(turns):
            return rotary.width * np.log(rotary.original_context / (turns * 2 * np.pi)) / (2 * np.log(rotary.theta))

        first, last = np.floor(column(rotary.beta_fast)), np.ceil(column(rotary.beta_slow))
        stretched = np.clip((half - first) / (last - first), 0, 1)
        plain = plain * (1 - stretched) + plain / rotary.factor * stretched
    return places[..., None].astype(np.float64) * plain


def rotated(rotary, places):
    lengths = np.full_like(places, MILLION)
    return jax.device_get(jax.jit(lambda p, n: rotation(rotary, p, n))(places, lengths))


@pytest.mark.parametrize("name", KINDS)
def test_rotary_positions_at_a_million_tokens_equal_float64(name):
    exact, places = dataclasses.replace(KINDS[name], exact=True), positions()
    angles = in_float64(exact, places)
    sin, cos = rotated(exact, places)
    # Measured: 1e-6 radians.
    np.testing.assert_allclose(sin, np.sin(angles), atol=2e-6)
    np.testing.assert_allclose(cos, np.cos(angles), atol=2e-6)


def test_rotary_positions_without_exact_angles_are_off_by_a_twentieth_of_a_radian():
    """Why `exact` exists; up to `FLOAT32_POSITIONS` the error is below that of rounding to bfloat16."""
    places = positions()
    error = np.abs(rotated(LLAMA3, places)[0] - np.sin(in_float64(LLAMA3, places))).max(-1)
    assert error.max() > 0.02
    assert error[places <= FLOAT32_POSITIONS].max() < 2.0**-7


def test_frequencies_that_depend_on_the_length_turn_evenly():
    """Dynamic scaling: the frequency is a float32 number, and each position a whole multiple of it."""
    rotary = dataclasses.replace(LLAMA3, scaling="dynamic", factor=2.0, original_context=8192, exact=True)
    places = np.array([[0, 1, MILLION - 2, MILLION - 1]], np.int32)
    sin, cos = rotated(rotary, places)
    turned = (cos + 1j * sin)[0]
    # Attention reads differences of angles only: from one position to the next it is the same everywhere.
    np.testing.assert_allclose(turned[3] / turned[2], turned[1] / turned[0], atol=5e-6)


def test_long_contexts_have_exact_positions():
    short, long = (tiny_model(context_length=n).rotaries[0] for n in (FLOAT32_POSITIONS, FLOAT32_POSITIONS + 1))
    assert not short.exact and long.exact
    local = tiny_model(context_length=MILLION, rope_layers=("local", "rope"), rope_scaling="linear").rotaries
    assert all(rotary.exact for rotary in local)


def test_packing_a_row_of_a_million_tokens():
    lengths = [700_001, 3, 400_000]
    store = store_from_documents([np.arange(n) % 61 for n in lengths])
    row = {key: x[0] for key, x in PackedRows(store, MILLION).rows(np.array([0])).items()}
    assert row["positions"].max() == 700_000 - 1
    assert (row["positions"] >= 0).all() and row["positions"].dtype == np.int32
    for segment, start in ((1, 0), (2, 700_000)):
        place = row["segment_ids"] == segment
        assert (row["positions"][place] == np.arange(place.sum())).all()
        assert np.flatnonzero(place)[0] == start
    found = jax.jit(segment_lengths)(row["positions"][None], row["segment_ids"][None])
    assert found[0, 0] == 700_000


def test_loss_of_a_row_of_a_million_tokens():
    rng = np.random.default_rng(0)
    x, table = rng.standard_normal((1, MILLION, 4)).astype(np.float32), rng.standard_normal((8, 4)).astype(np.float32)
    targets = rng.integers(0, 8, (1, MILLION)).astype(np.int32)
    weights = np.ones((1, MILLION), np.float32)
    options = losses.LossOptions(chunk=2**14)
    sums = jax.jit(lambda *batch: losses.cross_entropy(*batch, options))(x, table, targets, weights)
    z = x[0].astype(np.float64) @ table.T.astype(np.float64)
    nll = np.log(np.exp(z).sum(-1)) - z[np.arange(MILLION), targets[0]]
    assert float(sums.weight) == MILLION
    np.testing.assert_allclose(float(sums.nll), nll.sum(), rtol=1e-6)


@pytest.mark.parametrize("window", [0, 700])
def test_attention_at_the_end_of_a_row_of_a_million_tokens(window):
    """The last 64 queries and 1,024 keys, at their columns; the segment starts within the keys."""
    rng = np.random.default_rng(0)
    q = rng.standard_normal((1, 64, 2, 8)).astype(np.float32)
    k, v = (rng.standard_normal((1, 1024, 1, 8)).astype(np.float32) for _ in range(2))
    starts = np.int32(MILLION - 64), np.int32(MILLION - 1024)
    ids = np.where(np.arange(1024) < 100, 6, 7).astype(np.int32)[None]
    scores = Scores(8**-0.5, 0.0, window, causal=True)
    blocks = Block(ids[:, -64:], starts[0]), Block(ids, starts[1])
    found, _ = jax.jit(lambda q, k, v: tiles.forward(scores, q, Keys(k, v), *blocks))(q, k, v)
    for t in range(64):
        column = 960 + t
        keys = np.arange(max(100, column + 1 - window if window else 0), column + 1)
        z = k[0, keys, 0].astype(np.float64) @ q[0, t].T * 8**-0.5
        p = np.exp(z - z.max(0))
        expected = (p / p.sum(0)).T @ v[0, keys, 0]
        np.testing.assert_allclose(found[0, t], expected, atol=2e-6)
    far = Block(ids, jnp.int32(MILLION))
    assert not tiles.is_visible(scores, blocks[0], far)


def test_flops_of_a_million_tokens_do_not_overflow():
    section = models.architecture("llama3_8b")
    model = tiny_model(**(section | {"context_length": MILLION}))
    attention = 12 * 32 * 128 * 32 * (MILLION + 1) / 2
    matrices = 6 * (32 * (4096 * 128 * 80 + 3 * 4096 * 14336) + 128256 * 4096)
    assert training_flops_per_token(model, MILLION) == pytest.approx(attention + matrices, rel=1e-12)
    assert visible_fraction(model, MILLION) == pytest.approx((MILLION + 1) / (2 * MILLION), rel=1e-12)
