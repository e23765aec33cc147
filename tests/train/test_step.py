"""The train step gives the same numbers on every mesh and for every number of microbatches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import init, mesh_of, tiny_model
from flax import linen as nn

from configs import default
from configs.errors import UserError
from data.loader import BatchFunction
from data.packing import PackedRows
from model.heads import language_model
from model.sharding import PARAMETER_RULES, parameter_shardings, spec
from tests.often import often
from train.distributed.mesh import check_batch, make_mesh
from train.distributed.placement import batch_sharding, put_batch, replicated
from train.optimizer import is_matrix, make_optimizer
from train.settings import MeshSettings, from_config
from train.step import TrainState, init_state, make_program, make_train_step, state_shardings, summed_gradients

MESHES = {
    "data 8": {"data": 8},
    "fsdp 8": {"fsdp": 8},
    "data 2 x fsdp 2 x tensor 2": {"data": 2, "fsdp": 2, "tensor": 2},
    "context 4 x fsdp 2": {"context": 4, "fsdp": 2},
    "slice 2 x fsdp 4": {"slice": 2, "fsdp": 4},
}


def settings_of(**optimizer):
    config = default.get_config()
    config.batch_size, config.sequence_length, config.num_steps = 8, 32, 10
    config.optimizer.warmup_steps = 2
    config.optimizer.update(optimizer)
    return from_config(config.to_dict())


def train(mesh, batches, name, microbatches=1, model=None):
    model = model or tiny_model()
    settings = settings_of(name=name)
    objective = language_model(model, z_loss=1e-4, chunk=8)
    program = make_program(objective, dataclasses.replace(settings, microbatches=microbatches), mesh)
    with jax.set_mesh(mesh):
        state = program.initialize(jax.random.key_data(jax.random.key(0)))
        losses = []
        for batch in batches:
            state, metrics = program.step(state, put_batch(batch, mesh))
            losses.append([float(metrics["loss"]), float(metrics["grad_norm"])])
        assert program.step._cache_size() == 1
    return np.array(losses), jax.device_get(state.params)


@pytest.fixture(scope="module")
def batches():
    from conftest import random_documents

    from data.store import store_from_documents

    rows = PackedRows(store_from_documents(random_documents(60)), 32)
    return [BatchFunction(rows, 8, 0)(t) for t in range(10)]


@pytest.fixture(scope="module", params=often(("adamw", "muon"), "adamw"))
def one_device(request, batches):
    return request.param, train(mesh_of(), batches, request.param)


@pytest.mark.integration
@pytest.mark.parametrize("mesh", often(MESHES, "data 2 x fsdp 2 x tensor 2", "context 4 x fsdp 2"))
def test_every_mesh_gives_the_losses_of_one_device(mesh, one_device, batches):
    sizes, (name, (losses, params)) = MESHES[mesh], one_device
    if name == "muon" and "tensor" not in sizes and "fsdp" not in sizes:
        pytest.skip("parameters are replicated: the AdamW case covers it")
    got, their_params = train(mesh_of(**sizes), batches, name)
    np.testing.assert_allclose(got, losses, rtol=1e-5)
    # Adam's first steps divide each gradient by its own magnitude, which amplifies rounding errors.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), their_params, params)


@pytest.mark.integration
def test_microbatches_of_unequal_weight_equal_one_batch(batches):
    objective = language_model(tiny_model())
    params = init(objective)
    batch = {k: v.copy() for k, v in batches[0].items()}
    batch["weights"][0, 3:] = 0
    batch["weights"][5, 1:] = 0
    whole, sums = jax.jit(lambda p, b: summed_gradients(objective, p, b, 1))(params, batch)
    for microbatches in (2, 8):
        cut, cut_sums = jax.jit(lambda p, b, m=microbatches: summed_gradients(objective, p, b, m))(params, batch)
        np.testing.assert_allclose(jax.tree.leaves(cut_sums), jax.tree.leaves(sums), rtol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), cut, whole)


@pytest.mark.integration
def test_step_uses_the_mean_over_its_targets(batches):
    objective, optimizer = language_model(tiny_model()), optax.sgd(0.5)
    params = init(objective)
    batch = {k: v.copy() for k, v in batches[0].items()}
    batch["weights"][0, 3:] = 0
    targets = batch["weights"].sum()

    def mean(params):
        return (objective.predict(params, batch) * batch["weights"]).sum() / targets

    loss, gradient = jax.jit(jax.value_and_grad(mean))(params)
    step = make_train_step(objective, optimizer, optax.linear_schedule(1.0, 0.0, 4))
    state = TrainState(jnp.asarray(1), params, optimizer.init(params), {})
    after, metrics = jax.jit(step)(state, batch)
    found = {name: float(value) for name, value in metrics.items()}
    expected = {"loss": loss, "grad_norm": optax.tree.norm(gradient), "learning_rate": 0.75, "targets": targets}
    expected["skipped"] = 0.0
    assert found == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-5)
    moved = jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), after.params, moved)
    assert int(after.step) == 2


def test_batch_without_targets_gives_zero_gradients(batches):
    batch = {k: v.copy() for k, v in batches[0].items()}
    batch["weights"][:] = 0
    losses, params = train(mesh_of(), [batch], "adamw")
    assert losses.tolist() == [[0.0, 0.0]]
    assert all(np.isfinite(p).all() for p in jax.tree.leaves(params))


def is_schedule(part):
    return isinstance(part, optax.ScaleByScheduleState)


def schedule_counts(state):
    """Returns the counts of the learning-rate schedules in the optimizer's state."""
    parts = jax.tree.leaves(state.opt_state, is_leaf=is_schedule)
    return [int(part.count) for part in parts if is_schedule(part)]


