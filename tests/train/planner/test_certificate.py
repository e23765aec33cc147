"""certify accepts correct layouts and catches three planted bugs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from configs.errors import UserError
from configs.pretrain import llm, tiny
from model import dispatch, ring
from tests.often import often
from train import step
from train.commands import certify
from train.distributed.mesh import layouts
from train.planner import certificate
from train.planner.certificate import GRADIENT_TOLERANCE, TOLERANCE, layout_name, shrink, verdicts
from train.settings import from_config

TWO = {layout_name(layout): layout for layout in layouts(2, experts=True)}


def verdict(config, *names):
    settings = shrink(from_config(config.to_dict()))
    return list(verdicts(settings, [TWO[name] for name in names], jax.devices()[:2]))


def config_of(**changes):
    config = tiny.get_config()
    config.update(changes)
    return config


def test_layouts_contains_every_factorization():
    assert [len(layouts(n)) for n in (2, 4, 8)] == [5, 15, 35]
    assert [len(layouts(n, experts=True)) for n in (2, 4, 8)] == [6, 21, 56]
    assert set(TWO) == {"slice 2", "data 2", "expert 2", "fsdp 2", "tensor 2", "context 2"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ("gpt2", "gemma2_2b", "gemma3_1b", "olmo3_7b", "pythia_1b"))
def test_published_architectures_pass_and_keep_their_options(name):
    config = llm.get_config(name)
    shrunk = shrink(from_config(config.to_dict())).model
    sizes = {key for key, value in config.model.items() if shrunk[key] != value}
    assert sizes <= {
        "vocab_size", "embed_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim", "context_length",
        "rope_original_context", "rope_fraction", "query_scale", "sliding_window", "compute_dtype", "attention",
    }  # fmt: skip
    for found in verdict(config, "fsdp 2", "tensor 2", "context 2"):
        assert not found.mismatch and max(found.loss, found.grad_norm, found.params) <= TOLERANCE


@pytest.mark.integration
def test_certificate_catches_a_mean_of_means(monkeypatch):
    summed = step.summed_gradients

    def mean_of_means(objective, params, batch, microbatches, frozen):
        if microbatches == 1:
            return summed(objective, params, batch, 1)
        parts = [jax.tree.map(lambda x, i=i: x[i::2], dict(batch)) for i in range(2)]
        (grads_a, a), (grads_b, b) = (summed(objective, params, part, 1) for part in parts)
        weight = a.weight + b.weight
        grads = jax.tree.map(lambda x, y: weight * (x / a.weight + y / b.weight) / 2, grads_a, grads_b)
        return grads, jax.tree.map(jnp.add, a, b)

    monkeypatch.setattr(step, "summed_gradients", mean_of_means)
    (found,) = verdict(config_of(microbatches=2), "data 2")
    assert "the gradient's norm" in found.mismatch and found.leaf.startswith("backbone/")


@pytest.mark.integration
def test_certificate_catches_a_diverging_replica(monkeypatch):
    objective_of = certificate.objective_with_noise

    def with_stray_replica(settings):
        objective = objective_of(settings)

        def init(rng):
            boxed = objective.init(rng)
            mesh = jax.sharding.get_abstract_mesh()
            if not mesh.empty and mesh.shape["data"] == 2:
                scale = boxed["backbone"]["final_norm"]["scale"]
                stray = jax.shard_map(
                    lambda x: x * (1 + 1e-3 * jax.lax.axis_index("data")),
                    in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False,
                )  # fmt: skip
                boxed["backbone"]["final_norm"]["scale"] = scale.replace_boxed(stray(scale.value))
            return boxed

        return objective._replace(init=init)

    monkeypatch.setattr(certificate, "objective_with_noise", with_stray_replica)
    (found,) = verdict(config_of(), "data 2")
    assert "before the first step" in found.mismatch and found.leaf == "backbone/final_norm/scale"


@pytest.mark.parametrize("optimizer", often(("adamw", "muon"), "adamw"))
def test_certificate_catches_scaled_gradient(optimizer, monkeypatch):
    summed = step.summed_gradients

    def summed_twice(objective, params, batch, microbatches, frozen):
        grads, sums = summed(objective, params, batch, microbatches)
        grads["backbone"]["layers"]["attention"]["key"]["kernel"] *= jax.sharding.get_abstract_mesh().size
        return grads, sums

    monkeypatch.setattr(step, "summed_gradients", summed_twice)
    config = config_of()
    config.optimizer.name = optimizer
    (found,) = verdict(config, "fsdp 2")
    leaf = "backbone/layers/attention/key/kernel"
    assert "a parameter" in found.mismatch and found.leaf == leaf
    with pytest.raises(UserError, match=rf"1 of 1 layouts differ .* first: fsdp 2: .* worst leaf: {leaf}"):
        certify.publish([found], as_json=False)


@pytest.mark.slow
@pytest.mark.parametrize("way", ("ring", "all_gather"))
def test_certificate_trains_a_context_axis_both_ways(way, monkeypatch):
    """A gradient of the keys that is halved on its way back, in one of the two ways."""
    name = {"ring": "_around_backward", "all_gather": "_gathered_backward"}[way]
    original = getattr(ring, name)

    def halved(*arguments):
        dq, gradients = original(*arguments)
        return dq, jax.tree.map(lambda x: x / 2, gradients)

    monkeypatch.setattr(ring, name, halved)
    (found,) = verdict(config_of(), "context 2")
    assert "gradient" in found.mismatch


def mixture(**changes):
    config = config_of()
    config.model.update({"num_experts": 4, "experts_per_token": 2, "router_bias": True} | changes)
    return config


@pytest.mark.integration
def test_experts_are_certified_on_their_axis_with_uneven_batches():
    for found in verdict(mixture(dense_layers=1, shared_expert_dim=8), "expert 2", "data 2"):
        assert not found.mismatch and max(found.loss, found.grad_norm, found.params) <= TOLERANCE
        assert found.gradient <= GRADIENT_TOLERANCE


@pytest.mark.integration
def test_uneven_batches_leave_experts_empty_load_few_and_are_padding():
    settings = shrink(from_config(mixture().to_dict()))
    batches = certificate.make_batches(settings)
    assert len(batches) == settings.num_steps == 6
    objective = certificate.objective_with_noise(settings)
    params = nn.meta.unbox(objective.init(jax.random.key(0)))
    loss = jax.jit(objective.loss)
    loads = [np.asarray(loss(params, batch).routers.load_E) for batch in batches]
    experts, chosen = settings.model["num_experts"], settings.model["experts_per_token"]
    assert (loads[0].max(1) < loads[0].sum(1) / chosen).all()
    assert ((loads[3] > 0).sum(1) == chosen).all() and (loads[3].max(1) == batches[3]["tokens"].size).all()
    assert (loads[4].sum(1) == 2 * chosen).all() and 2 * chosen < experts
    assert not loads[5].any()


@pytest.mark.integration
@pytest.mark.parametrize("bug", often(["doubled", "halved on the way back"], "doubled"))
def test_certificate_catches_wrong_gradients_of_experts(bug, monkeypatch):
    if bug == "doubled":
        summed = step.summed_gradients

        def wrong(objective, params, batch, microbatches, frozen):
            grads, sums = summed(objective, params, batch, microbatches)
            kernel = grads["backbone"]["layers"]["experts"]["up"]
            kernel["kernel"] *= jax.sharding.get_abstract_mesh().shape["expert"]
            return grads, sums

        monkeypatch.setattr(step, "summed_gradients", wrong)
    else:
        gather = dispatch.GATHER
        monkeypatch.setattr(dispatch, "GATHER", gather._replace(bring_back=lambda y: gather.bring_back(y) / 2))
    (found,) = verdict(mixture(), "expert 2")
    assert "gradient" in found.mismatch
    if bug == "doubled":
        assert found.leaf == "backbone/layers/experts/up/kernel"
