"""Every attention implementation gives XLA's outputs and gradients: packed segments, windows, grouped heads, meshes."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mesh_of, tiny_model

from configs.errors import UserError
from model.attend import attend
from model.context import make_context

T = 256
CASES = {
    "causal": {},
    "grouped heads": {"num_kv_heads": 2},
    "window": {"sliding_window": (40,)},
    "window and global, softcap": {"sliding_window": (40, 0), "attention_softcap": 5.0, "num_kv_heads": 1},
}


def inputs(config, rows=2, length=T):
    rng = np.random.default_rng(0)
    shapes = [(rows, length, heads, config.head_dim) for heads in (config.num_heads, *[config.num_kv_heads] * 2)]
    qkv = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    ends = np.sort(rng.choice(np.arange(1, length), (rows, 4)), axis=1)
    segments = (np.arange(length)[None, :, None] >= ends[:, None, :]).sum(-1) + 1
    starts = np.array([[np.flatnonzero(row == s)[0] for s in row] for row in segments])
    positions = np.arange(length) - starts
    segments[:, -20:], positions[:, -20:] = 0, 0  # padding
    return qkv, positions.astype(np.int32), segments.astype(np.int32)


def output_and_gradients(config, mesh, window, length=T):
    qkv, positions, segments = inputs(config, length=length)
    real = segments > 0

    def loss(q, k, v):
        o = attend(config, q, k, v, make_context(config, positions, segments), window)
        o = jnp.where(real[..., None, None], o, 0.0)
        return (jnp.sin(o) * jnp.arange(1, length + 1)[None, :, None, None] / length).sum(), o

    with jax.set_mesh(mesh):
        (_, o), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*qkv)
        return jax.device_get((o, grads))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_splash_equals_xla(case):
    config = tiny_model(head_dim=32, **case)
    for window in sorted(set(config.windows)):
        traced = jnp.asarray(window) if any(config.windows) else None
        expected = output_and_gradients(dataclasses.replace(config, attention="xla"), mesh_of(), traced)
        got = output_and_gradients(dataclasses.replace(config, attention="splash"), mesh_of(), traced)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), got, expected)


@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_the_mesh_changes_nothing(implementation):
    config = tiny_model(head_dim=32, num_kv_heads=2, sliding_window=(100,), attention=implementation)
    expected = output_and_gradients(dataclasses.replace(config, attention="xla"), mesh_of(), jnp.asarray(100))
    for mesh in ({"context": 2}, {"fsdp": 2, "tensor": 2, "context": 2}):
        got = output_and_gradients(config, mesh_of(**mesh), jnp.asarray(100))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), got, expected)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cudnn_is_given_what_makes_it_equal_xla(case, monkeypatch):
    """No GPU here: cuDNN's kernel is stood in for by the same function's XLA path, which takes the same arguments."""
    config = tiny_model(head_dim=32, **case)
    if config.attention_softcap:
        with pytest.raises(UserError, match="attention_softcap"):
            output_and_gradients(dataclasses.replace(config, attention="cudnn"), mesh_of(), None)
        return
    original, asked = jax.nn.dot_product_attention, []

    def stand_in(*arguments, implementation, **options):
        asked.append(implementation)
        return original(*arguments, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    window = jnp.asarray(config.windows[0]) if any(config.windows) else None
    expected = output_and_gradients(dataclasses.replace(config, attention="xla"), mesh_of(), window)
    for mesh in ({}, {"fsdp": 2, "context": 2}):
        got = output_and_gradients(dataclasses.replace(config, attention="cudnn"), mesh_of(**mesh), window)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), got, expected)
    assert set(asked) == {"cudnn"}


def test_no_query_sees_another_segment_or_the_future():
    """Each output's gradient with respect to the values is zero wherever the definition says so."""
    for implementation, window in itertools.product(("xla", "splash"), (0, 40)):
        config = tiny_model(head_dim=32, num_kv_heads=4, sliding_window=(window,), attention=implementation)
        (q, k, v), positions, segments = inputs(config, rows=1)
        context = make_context(config, positions, segments)
        query = 150
        grad = jax.jit(jax.grad(lambda v, c=config: attend(c, q, k, v, context, None)[0, query].sum()))(v)
        if window and implementation == "xla":
            grad = jax.grad(lambda v, c=config: attend(c, q, k, v, context, jnp.asarray(window))[0, query].sum())(v)
        seen = np.abs(np.asarray(grad[0])).sum((-1, -2)) > 0
        keys = np.arange(T)
        allowed = (segments[0] == segments[0, query]) & (keys <= query)
        assert (seen == allowed & ((query - keys < window) | (window == 0))).all()


def test_a_length_that_splash_cannot_cut_names_the_legal_ones():
    with pytest.raises(UserError, match=r"rows of 200 tokens; legal: a multiple of 128"):
        output_and_gradients(tiny_model(attention="splash"), mesh_of(), None, length=200)
