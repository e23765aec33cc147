"""Experts split over the mesh's `expert` axis equal a dense reference in loss and every gradient, for every load."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import init, mesh_of, tiny_model
from mixtures import LOADS, MIXTURE, assert_close, batch_of, dense, gradient_of, logits_of

from configs.errors import UserError
from model.cache import CacheSize
from model.dispatch import dispatch, order_by_expert
from model.experts import route
from model.heads import RouterLosses, language_model
from model.sharding import PARAMETER_RULES, constrain, parameter_shardings, spec
from model.transformer import decode_layers, forward, prefill_layers
from tests.often import often
from train.step import summed_gradients

AXES = {
    "expert 2": {"expert": 2},
    "expert 8": {"expert": 8},
    "expert 4 x fsdp 2": {"expert": 4, "fsdp": 2},
    "data 2 x expert 2 x tensor 2": {"data": 2, "expert": 2, "tensor": 2},
    "expert 4 x context 2": {"expert": 4, "context": 2},
}


def inputs(load, rows=8, length=16):
    config, rng = tiny_model(**MIXTURE), np.random.default_rng(0)
    E, D, F = config.num_experts, config.embed_dim, config.expert_width
    x = jnp.asarray(rng.standard_normal((rows, length, D)), jnp.float32)
    shapes = {"gate": (E, D, F), "up": (E, D, F), "down": (E, F, D)}
    kernels = {name: jnp.asarray(0.3 * rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}
    real = np.zeros((rows, length), bool) if load == "padding" else rng.random((rows, length)) > 0.2
    return x, logits_of(load, rng, (rows, length, E)), kernels, jnp.asarray(real)


@functools.cache
def gradient(axes, platform="cpu"):
    """Returns the compiled gradient of a loss of `dispatch` on a mesh, or of `dense` without one."""
    config = tiny_model(**MIXTURE)

    def loss(x, logits, kernels, real):
        choices = route(config, logits)
        experts = jnp.where(real[..., None], choices.experts_BTK, config.num_experts if axes else 0)
        gates = jnp.where(real[..., None], choices.gates_BTK, 0)
        y, rounds = (dispatch if axes else dense)(config, x, experts, gates, kernels)
        return (y**2).sum(), rounds

    def traced(*args):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("model.grouped.platform", lambda: platform)
            return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(*args)

    return jax.jit(traced)


def result(axes, load, platform="cpu", rows=8):
    mesh = mesh_of(**dict(axes))
    with jax.set_mesh(mesh):
        (loss, rounds), grads = gradient(axes, platform)(*inputs(load, rows))
    return (loss, grads), np.asarray(rounds)


@pytest.mark.integration
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("axes", AXES.values(), ids=AXES)
def test_dispatch_over_the_axis_equals_a_dense_reference_in_every_gradient(axes, load):
    (loss, _), grads = gradient(())(*inputs(load))
    found, _ = result(tuple(axes.items()), load)
    assert_close(found, (loss, grads))


@pytest.mark.parametrize("load", LOADS)
def test_dispatch_where_ragged_dot_is_native(load):
    (loss, _), grads = gradient(())(*inputs(load))
    found, _ = result((("expert", 4),), load, "tpu")
    assert_close(found, (loss, grads))


@pytest.mark.integration
def test_rows_that_the_devices_do_not_divide_are_padded():
    (loss, _), grads = gradient(())(*inputs("usual", 3))
    found, _ = result((("data", 2), ("expert", 4)), "usual", rows=3)
    assert_close(found, (loss, grads))


def test_rounds_follow_the_load_and_a_device_without_work_takes_none():
    # 8 x 16 tokens, 2 choices each, in rounds of 1.25 of an even share.
    for load, real in (("all_to_two", None), ("half_empty", None), ("padding", 0)):
        _, rounds = result((("expert", 8),), load)
        tokens = int(np.asarray(inputs(load)[3]).sum())
        size = int(np.ceil(1.25 * 8 * 16 * 2 / 8))
        if load == "all_to_two":
            assert rounds.tolist() == [-(-tokens // size)] * 2 + [0] * 6
        elif load == "half_empty":
            assert (rounds[:4] >= 1).all() and (rounds[4:] == 0).all()
        else:
            assert real == rounds.sum()


def test_more_assignments_than_a_number_can_hold_are_sorted_as_well():
    expert_A = np.random.default_rng(0).integers(0, 4, 1000)
    expected = np.argsort(expert_A, kind="stable")
    for count in (3, 10**7):
        np.testing.assert_array_equal(order_by_expert(jnp.asarray(expert_A), count), expected)


MODEL = MIXTURE | {"expert_every": 2, "shared_expert_dim": 16, "router_bias": True}


@pytest.fixture(scope="module")
def reference():
    model = tiny_model(**MODEL)
    objective = language_model(model, router=RouterLosses(z=0.01, balance=0.02))
    params, batch = init(objective), batch_of()
    with pytest.MonkeyPatch.context() as patch:
        plain = dataclasses.replace(model, scan_layers=False)
        expected = gradient_of(plain, params, batch, dispatch_by=dense, monkeypatch=patch)
    return model, params, batch, expected


@pytest.mark.integration
@pytest.mark.parametrize(
    ("axes", "microbatches", "changes"),
    [
        ({"expert": 2}, 4, {"remat": "full"}),
        ({"slice": 2, "expert": 2, "tensor": 2}, 2, {}),
        *often(
            [
                ({"expert": 4, "fsdp": 2}, 1, {"remat": "dots"}),
                ({"expert": 8}, 1, {"scan_layers": False}),
                ({"data": 2, "expert": 2, "context": 2}, 1, {"remat": "full", "scan_layers": False}),
            ]
        ),
    ],
    ids=str,
)
def test_gradients_and_loads_equal_the_dense_reference(axes, microbatches, changes, reference):
    model, params, batch, expected = reference
    objective = language_model(dataclasses.replace(model, **changes), router=RouterLosses(z=0.01, balance=0.02))
    mesh, boxed = mesh_of(**axes), jax.eval_shape(objective.init, jax.random.key(0))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, parameter_shardings(boxed, mesh))
        grads, sums = jax.jit(lambda p, b: summed_gradients(objective, p, b, microbatches))(placed, batch)
    assert sums.routers.rounds_P.shape == (1, mesh.size // mesh.shape["tensor"])
    assert_close((grads, sums._replace(routers=sums.routers._replace(rounds_P=None))), expected)
    np.testing.assert_array_equal(sums.routers.load_E, expected[1].routers.load_E)


@pytest.mark.integration
@pytest.mark.parametrize("axes", [{"expert": 2, "data": 2}, *often([{"expert": 4, "tensor": 2}])], ids=str)
def test_cached_logits_equal_uncached_logits_on_a_mesh(axes):
    model = tiny_model(**MODEL | {"num_layers": 3, "dense_layers": 1})
    objective = language_model(model)
    params, rng = init(objective), np.random.default_rng(0)
    prompts, padding, following = rng.integers(3, 64, (2, 9)), np.array([0, 3]), rng.integers(3, 64, (2, 4))
    tokens, positions = np.concatenate([prompts, following], 1), np.arange(13) - padding[:, None]
    batch = {"tokens": tokens, "segment_ids": (positions >= 0) * 1, "positions": np.maximum(positions, 0)}
    whole = forward(model, params["backbone"], jax.tree.map(jnp.asarray, batch))
    mesh, boxed = mesh_of(**axes), jax.eval_shape(objective.init, jax.random.key(0))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, parameter_shardings(boxed, mesh))["backbone"]
        size = CacheSize(13, 4)
        first, cache = jax.jit(lambda p: prefill_layers(model, p, prompts, padding, size))(placed)
        x, _ = jax.jit(lambda p, c: decode_layers(model, p, following, c))(placed, cache)
    np.testing.assert_allclose(first[0], whole[0, :9], atol=2e-5)
    np.testing.assert_allclose(x, whole[:, 9:], atol=2e-5)


def test_experts_are_split_over_their_axis_and_dense_weights_over_it_and_fsdp():
    boxed = jax.eval_shape(language_model(tiny_model(**MODEL)).init, jax.random.key(0))
    layers = parameter_shardings(boxed, mesh_of(expert=4, fsdp=2))["backbone"]["layers"]
    assert layers["experts"]["up"]["kernel"].spec == jax.P(None, ("expert",), ("fsdp",), ("tensor",))
    assert layers["experts"]["down"]["kernel"].spec == jax.P(None, ("expert",), ("tensor",), ("fsdp",))
    assert layers["mlp"]["up"]["kernel"].spec == jax.P(None, ("expert", "fsdp"), ("tensor",))
    assert layers["experts"]["router"]["bias"].spec == jax.P(None, None)


@pytest.mark.parametrize(
    ("experts", "axis", "message"),
    [
        (8, 3, "config.mesh.expert=3 must divide config.model.num_experts=8; nearest config.mesh.expert: 2 or 4"),
        (8, 3, "nearest sizes: 6 or 9"),
        (6, 4, "nearest config.mesh.expert: 3 or 6; nearest sizes: 4 or 8"),
        (4, 8, "nearest config.mesh.expert: 4; nearest sizes: 8"),
    ],
)
def test_an_axis_that_does_not_divide_the_experts_names_the_nearest_sizes(experts, axis, message):
    model = tiny_model(**MIXTURE | {"num_experts": experts, "embed_dim": 48, "vocab_size": 96})
    boxed = jax.eval_shape(language_model(model).init, jax.random.key(0))
    with pytest.raises(UserError, match=message):
        parameter_shardings(boxed, mesh_of(expert=axis))


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (("experts", "embed", "mlp"), "'experts' and 'embed' of one array are both split over the mesh axis 'expert'"),
        (("heads", "mlp"), "'heads' and 'mlp' .* 'tensor'"),
        (("vocab", "embed"), "axis 'expert'; .*'vocab' and 'embed' .* 'fsdp'"),
    ],
)
def test_two_axes_of_an_array_over_one_mesh_axis_are_an_error(axes, message):
    with pytest.raises(ValueError, match=message):
        spec(axes, PARAMETER_RULES)
    with pytest.raises(ValueError, match=message), jax.set_mesh(mesh_of()):
        constrain(jnp.zeros((2,) * len(axes)), *axes, rules=PARAMETER_RULES)