def without_schedules(state):
    return jax.tree.map(lambda part: 0 if is_schedule(part) else part, state, is_leaf=is_schedule)


def test_the_learning_rate_after_a_skipped_step_is_the_one_that_is_logged(batches):
    objective = language_model(tiny_model())
    schedule = optax.linear_schedule(1e-3, 0.0, 6)
    # Without momentum and clipping, an update of Adam is as large as the learning rate.
    optimizer = optax.adamw(schedule, b1=0.0, b2=0.0, eps=1e-20, weight_decay=0.0)
    step = jax.jit(make_train_step(objective, optimizer, schedule))
    params = init(objective)
    state = TrainState(jnp.asarray(0), params, optimizer.init(params), {})
    bad = {name: value.copy() for name, value in batches[0].items()}
    bad["weights"][3, 2] = np.nan
    for batch in (batches[0], bad, bad, batches[1]):
        before = state.params
        state, metrics = step(state, batch)
    largest = max(float(abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (state.params, before)), strict=True))
    assert float(metrics["learning_rate"]) == pytest.approx(0.5e-3) == pytest.approx(largest, rel=1e-2)


@pytest.mark.integration
@pytest.mark.parametrize(("name", "microbatches"), [("adamw", 1), pytest.param("muon", 2, marks=pytest.mark.slow)])
def test_skipped_step_changes_only_the_step_number_and_the_schedules_count(name, microbatches, batches):
    settings, objective, mesh = settings_of(name=name), language_model(tiny_model()), mesh_of(data=2, fsdp=2)
    with_nan = {k: v.copy() for k, v in batches[1].items()}
    with_nan["weights"][3, 2] = np.nan
    with_inf = {k: v.copy() for k, v in batches[1].items()}
    with_inf["weights"][3, 2] = np.inf
    program = make_program(objective, settings, mesh)

    def skipping(bound):
        faults = dataclasses.replace(settings.faults, max_grad_norm=bound)
        return make_program(objective, dataclasses.replace(settings, faults=faults, microbatches=microbatches), mesh)

    not_finite, too_large = skipping(bound=0.0), skipping(bound=1e-3)
    for batch, skips in ((with_nan, not_finite), (with_inf, not_finite), (batches[1], too_large)):
        with jax.set_mesh(mesh):
            state = program.initialize(jax.random.key_data(jax.random.key(0)))
            state, metrics = program.step(state, put_batch(batches[0], mesh))
            before = jax.device_get(state)
            state, skipped = skips.step(state, put_batch(batch, mesh))
            after = jax.device_get(state)
            state, last = program.step(state, put_batch(batches[1], mesh))
        assert (float(metrics["skipped"]), float(skipped["skipped"]), float(last["skipped"])) == (0, 1, 0)
        assert (int(before.step), int(after.step)) == (1, 2)
        assert schedule_counts(after) == [count + 1 for count in schedule_counts(before)] != []
        jax.tree.map(np.testing.assert_array_equal, without_schedules(after)[1:], without_schedules(before)[1:])
        moved = jax.tree.map(lambda a, b: (a != b).any(), jax.device_get(state.params), before.params)
        assert all(jax.tree.leaves(moved))


def test_moments_are_sharded_like_their_parameter():
    objective, mesh = language_model(tiny_model()), mesh_of(fsdp=4, tensor=2)
    boxed = jax.eval_shape(objective.init, jax.random.key(0))
    for name in ("adamw", "muon"):
        optimizer = make_optimizer(settings_of(name=name).optimizer, 10, boxed)
        shardings = state_shardings(objective, optimizer, mesh)
        split = [s for s in jax.tree.leaves(shardings.opt_state) if s.spec != jax.P()]
        matrices = [s for s in jax.tree.leaves(shardings.params) if s.spec != jax.P()]
        assert len(split) >= len(matrices) > 5


