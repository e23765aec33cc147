"""Mixtures of experts equal a dense reference in loss and every gradient, however they are run."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import init, mesh_of, tiny_model
from mixtures import LOADS, MIXTURE, assert_close, batch_of, dense, gradient_of, logits_of

from configs.errors import UserError
from model.adapt import adapt
from model.adaptation import Adaptation
from model.cache import CacheSize
from model.dispatch import dispatch
from model.experts import route
from model.grouped import block_size, make_groups
from model.heads import RouterLosses, language_model
from model.sharding import parameter_shardings
from model.transformer import decode_layers, forward, prefill_layers, unstacked
from tests.often import often
from train.step import summed_gradients

VARIANTS = {
    "softmax": {},
    "softmax_top": {"router": "softmax_top", "router_renormalize": False, "mlp": "gelu"},
    "sigmoid_shared": {"router": "sigmoid", "shared_expert_dim": 16, "experts_per_token": 3, "parallel": "one_norm"},
    "every_second": {"num_layers": 4, "expert_every": 2, "router_renormalize": False},
    "every_second_after_the_first": {"num_layers": 3, "dense_layers": 1, "expert_every": 2, "sliding_window": (5, 0)},
}
AXES = ({"data": 8}, {"fsdp": 4, "tensor": 2}, {"data": 2, "context": 2, "tensor": 2})


@functools.cache
def gradient_of_dispatch(platform):
    """Returns the compiled gradient of a loss of `dispatch` as it runs on a platform, or of `dense`."""
    config = tiny_model(**MIXTURE)
    function = dense if platform == "dense" else dispatch

    def loss(x, logits, kernels, real):
        experts, gates, _ = route(config, logits)
        experts = jnp.where(real[..., None], experts, 0 if platform == "dense" else config.num_experts)
        gates = jnp.where(real[..., None], gates, 0)
        return (function(config, x, experts, gates, kernels)[0] ** 2).sum()

    def traced(*args):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("model.grouped.platform", lambda: platform)
            return jax.value_and_grad(loss, argnums=(0, 1, 2))(*args)

    return jax.jit(traced)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("load", LOADS)
def test_dispatch_equals_a_dense_reference_in_every_gradient(load, platform):
    config, rng = tiny_model(**MIXTURE), np.random.default_rng(0)
    E, D, F = config.num_experts, config.embed_dim, config.expert_width
    x = jnp.asarray(rng.standard_normal((4, 32, D)), jnp.float32)
    shapes = {"gate": (E, D, F), "up": (E, D, F), "down": (E, F, D)}
    kernels = {name: jnp.asarray(0.3 * rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}
    logits = logits_of(load, rng, (4, 32, E))
    real = jnp.zeros((4, 32), bool) if load == "padding" else jnp.asarray(rng.random((4, 32)) > 0.2)
    found, expected = (gradient_of_dispatch(name)(x, logits, kernels, real) for name in (platform, "dense"))
    assert_close(found, expected)


@pytest.mark.parametrize("load", [[5, 0, 9, 2], [0, 0, 0, 16], [0, 0, 0, 0], [1, 1, 1, 1]])
@pytest.mark.parametrize("block", [1, 2, 8])
def test_groups_hold_each_assignment_once(load, block):
    groups = make_groups(jnp.array(load), block, 16)
    assert [int(s) for s in groups.sizes_E] == [-(-n // block) * block for n in load]
    assert sorted(np.asarray(groups.source_R)[np.asarray(groups.real_R)]) == list(range(sum(load)))


@pytest.fixture(scope="module", params=often(VARIANTS, "sigmoid_shared", "every_second"))
def case(request):
    model = tiny_model(**MIXTURE | VARIANTS[request.param])
    return model, init(language_model(model))


@pytest.mark.integration
def test_scan_remat_and_microbatches_equal_the_dense_reference(case, monkeypatch):
    model, params = case
    batch = batch_of()
    with monkeypatch.context() as patch:
        plain = dataclasses.replace(model, scan_layers=False, remat="none")
        expected = gradient_of(plain, params, batch, dispatch_by=dense, monkeypatch=patch)
    loads = np.asarray(expected[1].routers.load_E)
    assert loads.shape == (model.expert_layers, model.num_experts)
    assert (loads.sum(1) == 8 * 13 * model.experts_per_token).all()
    found = gradient_of(dataclasses.replace(model, remat="full"), params, batch, microbatches=4)
    assert_close(found, expected)
    np.testing.assert_array_equal(found[1].routers.load_E, loads)


@pytest.mark.integration
@pytest.mark.parametrize("axes", often(AXES, AXES[-1]), ids=str)
def test_every_mesh_gives_the_gradient_and_the_loads_of_one_device(axes):
    model = tiny_model(**MIXTURE | {"expert_every": 2, "shared_expert_dim": 16})
    objective = language_model(model, router=RouterLosses(z=0.01, balance=0.02))
    params, batch = init(objective), batch_of()
    expected = gradient_of(model, params, batch, 2)
    mesh = mesh_of(**axes)
    boxed = jax.eval_shape(objective.init, jax.random.key(0))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, parameter_shardings(boxed, mesh))
        grads, sums = jax.jit(lambda p, b: summed_gradients(objective, p, b, 1))(placed, batch)
    found = grads, sums._replace(routers=sums.routers._replace(rounds_P=None))
    assert_close(found, expected)
    np.testing.assert_array_equal(found[1].routers.load_E, expected[1].routers.load_E)


def test_renormalized_gates_sum_to_one_and_others_do_not():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 8)), jnp.float32)
    for router in ("softmax", "sigmoid", "softmax_top"):
        gates = route(tiny_model(**MIXTURE | {"router": router}), logits)[1]
        np.testing.assert_allclose(gates.sum(-1), 1.0, rtol=1e-6)
    plain = route(tiny_model(**MIXTURE | {"router_renormalize": False}), logits)[1]
    assert plain.sum(-1).max() < 0.95


@pytest.mark.integration
def test_an_even_load_has_a_balance_loss_of_one_per_token():
    model = tiny_model(**MIXTURE)
    params = init(language_model(model))
    zeros = jax.tree_util.tree_map_with_path(
        lambda path, x: x * 0 if "router" in jax.tree_util.keystr(path) else x, params
    )
    routers = gradient_of(model, zeros, batch_of())[1].routers
    np.testing.assert_allclose(routers.balance, routers.tokens, rtol=1e-6)
    np.testing.assert_allclose(routers.entropy, routers.tokens * np.log(8), rtol=1e-6)


@pytest.mark.parametrize("changes", [
    {"experts_per_token": 9}, {"dense_layers": 2}, {"expert_every": 3}, {"mlp_bias": True}, {"num_experts": -1},
    {"router": "tanh"},
])  # fmt: skip
def test_an_invalid_mixture_is_a_one_line_error(changes):
    with pytest.raises(UserError, match=next(iter(changes))) as error:
        tiny_model(**MIXTURE | changes)
    assert "\n" not in str(error.value)


def test_block_size_is_near_the_load_of_an_expert():
    assert [block_size(a, 8) for a in (1, 8, 40, 4096)] == [1, 1, 4, 128]


def test_lora_trains_attention_beside_experts_and_refuses_their_matrices():
    objective = language_model(tiny_model(**MIXTURE | {"expert_every": 2}))
    lora = Adaptation("lora", 1, 2, 4.0, ("query", "value"))
    params = jax.eval_shape(adapt(objective, lora).init, jax.random.key(0))
    assert set(params["adapter"]["layers"]) == {"attention"}
    for target in ("gate", "up", "down"):
        with pytest.raises(
            UserError, match=f"{target!r}, a matrix of the model's experts.*expected some of key, output"
        ):
            adapt(objective, dataclasses.replace(lora, targets=(target,)))
    with pytest.raises(UserError, match="method='last' is not supported where only some layers have experts"):
        adapt(objective, dataclasses.replace(lora, method="last"))


@pytest.mark.integration
@pytest.mark.parametrize("variant", often(["every_second_after_the_first", "sigmoid_shared"], "sigmoid_shared"))
def test_cached_logits_equal_uncached_logits(variant):
    model = tiny_model(**MIXTURE | VARIANTS[variant])
    params = init(language_model(model))
    rng = np.random.default_rng(0)
    prompts, padding = rng.integers(3, 64, (2, 9)), np.array([0, 3])
    following = rng.integers(3, 64, (2, 4))
    _, cache = prefill_layers(model, params["backbone"], jnp.asarray(prompts), jnp.asarray(padding), CacheSize(13, 4))
    x = decode_layers(model, params["backbone"], jnp.asarray(following), cache)[0]
    tokens = np.concatenate([prompts, following], 1)
    positions = np.arange(13) - padding[:, None]
    batch = {"tokens": tokens, "segment_ids": (positions >= 0) * 1, "positions": np.maximum(positions, 0)}
    whole = forward(model, params["backbone"], jax.tree.map(jnp.asarray, batch))
    np.testing.assert_allclose(x, whole[:, 9:], atol=2e-5)
    layers = unstacked(model, params["backbone"])
    np.testing.assert_allclose(forward(model, layers, jax.tree.map(jnp.asarray, batch)), whole, atol=2e-5)


def test_layers_are_initialized_where_ragged_dot_is_native(monkeypatch):
    monkeypatch.setattr("model.grouped.platform", lambda: "tpu")
    boxed = jax.eval_shape(language_model(tiny_model(**MIXTURE)).init, jax.random.key(0))
    experts = boxed["backbone"]["layers"]["experts"]
    assert experts["up"]["kernel"].names == ("layers", "experts", "expert_embed", "mlp")
    assert experts["down"]["kernel"].value.shape == (2, 8, 24, 32)
    assert set(experts) == {"router", "gate", "up", "down"}


def test_memory_beyond_the_groups_reaches_no_output_and_no_gradient(monkeypatch):
    product = jax.lax.ragged_dot

    def uninitialized(x, w, sizes):
        y = product(x, w, sizes)
        return jnp.where(jnp.arange(len(y))[:, None] < sizes.sum(), y, jnp.nan)

    monkeypatch.setattr("model.grouped.platform", lambda: "tpu")
    monkeypatch.setattr("jax.lax.ragged_dot", uninitialized)
    model = tiny_model(**MIXTURE)
    rng = np.random.default_rng(0)
    x, gates = rng.normal(size=(6, 32)).astype(np.float32), rng.uniform(size=(6, 2)).astype(np.float32)
    kernels = {name: rng.normal(size=(8, 32, 24)).astype(np.float32) for name in ("gate", "up")}
    kernels["down"] = kernels["up"].swapaxes(1, 2)
    experts = np.full((1, 6, 2), 8)
    experts[0, :4] = rng.integers(0, 8, (4, 2))

    def total(x, gates, kernels):
        return dispatch(model, x[None], jnp.asarray(experts), gates[None], kernels)[0].sum()

    value, gradients = jax.value_and_grad(total, (0, 1, 2))(x, gates, kernels)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, gradients)))
