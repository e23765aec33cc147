"""Router biases follow the load of a step exactly, on every mesh, and nothing but the load moves them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import init, mesh_of, tiny_model
from mixtures import MIXTURE, batch_of
from runs import records, rootstock

from configs import default
from configs.errors import UserError
from model.adapt import adapt
from model.adaptation import Adaptation
from model.experts import balanced, route
from model.heads import language_model
from tests.often import often
from train.distributed.placement import put_batch
from train.settings import from_config
from train.step import make_program, summed_gradients
from train.trees import leaf_paths

MODEL = MIXTURE | {"router_bias": True, "router": "sigmoid"}


def settings_of(**changes):
    config = default.get_config()
    config.batch_size, config.sequence_length, config.num_steps = 8, 16, 10
    config.model.update(MIXTURE)
    config.optimizer.warmup_steps = 2
    for name, value in changes.items():
        config[name] = value
    return from_config(config.to_dict())


def optimizer_of(**changes):
    optimizer = default.optimizer()
    optimizer.update({"router_bias_rate": 0.01, "warmup_steps": 2} | changes)
    return optimizer


def bias_of(params):
    return np.asarray(params["backbone"]["layers"]["experts"]["router"]["bias"])


def train(axes=None, steps=1, microbatches=1, model=MODEL, max_grad_norm=0.0, batches=None, **optimizer):
    """Returns (the parameters before, those after, the metrics of each step)."""
    settings = settings_of(microbatches=microbatches, optimizer=optimizer_of(**optimizer))
    settings = dataclasses.replace(settings, faults=dataclasses.replace(settings.faults, max_grad_norm=max_grad_norm))
    mesh = mesh_of(**axes or {})
    program = make_program(language_model(tiny_model(**model)), settings, mesh)
    with jax.set_mesh(mesh):
        state = program.initialize(jax.random.key_data(jax.random.key(0)))
        before, found = jax.device_get(state.params), []
        for step in range(steps):
            state, metrics = program.step(state, put_batch(batches[step] if batches else batch_of(seed=step), mesh))
            found.append(jax.device_get(metrics))
    return before, jax.device_get(state.params), found


def load_of(params, batch, model=MODEL):
    objective = language_model(tiny_model(**model))
    return np.asarray(jax.jit(lambda p: objective.loss(p, batch))(params).routers.load_E)


@pytest.mark.integration
@pytest.mark.parametrize(
    "optimizer",
    often([{}, {"clip_norm": 1e-3}, {"name": "muon", "weight_decay": 1.0}], {"clip_norm": 1e-3}),
    ids=str,
)
def test_a_step_moves_each_bias_by_the_rate_whatever_the_optimizer(optimizer):
    before, after, _ = train(**optimizer)
    load = load_of(before, batch_of())
    assert load.shape == (2, 8) and (load.sum(1) == 8 * 13 * 2).all()
    expected = np.float32(0.01) * np.sign(load.mean(1, keepdims=True) - load)
    np.testing.assert_array_equal(bias_of(after), expected)
    assert np.abs(bias_of(after)).max() > 0


@pytest.mark.integration
def test_a_bias_of_zero_changes_no_gradient_and_no_norm():
    model = MODEL | {"router_bias": False}
    (_, plain, (metrics,)), (_, with_bias, (others,)) = train(model=model), train()
    assert metrics["grad_norm"] == others["grad_norm"] and metrics["loss"] == others["loss"]
    del with_bias["backbone"]["layers"]["experts"]["router"]["bias"]
    jax.tree.map(np.testing.assert_array_equal, with_bias, plain)


@pytest.mark.integration
def test_a_bias_has_no_gradient_and_no_part_in_the_weights():
    model = tiny_model(**MODEL)
    params = init(language_model(model))
    grads, _ = jax.jit(lambda p: summed_gradients(language_model(model), p, batch_of(), 2))(params)
    assert not bias_of(grads).any()
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 8)), jnp.float32)
    for router in ("softmax", "softmax_top", "sigmoid"):
        config = tiny_model(**MODEL | {"router": router})
        plain, moved = route(config, logits), route(config, logits, jnp.zeros(8).at[3].set(10.0))
        assert (moved.experts_BTK[..., 0] == 3).all()
        np.testing.assert_array_equal(moved.gates_BTK.sum(-1).round(5), 1.0)
        same = (plain.experts_BTK == moved.experts_BTK).all(-1)
        assert same.any()
        np.testing.assert_array_equal(plain.gates_BTK[same], moved.gates_BTK[same])


@pytest.mark.integration
@pytest.mark.parametrize(
    ("axes", "microbatches", "changes"),
    [
        ({"expert": 2}, 4, {"remat": "full"}),
        *often([({"expert": 4, "data": 2}, 1, {"remat": "dots", "scan_layers": False}), ({"expert": 8}, 1, {})]),
    ],
    ids=str,
)
def test_biases_are_the_same_bits_on_every_mesh(axes, microbatches, changes):
    _, expected, _ = train(steps=3)
    _, found, metrics = train(axes, 3, microbatches, MODEL | changes)
    np.testing.assert_array_equal(bias_of(found), bias_of(expected))
    assert all(m["expert_load_max"].shape == (2,) for m in metrics)


@pytest.mark.integration
def test_a_skipped_step_leaves_the_biases():
    before, after, (metrics,) = train(max_grad_norm=1e-9)
    assert metrics["skipped"] == 1.0
    np.testing.assert_array_equal(bias_of(after), bias_of(before))


@pytest.mark.integration
def test_a_batch_of_padding_leaves_the_biases():
    before, after, (metrics,) = train(batches=[batch_of(padding=16)], axes={"expert": 2})
    np.testing.assert_array_equal(bias_of(after), bias_of(before))
    assert not metrics["expert_load_max"].any() and not metrics["expert_rounds"].any()


@pytest.mark.integration
def test_biases_even_out_the_load():
    batches = [batch_of(seed=0)] * 40
    _, _, plain = train(steps=40, batches=batches, router_bias_rate=0.0, learning_rate=0.0)
    _, _, found = train(steps=40, batches=batches, router_bias_rate=0.02, learning_rate=0.0)
    first, last = (m["expert_load_max"].max() for m in (found[0], found[-1]))
    assert plain[-1]["expert_load_max"].max() == first > 1.3
    assert last < 1 + (first - 1) / 2
    assert found[-1]["expert_load_min"].min() > plain[-1]["expert_load_min"].min()


@pytest.mark.integration
@pytest.mark.parametrize("method", ["lora", "last", "head"])
def test_adapters_move_the_biases_that_they_train_alone(method):
    objective = language_model(tiny_model(**MODEL | {"num_layers": 4, "tie_embeddings": False}))
    adapted = adapt(objective, Adaptation(method, 1, 2, 4.0, ("query",)))
    params = init(adapted)
    load = np.arange(32.0).reshape(4, 8)
    trained = {group: params[group] for group in adapted.trained}
    change = jax.tree.map(lambda a, b: a - b, balanced(trained, jnp.asarray(load), 0.5), trained)
    changed = {path: leaf for path, leaf in leaf_paths(change).items() if leaf.any()}
    assert set(changed) == ({"adapter/layers/experts/router/bias"} if method == "last" else set())
    for bias in changed.values():
        np.testing.assert_allclose(bias, 0.5 * np.sign(load[-1:].mean() - load[-1:]), atol=1e-6)


FLAGS = (
    *("--config=configs/pretrain/tiny.py", "--config.tokenizer=bytes", "--config.batch_size=8"),
    *("--config.sequence_length=32", "--config.model.embed_dim=32", "--config.model.num_layers=2"),
    *("--config.model.num_heads=2", "--config.model.num_kv_heads=2", "--config.model.mlp_dim=32"),
    *("--config.model.num_experts=4", "--config.model.router_bias=True", "--config.optimizer.router_bias_rate=0.05"),
    *("--config.logging.every=1", "--config.checkpoint.every=2", "--config.optimizer.warmup_steps=1"),
    *("--config.optimizer.schedule=constant", "--config.mesh.expert=2", "--config.mesh.data=1"),
    "--config.data.validation_split=tail",
)


@pytest.fixture(scope="module")
def runs(text, tmp_path_factory):
    """A run of 4 steps on an expert axis, and one that was interrupted after 2."""
    folder = tmp_path_factory.mktemp("routers")
    for name, lengths in (("whole", (4,)), ("cut", (2, 4))):
        for length in lengths:
            where = f"--workdir={folder / name}", f"--config.data.path={text}", f"--config.num_steps={length}"
            rootstock("pretrain", *FLAGS, *where, devices=2)
    return folder


@pytest.mark.integration
def test_a_run_logs_its_routers_and_resumes_with_its_biases(runs):
    whole, cut = ([r for r in records(runs / name) if r["phase"] == "train"] for name in ("whole", "cut"))
    names = ("expert_load_max", "expert_load_min", "router_entropy", "expert_rounds", "loss", "grad_norm")
    for line, other in zip(whole, cut, strict=True):
        assert {name: line[name] for name in names} == {name: other[name] for name in names}
        assert len(line["router_entropy"]) == 2 and all(0 < x <= np.log(4) + 1e-5 for x in line["router_entropy"])
        assert all(a >= 1 >= b for a, b in zip(line["expert_load_max"], line["expert_load_min"], strict=True))
        assert all(rounds in (1, 2) for rounds in line["expert_rounds"])


@pytest.mark.slow
def test_generation_is_the_same_on_several_devices(runs):
    flags = f"--run={runs / 'whole'}", "--prompt=the cat", "--temperature=0", "--max_new_tokens=8"
    alone, spread = (rootstock("generate", *flags, devices=devices).stdout for devices in (1, 4))
    assert alone == spread and len(alone) > len("the cat")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("optimizer.router_bias_rate=-1.0", "config.optimizer.router_bias_rate=-1.0 must be at least 0"),
        ("model.router_bias=1", "config.model.router_bias"),
    ],
)
def test_invalid_fields_are_one_line(flag, message):
    config = default.get_config()
    name, _, value = flag.partition("=")
    section, _, field = name.partition(".")
    with config.ignore_type():
        config[section][field] = float(value) if "." in value else int(value)
    with pytest.raises(UserError, match=message):
        from_config(config.to_dict())
