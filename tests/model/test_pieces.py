"""Attention in pieces on one CPU equals two whole products, in less memory."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_model

from model import attend, pieces
from model.context import attention_mask, make_context
from model.tiles import Scores
from tests.model.test_attend import CASES, inputs, packed

FORMS = {
    "pieces of equal size": (256, {}),
    "a last piece that is shorter": (300, {}),
    "one head at a time": (256, {"_BYTES": 1}),
    "more queries in a piece": (300, {"_MOST_PIECES": 2}),
}


def in_pieces(model, q, k, v, segments):
    scale = model.query_scale or model.head_dim**-0.5
    scores = Scores(scale, model.attention_softcap, model.windows[0], model.causal)
    return pieces.attend_in_pieces(scores, q, k, v, segments)


def as_products(model, q, k, v, segments, positions):
    mask = attention_mask(make_context(model, positions, segments), model.windows[0], model.causal)
    scale = model.query_scale or model.head_dim**-0.5
    return attend.xla(q, k, v, mask, scale, model.attention_softcap)


def value_and_gradients(function, real, direction, qkv):
    def projected(*qkv):
        o = jnp.where(real, function(*qkv), 0)
        return (o * direction).sum(), o

    (_, o), gradients = jax.jit(jax.value_and_grad(projected, argnums=(0, 1, 2), has_aux=True))(*qkv)
    return o, *gradients


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CASES)
def test_pieces_equal_whole_products(name, form, monkeypatch):
    length, changes = FORMS[form]
    for field, value in changes.items():
        monkeypatch.setattr(pieces, field, value)
    model = tiny_model(**CASES[name])
    *qkv, direction = inputs(model, length)
    segments, positions = map(jnp.asarray, packed(length))
    # Queries of padding may attend to anything.
    real = (segments > 0)[..., None, None]
    got = value_and_gradients(lambda *x: in_pieces(model, *x, segments), real, direction, qkv)
    expected = value_and_gradients(lambda *x: as_products(model, *x, segments, positions), real, direction, qkv)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


def test_padding_alone_gives_numbers():
    model = tiny_model()
    *qkv, _ = inputs(model, 256)
    assert np.isfinite(in_pieces(model, *qkv, jnp.zeros((2, 256), jnp.int32))).all()


def compiled(length, dtype=jnp.float32):
    model = tiny_model(num_heads=8, num_kv_heads=8)
    q, k, v, _ = (jnp.asarray(x, dtype) for x in inputs(model, length))
    segments = jnp.ones((2, length), jnp.int32)

    def loss(q, k, v):
        return (in_pieces(model, q, k, v, segments).astype(jnp.float32) ** 2).sum()

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, k, v).compile()


def test_up_to_2048_tokens_memory_grows_with_the_length_of_a_row_and_not_with_its_square():
    short, long = (compiled(length).memory_analysis().temp_size_in_bytes for length in (512, 2048))
    assert long < 4.5 * short
    assert long < 2 * 8 * 2048**2 * 4


def test_no_product_of_a_gradient_in_bfloat16_sums_over_the_first_axis_of_a_matrix(monkeypatch):
    monkeypatch.setattr(pieces, "_BYTES", 2**18)
    lines = [line for line in compiled(256, jnp.bfloat16).as_text().splitlines() if re.search(r" dot\(", line)]
    assert len(lines) >= 2 * 7
    for line in lines:
        assert re.search(r"lhs_contracting_dims=\{2\}", line), line
