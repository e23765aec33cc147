"""A first moment in bfloat16: what is stored, what a plan counts, what training and a restart do with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mesh_of, random_documents, tiny_model

from configs import default
from configs.errors import UserError
from data.examples import pack, text_segment
from model.adapt import adapt
from model.heads import language_model
from train.distributed.placement import put_batch
from train.job import Job
from train.loop import fit
from train.planner.sharding import explain
from train.settings import from_config
from train.step import make_program
from train.trees import leaf_paths

MODEL = tiny_model()


def settings_of(name="adamw", first_moment="bfloat16", **changes):
    config = default.get_config()
    config.batch_size, config.sequence_length, config.num_steps = 8, 32, 8
    config.evaluation.every, config.checkpoint.every, config.logging.every = 8, 4, 1
    config.optimizer.name, config.optimizer.first_moment = name, first_moment
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
    return {leaf.dtype for path, leaf in leaf_paths(state.opt_state).items() if f"/{part}/" in path}


@pytest.mark.integration
@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("sizes", [{}, {"fsdp": 2, "tensor": 2}], ids=["one device", "sharded"])
def test_only_the_first_moment_is_in_bfloat16_and_the_losses_stay_close(name, sizes):
    expected, plain = losses_and_state(settings_of(name, "float32"), mesh_of(**sizes))
    found, state = losses_and_state(settings_of(name), mesh_of(**sizes))
    assert dtypes(plain, "mu") == {jnp.dtype("float32")} and dtypes(state, "mu") == {jnp.dtype("bfloat16")}
    assert dtypes(state, "nu") == {jnp.dtype("float32")} == {leaf.dtype for leaf in jax.tree.leaves(state.params)}
    assert found != expected
    np.testing.assert_allclose(found, expected, rtol=5e-3)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_plan_counts_two_bytes_less_per_trained_parameter(name):
    mesh = mesh_of().abstract_mesh
    plain, small = (explain(settings_of(name, dtype), MODEL, mesh)["totals"] for dtype in ("float32", "bfloat16"))
    assert plain["state_bytes"] - small["state_bytes"] == plain["parameter_bytes"] // 2


def test_adapters_have_small_moments_too():
    settings = settings_of(**{"adapt.method": "lora", "adapt.rank": 2})
    state = make_program(adapt(language_model(MODEL), settings.adapt), settings, mesh_of()).state
    assert dtypes(state, "mu") == {jnp.dtype("bfloat16")}


@pytest.mark.integration
def test_a_restart_continues_bit_for_bit(tmp_path):
    mesh = mesh_of(fsdp=2)
    job = Job("test", language_model(MODEL), rows(), lambda params: {"loss": 1.0}, None, ("backbone", "head"), 1.0)
    constant = {"optimizer.schedule": "constant"}
    with jax.set_mesh(mesh):
        whole = fit(job, settings_of(**constant), mesh, tmp_path / "whole")
        fit(job, settings_of(num_steps=4, **constant), mesh, tmp_path / "resumed")
        resumed = fit(job, settings_of(**constant), mesh, tmp_path / "resumed")
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


@pytest.mark.parametrize("value", ["float16", "int8", ""])
def test_other_dtypes_are_refused(value):
    with pytest.raises(UserError, match=r"config.optimizer.first_moment=.*float32.*bfloat16"):
        settings_of(first_moment=value)
