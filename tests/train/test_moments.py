"""How moments are stored: what a plan counts, how close the losses stay, and what a restart does with them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import mesh_of, random_documents, tiny_model
from flax import linen as nn

from configs import default
from configs.errors import UserError
from data.examples import pack, text_segment
from model.adapt import adapt
from model.heads import language_model
from tests.often import often
from train.distributed.placement import put_batch
from train.job import Job
from train.loop import fit
from train.moments import store_moments
from train.planner.certificate import shrink
from train.planner.sharding import explain
from train.settings import from_config
from train.step import make_program
from train.trees import leaf_paths

MODEL = tiny_model()
MU, NU = "optimizer.first_moment", "optimizer.second_moment"
# (first moment, second moment)
FORMS = [("bfloat16", "float32"), ("float32", "factored"), ("int8", "int8"), ("int8", "factored")]


def settings_of(name="adamw", first="float32", second="float32", **changes):
    config = default.get_config()
    config.batch_size, config.sequence_length, config.num_steps = 8, 32, 8
    config.evaluation.every, config.checkpoint.every, config.logging.every = 8, 4, 1
    config.optimizer.name, config.optimizer.first_moment, config.optimizer.second_moment = name, first, second
    config.optimizer.warmup_steps, config.optimizer.learning_rate = 2, 1e-2
    config.update_from_flattened_dict(changes)
    return from_config(config.to_dict())


def rows():
    documents = random_documents(80, longest=20)
    return pack([(text_segment(tokens, [True] * len(tokens)),) for tokens in documents], 32, 0, seed=0)


def losses_and_state(settings, mesh, steps=8):
    program = make_program(language_model(MODEL), settings, mesh)
    tokens = np.random.default_rng(0).integers(3, 60, (8, 32), np.int32)
    batch = {"tokens": tokens, "targets": np.roll(tokens, -1, 1), "segment_ids": np.ones_like(tokens),
             "positions": np.tile(np.arange(32, dtype=np.int32), (8, 1)),
             "weights": np.ones(tokens.shape, np.float32)}  # fmt: skip
    losses = []
    with jax.set_mesh(mesh):
        state = program.initialize(jax.random.key_data(jax.random.key(0)))
        for _ in range(steps):
            state, metrics = program.step(state, put_batch(batch, mesh))
            losses.append(float(metrics["loss"]))
    return losses, state


def dtypes(state, part):
    """The dtypes of the arrays of a moment: "mu" is the first, "nu" the second."""
    return {str(leaf.dtype) for path, leaf in leaf_paths(state.opt_state).items() if f"/{part}/" in path}


@pytest.mark.slow
@pytest.mark.parametrize("name", ("adamw", "muon"))
def test_the_losses_of_every_form_stay_close_on_one_device_and_sharded(name):
    """On a mesh, microbatches too: the gradient that the moments are updated with is a sum over both."""
    expected, _ = losses_and_state(settings_of(name), mesh_of())
    for first, second in FORMS:
        alone, state = losses_and_state(settings_of(name, first, second), mesh_of())
        split = settings_of(name, first, second, microbatches=2)
        sharded, _ = losses_and_state(split, mesh_of(fsdp=2, tensor=2))
        assert alone != expected and {str(leaf.dtype) for leaf in jax.tree.leaves(state.params)} == {"float32"}
        np.testing.assert_allclose(alone, expected, rtol=5e-3, err_msg=f"{first} {second}")
        np.testing.assert_allclose(sharded, alone, rtol=1e-3, err_msg=f"{first} {second}")
        mu = {"bfloat16": {"bfloat16"}, "int8": {"int8", "float32"}, "float32": {"float32"}}
        nu = {"factored": {"float32"}, "int8": {"uint8", "float32"}, "float32": {"float32"}}
        assert dtypes(state, "mu") == mu[first] and dtypes(state, "nu") == nu[second]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_plan_counts_two_bytes_less_per_trained_parameter(name):
    mesh = mesh_of().abstract_mesh
    plain, small = (explain(settings_of(name, dtype), MODEL, mesh)["totals"] for dtype in ("float32", "bfloat16"))
    assert plain["state_bytes"] - small["state_bytes"] == plain["parameter_bytes"] // 2


@pytest.mark.parametrize("sizes", [{}, {"fsdp": 2, "tensor": 2}], ids=["one device", "sharded"])
def test_every_part_of_a_moment_is_sharded_like_its_parameter(sizes):
    mesh = mesh_of(**sizes)
    for second in ("int8", "factored"):
        state = make_program(language_model(MODEL), settings_of("adamw", "int8", second), mesh).state
        params = {path: leaf.sharding for path, leaf in leaf_paths(state.params).items()}
        moments = leaf_paths(state.opt_state)

        def spec(path, moments=moments):
            return next(tuple(leaf.sharding.spec) for name, leaf in moments.items() if name.endswith(path))

        up = "backbone/layers/mlp/up/kernel"
        layers, embed, mlp = params[up].spec
        assert spec(f"mu/{up}/codes") == (layers, embed, mlp) and spec(f"mu/{up}/scale") == (layers, embed)
        if second == "factored":
            assert spec(f"nu/{up}/rows") == (layers, embed) and spec(f"nu/{up}/columns") == (layers, mlp)
            table = params["backbone/embedding/table"].spec
            assert spec("nu/backbone/embedding/table/columns") == table[:1]
        # Vectors have no columns.
        norms = [name for name in moments if "norm" in name and "/nu/" in name]
        assert norms and not any(name.endswith(("/rows", "/columns")) for name in norms)


def test_a_plan_counts_a_quarter_for_8_bits_and_vectors_for_factors():
    mesh = mesh_of().abstract_mesh
    sizes = {}
    for form in [("float32", "float32"), ("int8", "int8"), ("float32", "factored")]:
        totals = explain(settings_of("adamw", *form), MODEL, mesh)["totals"]
        sizes[form[1]] = (totals["state_bytes"] - totals["parameter_bytes"]) / totals["parameter_bytes"]
    assert sizes["float32"] == pytest.approx(2, rel=1e-3)
    # Rows of this model are 8 to 48 numbers, and each has a scale of 4 bytes.
    assert 0.5 < sizes["int8"] < 0.65 and 1 < sizes["factored"] < 1.1


def train(first, second, gradients, names=("embed", "mlp")):
    """Returns (the updates of each step, the last state) of Adam with a rate of 1 for one parameter."""
    box = {"w": nn.Partitioned(jax.ShapeDtypeStruct(gradients[0].shape, jnp.float32), names)}
    optimizer = store_moments(optax.scale_by_adam(b1=0.9, b2=0.95, eps=1e-8), box, first, second)
    state = optimizer.init({"w": jnp.zeros(gradients[0].shape)})
    updates = []
    for gradient in gradients:
        update, state = optimizer.update({"w": gradient}, state)
        updates.append(np.asarray(update["w"]))
    return updates, state


def test_a_small_gradient_beside_a_large_one_does_not_make_a_step_explode():
    """With a second moment of zero, the last step would be the first moment over epsilon: 1e4 and more."""
    for small in (1e-2, 1e-3, 1e-5, 1e-9):
        row = np.array([[1.0, small]], np.float32)
        gradients = [row] * 5 + [row * np.array([1, 0], np.float32)] * 3
        exact, _ = train("float32", "float32", gradients)
        found, state = train("int8", "int8", gradients)
        assert np.asarray(state.nu["w"].codes).min() > 0
        assert np.abs(np.array(found)).max() < 1.1, small
        # Steps along the large gradient are those of float32.
        np.testing.assert_allclose(np.array(found)[:, :, 0], np.array(exact)[:, :, 0], rtol=0.03)


def test_8_bits_keep_signs_and_numbers_that_are_three_powers_of_ten_apart():
    gradient = np.array([[3.0, -1e-3, 0.0, 0.5], [-2e-9, 1e-9, 0.0, -1e-9]], np.float32)
    _, state = train("int8", "int8", [gradient])
    # Without a new gradient, a step goes where the stored moment points.
    assert (np.sign(train("int8", "int8", [gradient, 0 * gradient])[0][1]) == np.sign(gradient)).all()
    mu, nu = state.mu["w"], state.nu["w"]
    decoded = np.sign(mu.codes) * (np.asarray(mu.codes, np.float32) / 127) ** 2 * np.asarray(mu.scale)[:, None]
    np.testing.assert_allclose(decoded, 0.1 * gradient, rtol=0.3)
    np.testing.assert_allclose(np.asarray(mu.scale), 0.1 * np.abs(gradient).max(1))
    assert (np.asarray(nu.codes) == 0).tolist() == (gradient == 0).tolist()


def test_factors_are_the_moving_means_of_adafactor():
    """Adafactor, algorithm 4: the means over rows and columns move by themselves; layers are separate matrices."""
    rng = np.random.default_rng(0)
    scales = np.array([1.0, 100.0], np.float32)[:, None, None]
    gradients = [rng.standard_normal((2, 3, 4)).astype(np.float32) * scales for _ in range(3)]
    updates, state = train("float32", "factored", gradients, ("layers", "embed", "mlp"))
    rows, columns, mu = np.zeros((2, 3)), np.zeros((2, 4)), np.zeros((2, 3, 4))
    for step, g in enumerate(gradients, 1):
        before = rows[:, :, None] * columns[:, None, :] / np.maximum(rows.mean(1), 1e-30)[:, None, None]
        rows, columns = 0.95 * rows + 0.05 * (g**2).mean(2), 0.95 * columns + 0.05 * (g**2).mean(1)
        mu = 0.9 * mu + 0.1 * g
        # The step itself uses its own gradient in full.
        second = (0.95 * before + 0.05 * g**2) / (1 - 0.95**step)
        np.testing.assert_allclose(updates[step - 1], mu / (1 - 0.9**step) / np.sqrt(second), rtol=1e-4)
    np.testing.assert_allclose(state.nu["w"].rows, rows, rtol=1e-4)
    np.testing.assert_allclose(state.nu["w"].columns, columns, rtol=1e-4)
    assert train("float32", "factored", gradients[:1], ("layers", "norm", "head_dim"))[1].nu["w"].shape == (2, 3, 4)


def test_adapters_have_small_moments_too():
    changes = {"adapt.method": "lora", "adapt.rank": 2}
    for first, stored in (("bfloat16", {"bfloat16"}), ("int8", {"int8", "float32"})):
        settings = settings_of("adamw", first, "factored", **changes)
        state = make_program(adapt(language_model(MODEL), settings.adapt), settings, mesh_of()).state
        assert dtypes(state, "mu") == stored


@pytest.mark.integration
@pytest.mark.parametrize(("first", "second"), often(FORMS, ("int8", "factored")))
def test_a_restart_continues_bit_for_bit(tmp_path, first, second):
    mesh = mesh_of(fsdp=2)
    job = Job("test", language_model(MODEL), rows(), lambda params: {"loss": 1.0}, None, ("backbone", "head"), 1.0)
    constant = {"optimizer.schedule": "constant"}
    with jax.set_mesh(mesh):
        whole = fit(job, settings_of("adamw", first, second, **constant), mesh, tmp_path / "whole")
        fit(job, settings_of("adamw", first, second, num_steps=4, **constant), mesh, tmp_path / "resumed")
        resumed = fit(job, settings_of("adamw", first, second, **constant), mesh, tmp_path / "resumed")
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


def test_the_certificate_keeps_factors_and_replaces_codes():
    settings = shrink(settings_of("adamw", "int8", "factored"))
    assert (settings.optimizer.first_moment, settings.optimizer.second_moment) == ("float32", "factored")


@pytest.mark.parametrize(("name", "value"), [(MU, "float16"), (MU, "factored"), (MU, ""), (NU, "bfloat16"), (NU, "")])
def test_other_forms_are_refused(name, value):
    with pytest.raises(UserError, match=rf"config.{name}=.*float32.*int8|config.{name}=.*float32.*factored"):
        settings_of(**{name: value})
