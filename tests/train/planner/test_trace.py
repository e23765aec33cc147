"""FLOPs of the jaxpr equal the closed formula for every architecture, scan and remat policy."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from configs.pretrain import llm, tiny
from model.adaptation import Adaptation
from model.flops import training_flops_per_token
from train.planner.trace import jaxpr_flops, trace
from train.settings import from_config, planned_model


def planned(name, **model):
    config = llm.get_config(name)
    config.model.update(model)
    settings = from_config(config.to_dict())
    return settings, planned_model(settings)


@pytest.mark.integration
@pytest.mark.parametrize("name", ["gpt2", "llama2_7b", "qwen2_0_5b", "gemma2_2b", "mistral_7b", "gpt3_175b"])
def test_traced_flops_equal_the_closed_formula(name):
    settings, model = planned(name, remat="none")
    formula = training_flops_per_token(model, settings.sequence_length)
    assert trace(settings, model).flops == pytest.approx(formula, rel=0.02)


def test_remat_policies_recompute_and_save_as_documented():
    settings, model = planned("llama2_7b")
    found = {r: trace(settings, dataclasses.replace(model, remat=r)) for r in ("none", "dots", "full", "offload")}
    once = found["none"].flops
    assert 1.2 * once < found["full"].flops < 4 / 3 * once and found["dots"].flops < 1.05 * once
    kept = {policy: t.saved + t.saved_split for policy, t in found.items()}
    # full: one bfloat16 residual stream per layer; offload: nothing on the device.
    assert kept["full"] == model.num_layers * model.embed_dim * 2 and kept["offload"] == 0
    assert kept["none"] > kept["dots"] > 5 * kept["full"]


def test_scan_flops_are_multiplied_by_its_length():
    def looped(w, x):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, length=7)[0]

    def unrolled(w, x):
        for _ in range(7):
            x = x @ w
        return x

    shapes = (jnp.zeros((8, 8)), jnp.zeros((4, 8)))
    counts = [jaxpr_flops(jax.make_jaxpr(f)(*shapes).jaxpr) for f in (looped, unrolled)]
    assert counts == [7 * 2 * 4 * 8 * 8] * 2


@pytest.mark.parametrize(
    ("method", "tied", "unused"),
    [("full", False, 0), ("full", True, 0), ("lora", False, 0), ("lora", True, 2), ("head", False, 2)],
)
def test_flops_of_adapted_models_equal_the_closed_formula(method, tied, unused):
    config = tiny.get_config()
    config.tokenizer, config.model.tie_embeddings, config.model.remat = "bpe:2048", tied, "none"
    config.adapt.method, config.adapt.rank = method, 1
    settings = from_config(config.to_dict())
    model = planned_model(settings)
    formula = training_flops_per_token(model, settings.sequence_length, settings.adapt)
    # A product of the loss's own gradient that nothing reads: it is in the jaxpr, and XLA removes it.
    table = unused * model.vocab_size * model.embed_dim
    assert trace(settings, model).flops == pytest.approx(formula + table, rel=0.02)


def test_flops_of_the_last_layers_lie_between_those_of_the_head_and_of_all():
    model = planned_model(from_config(tiny.get_config().to_dict() | {"tokenizer": "bytes"}))
    head, two, all_layers = (
        training_flops_per_token(model, 64, Adaptation(method, layers, 1, 1.0, ()))
        for method, layers in (("head", 1), ("last", 2), ("last", model.num_layers))
    )
    full = training_flops_per_token(model, 64)
    assert head < two < all_layers <= full
    assert training_flops_per_token(model, 64, Adaptation("full", 1, 1, 1.0, ())) == full


def test_a_frozen_base_has_no_flops_of_weight_gradients():
    config = tiny.get_config()
    config.tokenizer, config.adapt.method, config.adapt.base_quantization = "bytes", "lora", "nf4"
    lora = from_config(config.to_dict())
    full = dataclasses.replace(lora, adapt=dataclasses.replace(lora.adapt, method="full"))
    model = planned_model(full)
    # Two of three products, and the table of the embedding, which is the output table too and is frozen as well.
    assert 0.6 < trace(lora, model).flops / trace(full, model).flops < 0.75