@pytest.mark.integration
def test_donated_state_is_aliased(batches):
    objective, mesh = language_model(tiny_model()), mesh_of()
    optimizer = optax.adamw(1e-3)
    shardings = state_shardings(objective, optimizer, mesh)
    state = jax.eval_shape(lambda: init_state(objective, optimizer, jax.random.key(0)))
    step = jax.jit(
        make_train_step(objective, optimizer, optax.constant_schedule(1.0)),
        in_shardings=(shardings, batch_sharding(mesh)), out_shardings=(shardings, replicated(mesh)), donate_argnums=0,
    )  # fmt: skip
    memory = step.lower(state, batches[0]).compile().memory_analysis()
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert memory.alias_size_in_bytes == size


@pytest.mark.integration
def test_muon_orthogonalizes_only_matrices_layer_by_layer():
    objective = language_model(tiny_model(num_layers=3))
    boxed = jax.eval_shape(objective.init, jax.random.key(0))
    params = init(objective)
    optimizer = make_optimizer(settings_of(name="muon", clip_norm=0.0, weight_decay=0.0).optimizer, 10, boxed)
    gradient = jax.tree.map(lambda p: p, params)
    updates, _ = jax.jit(optimizer.update)(gradient, optimizer.init(params), params)
    up = np.asarray(updates["backbone"]["layers"]["mlp"]["up"]["kernel"])
    query = np.asarray(updates["backbone"]["layers"]["attention"]["query"]["kernel"]).reshape(3, 32, -1)
    for matrix in (*up, *query):
        singular = np.linalg.svd(matrix, compute_uv=False)
        assert singular.min() / singular.max() > 0.4
    # Updates scale with sqrt(outputs / inputs) where there are more outputs; `up` has 48 outputs and 32 inputs.
    down = np.asarray(updates["backbone"]["layers"]["mlp"]["down"]["kernel"])
    sizes = [np.linalg.svd(matrices, compute_uv=False).mean() for matrices in (up, down)]
    assert sizes[0] / sizes[1] == pytest.approx(1.5**0.5, rel=0.05)
    scale = np.asarray(updates["backbone"]["layers"]["mlp_norm"]["scale"])
    assert np.linalg.svd(scale, compute_uv=False).min() < 0.3 * np.linalg.svd(scale, compute_uv=False).max()


@pytest.mark.integration
def test_weight_decay_applies_only_to_matrices():
    objective = language_model(tiny_model())
    boxed = jax.eval_shape(objective.init, jax.random.key(0))
    params = init(objective)
    optimizer = make_optimizer(settings_of(weight_decay=0.5, clip_norm=0.0).optimizer, 10, boxed)
    updates, _ = jax.jit(optimizer.update)(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    matrices = jax.tree.map(is_matrix, boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned))
    moved = jax.tree.map(lambda u: bool((u != 0).any()), updates)
    assert moved == matrices


@pytest.mark.integration
def test_gradients_are_clipped_to_clip_norm():
    objective = language_model(tiny_model())
    boxed = jax.eval_shape(objective.init, jax.random.key(0))
    params = init(objective)
    optimizer = make_optimizer(settings_of(clip_norm=0.5, beta1=0.9).optimizer, 10, boxed)
    for size, expected in ((40.0, 0.5), (0.25, 0.25)):
        gradient = jax.tree.map(lambda p, s=size: p * s / optax.tree.norm(params), params)
        _, state = optimizer.update(gradient, optimizer.init(params), params)
        moment = optax.tree.get(state, "mu")
        assert float(optax.tree.norm(moment)) == pytest.approx(0.1 * expected, rel=1e-5)


def test_axis_without_a_sharding_rule_is_an_error():
    with pytest.raises(KeyError, match="embedd"):
        spec(("embedd",), PARAMETER_RULES)


def test_mesh_errors_name_every_problem_and_the_nearest_valid_value():
    with pytest.raises(UserError, match=r"data=3.*8 device"):
        make_mesh(MeshSettings(1, 3, 1, 1, 1, 1))
    with pytest.raises(UserError, match="for data and fsdp"):
        make_mesh(MeshSettings(1, -1, 1, -1, 1, 1))
    settings = settings_of()
    with pytest.raises(UserError, match=r"sequence_length=32.*use 30 or 35"):
        check_batch(settings, mesh_of(context=5))
    with pytest.raises(UserError, match=r"batch_size.*=8 must be divisible by .*= 3; use 6 or 9"):
        check_batch(settings, mesh_of(data=3))
    boxed = jax.eval_shape(language_model(tiny_model()).init, jax.random.key(0))
    with pytest.raises(UserError, match=r"heads axis of 4.*mlp axis of 48"):
        parameter_shardings(boxed, mesh_of(tensor=5))
