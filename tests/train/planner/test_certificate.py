"""certify accepts correct layouts and catches three planted bugs."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from configs.errors import UserError
from configs.pretrain import llm, tiny
from train import step
from train.commands import certify
from train.distributed.mesh import layouts
from train.planner import certificate
from train.planner.certificate import TOLERANCE, layout_name, shrink, verdicts
from train.settings import from_config

TWO = {layout_name(layout): layout for layout in layouts(2)}


def verdict(config, *names):
    settings = shrink(from_config(config.to_dict()))
    return list(verdicts(settings, [TWO[name] for name in names], jax.devices()[:2]))


def config_of(**changes):
    config = tiny.get_config()
    config.update(changes)
    return config


def test_layouts_contains_every_factorization():
    assert [len(layouts(n)) for n in (2, 4, 8)] == [5, 15, 35]
    assert set(TWO) == {"slice 2", "data 2", "fsdp 2", "tensor 2", "context 2"}


@pytest.mark.parametrize(
    "name",
    [
        "gpt2",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma2_2b", "gemma3_1b", "olmo3_7b", "pythia_1b")),
    ],
)
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


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
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
