"""Fine-tuning methods: the state holds only what trains, meshes and restarts change nothing, the best is kept."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import init, mesh_of, tiny_model
from flax import linen as nn

from configs import default
from configs.errors import UserError
from data.examples import labeled_segment, pack
from model.adapt import adapt
from model.heads import classifier, language_model
from model.sharding import parameter_shardings
from tests.often import often
from train.checkpoint.manager import BEST_DIR, open_manager
from train.distributed.placement import put_batch
from train.job import Job
from train.loop import fit
from train.optimizer import make_optimizer
from train.settings import from_config
from train.step import make_program, split, summed_gradients

# Every matrix has a multiple of 64 inputs, as a base in NF4 needs.
MODEL = tiny_model(embed_dim=64, head_dim=16, mlp_dim=64)
METHODS = ("head", "last", "lora")
QLORA = {"adapt.method": "lora", "adapt.base_quantization": "nf4"}


def settings_of(**changes):
    config = default.get_config()
    config.batch_size, config.sequence_length, config.num_steps = 8, 32, 12
    config.adapt.rank, config.adapt.last_layers = 2, 1
    config.optimizer.warmup_steps = 2
    config.optimizer.learning_rate = 1e-2
    config.evaluation.every = 2
    config.checkpoint.every = 4
    config.logging.every = 1
    config.update_from_flattened_dict(changes)
    return from_config(config.to_dict())


def rows_of(count=64, seed=0):
    rng = np.random.default_rng(seed)
    examples = []
    for _ in range(count):
        label = int(rng.integers(3))
        tokens = [1, *rng.integers(10, 60, 6).tolist(), 4 + label, 2]
        examples.append((labeled_segment(tokens, {8: label}, {8: 1.0}, np.int32),))
    return pack(examples, 32, 0, seed)


def objective_of(settings):
    return adapt(classifier(MODEL, 3, "last"), settings.adapt)


FOUNDATION = init(language_model(MODEL))


def _load_foundation(groups):
    """A copy of the foundation on the current mesh; the step donates the groups that train."""
    boxed = jax.eval_shape(language_model(MODEL).init, jax.random.key(0))
    shardings = parameter_shardings(boxed, jax.sharding.get_mesh())
    return {g: jax.tree.map(lambda x, s: jax.device_put(np.asarray(x), s), FOUNDATION[g], shardings[g]) for g in groups}


def job_of(settings, evaluate=lambda params: {"loss": 1.0}):
    return Job(
        title="test",
        objective=objective_of(settings),
        rows=rows_of(),
        evaluate=evaluate,
        load_initial=_load_foundation,
        initial_groups=("backbone",),
        flops_per_step=1.0,
    )


def losses(workdir):
    records = map(json.loads, (Path(workdir) / "metrics.jsonl").read_text().splitlines())
    return {r["step"]: r["loss"] for r in records if r["phase"] == "train"}


@pytest.mark.integration
@pytest.mark.parametrize("method", often(METHODS, "lora"))
def test_state_holds_only_trained_parameters_and_frozen_ones_do_not_change(method, tmp_path):
    settings = settings_of(**{"adapt.method": method})
    job, mesh = job_of(settings), mesh_of()
    with jax.set_mesh(mesh):
        params = fit(job, settings, mesh, tmp_path)
    for a, b in zip(jax.tree.leaves(params["backbone"]), jax.tree.leaves(FOUNDATION["backbone"]), strict=True):
        np.testing.assert_array_equal(a, b)
    state = make_program(job.objective, settings, mesh).state
    assert set(state.params) == {*job.objective.trained} and set(state.frozen) == {"backbone"}
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(state.params))
    moments = sorted(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.size > 1)
    assert moments == sorted(2 * sizes)
    leaves = json.loads(next((tmp_path / "checkpoints").glob("12/manifest/*")).read_text())["leaves"]
    assert leaves and not any(path.startswith("params/backbone") for path in leaves)
    trained = losses(tmp_path)
    assert trained[12] < trained[1]


@pytest.mark.integration
def test_a_quantized_base_does_not_change_and_is_not_saved(tmp_path):
    settings, mesh = settings_of(**QLORA), mesh_of()
    job = job_of(settings)
    with jax.set_mesh(mesh):
        params = fit(job, settings, mesh, tmp_path)
    expected = job.objective.cast({"backbone": FOUNDATION["backbone"]})["backbone"]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(expected["layers"])} >= {"uint8", "bfloat16"}
    for a, b in zip(jax.tree.leaves(params["backbone"]), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    leaves = json.loads(next((tmp_path / "checkpoints").glob("12/manifest/*")).read_text())["leaves"]
    assert leaves and not any("codes" in path or "scales" in path for path in leaves)
    trained = losses(tmp_path)
    assert trained[12] < trained[1]


@pytest.mark.integration
def test_frozen_kernels_have_no_gradient_computation():
    settings = settings_of(**{"adapt.method": "lora"})
    objective = objective_of(settings)
    trained, frozen = split(objective, init(objective))
    batch = rows_of().rows(np.arange(8))
    text = str(jax.make_jaxpr(lambda t, b: summed_gradients(objective, t, b, 1, frozen)[0])(trained, batch))
    full = dataclasses.replace(settings, adapt=dataclasses.replace(settings.adapt, method="full"))
    plain = objective_of(full)
    whole = str(jax.make_jaxpr(lambda t, b: summed_gradients(plain, t, b, 1)[0])(init(plain), batch))
    # The gradient of the kernel of a query (64, 4, 16) is a product of 64 inputs and 64 outputs.
    assert whole.count("f32[64,64] = dot_general") > 0 == text.count("f32[64,64] = dot_general")


@pytest.mark.parametrize("method", often(("full", "lora", "head", "last"), "lora"))
def test_mesh_and_single_device_losses_agree(method, tmp_path):
    settings = settings_of(**{"adapt.method": method, "num_steps": 6})
    found = []
    for number, axes in enumerate(({}, {"fsdp": 2, "tensor": 2})):
        mesh = mesh_of(**axes)
        with jax.set_mesh(mesh):
            fit(job_of(settings), settings, mesh, tmp_path / str(number))
        found.append(losses(tmp_path / str(number)))
    assert found[0].keys() == found[1].keys()
    np.testing.assert_allclose(list(found[0].values()), list(found[1].values()), rtol=1e-5, atol=1e-6)


@pytest.mark.integration
@pytest.mark.parametrize("changes", often([*({"adapt.method": method} for method in METHODS), QLORA], QLORA))
def test_interrupted_run_ends_bitwise_equal(changes, tmp_path):
    settings = settings_of(**changes)
    mesh, whole, broken = mesh_of(), tmp_path / "whole", tmp_path / "broken"
    with jax.set_mesh(mesh):
        expected = fit(job_of(settings), settings, mesh, whole)

        def die(params):
            if len(losses(broken)) >= 6:
                raise KeyboardInterrupt
            return {"loss": 1.0}

        with pytest.raises(KeyboardInterrupt):
            fit(job_of(settings, die), settings, mesh, broken)
        found = fit(job_of(settings), settings, mesh, broken)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(a, b)
    assert losses(whole) == losses(broken)


def counting(values):
    """An evaluation that reports these accuracies and collects the parameters it was called with."""
    seen = []

    def evaluate(params):
        seen.append(jax.tree.map(np.asarray, params))
        return {"loss": 1.0, "accuracy": values[len(seen) - 1]}

    return evaluate, seen


@pytest.mark.integration
def test_early_stopping_returns_the_best_parameters_and_does_not_resume(tmp_path):
    settings = settings_of(
        **{"evaluation.metric": "accuracy", "evaluation.patience": 2, "checkpoint.best": True, "num_steps": 40}
    )
    evaluate, seen = counting([0.1, 0.5, 0.4, 0.5, 0.9])
    mesh = mesh_of()
    with jax.set_mesh(mesh):
        params = fit(job_of(settings, evaluate), settings, mesh, tmp_path)
        assert len(seen) == 4 and max(losses(tmp_path)) == 8
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(seen[1]), strict=True):
            np.testing.assert_array_equal(a, b)
        again = fit(job_of(settings, evaluate), settings, mesh, tmp_path)
    assert len(seen) == 4
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.integration
def test_early_stopping_resumes_after_a_kill(tmp_path):
    settings = settings_of(**{"evaluation.metric": "accuracy", "evaluation.patience": 3, "checkpoint.best": True})
    mesh = mesh_of()
    values = [0.3, 0.6, 0.2, 0.2, 0.2, 0.2]

    def killed(params):
        if len(losses(tmp_path)) >= 6:
            raise KeyboardInterrupt
        return {"loss": 1.0, "accuracy": values[len(losses(tmp_path)) // 2 - 1]}

    with jax.set_mesh(mesh):
        with pytest.raises(KeyboardInterrupt):
            fit(job_of(settings, killed), settings, mesh, tmp_path)
        # The checkpoint of step 4 contains two evaluations; three more without improvement end the run at step 10.
        evaluate, seen = counting(values[2:])
        fit(job_of(settings, evaluate), settings, mesh, tmp_path)
    assert len(seen) == 3 and max(losses(tmp_path)) == 10
    with open_manager(tmp_path, 1, BEST_DIR) as manager:
        assert manager.all_steps() == [4]


@pytest.mark.integration
def test_best_parameters_of_steps_that_a_resumed_run_repeats_otherwise_are_forgotten(tmp_path):
    """Killed after the evaluation of step 6, the run resumes at step 4 and evaluates other steps."""
    settings = settings_of(**{"evaluation.metric": "accuracy", "checkpoint.best": True})
    mesh = mesh_of()

    def killed(params):
        if len(losses(tmp_path)) >= 7:
            raise KeyboardInterrupt
        return {"loss": 1.0, "accuracy": len(losses(tmp_path)) / 10}

    with jax.set_mesh(mesh):
        with pytest.raises(KeyboardInterrupt):
            fit(job_of(settings, killed), settings, mesh, tmp_path)
        later = dataclasses.replace(settings, evaluation=dataclasses.replace(settings.evaluation, every=5))
        evaluate, seen = counting([0.5, 0.1, 0.1])
        params = fit(job_of(later, evaluate), later, mesh, tmp_path)
    with open_manager(tmp_path, 1, BEST_DIR) as manager:
        assert manager.all_steps() == [5]
    jax.tree.map(np.testing.assert_array_equal, params, seen[0])


@pytest.mark.integration
def test_unknown_metric_error_lists_the_reported_ones(tmp_path):
    settings = settings_of(**{"evaluation.metric": "acuracy"})
    mesh = mesh_of()
    with (
        jax.set_mesh(mesh),
        pytest.raises(UserError, match="'acuracy' is not computed; expected one of: loss, accuracy"),
    ):
        fit(job_of(settings, counting([0.1])[0]), settings, mesh, tmp_path)


@pytest.mark.integration
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_layer_decay_scales_updates_of_lower_layers(name):
    boxed = jax.eval_shape(classifier(MODEL, 3, "last").init, jax.random.key(0))
    params = init(classifier(MODEL, 3, "last"))
    grads = jax.tree.map(lambda x: np.random.default_rng(0).standard_normal(x.shape).astype(np.float32), params)
    updates = []
    for decay in (1.0, 0.5):
        settings = settings_of(**{"optimizer.name": name, "optimizer.layer_decay": decay}).optimizer
        optimizer = make_optimizer(settings, 10, boxed)
        updates.append(jax.jit(optimizer.update)(grads, optimizer.init(params), params)[0])
    ratio = jax.tree.map(lambda a, b: np.asarray(b) / np.where(np.asarray(a) == 0, 1, np.asarray(a)), *updates)
    for leaf in jax.tree.leaves(ratio["backbone"]["layers"]):
        np.testing.assert_allclose(leaf[0], 0.5, rtol=1e-5)
        np.testing.assert_allclose(leaf[1], 1.0, rtol=1e-5)
    for leaf in jax.tree.leaves(ratio["backbone"]["embedding"]):
        np.testing.assert_allclose(leaf, 0.25, rtol=1e-5)
    for leaf in jax.tree.leaves((ratio["head"], ratio["backbone"]["final_norm"])):
        np.testing.assert_allclose(leaf, 1.0, rtol=1e-5)


@pytest.mark.integration
def test_frozen_parameters_are_stored_in_compute_dtype():
    objective = adapt(
        classifier(tiny_model(compute_dtype="bfloat16"), 3, "last"), settings_of(**{"adapt.method": "lora"}).adapt
    )
    trained, frozen = split(objective, nn.meta.unbox(objective.init(jax.random.key(0))))
    kernel = frozen["backbone"]["layers"]["mlp"]["up"]["kernel"]
    assert kernel.dtype == jax.numpy.bfloat16
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(trained))
    batch = {k: v for k, v in put_batch(rows_of().rows(np.arange(8)), mesh_of()).items()}
    grads, sums = jax.jit(lambda t, f, b: summed_gradients(objective, t, b, 1, f))(trained, frozen, batch)
    assert np.isfinite(sums.nll) and jax.tree.structure(grads) == jax.tree.structure(trained)
