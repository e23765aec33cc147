"""Plans of models with experts: parameters, FLOPs, memory and collectives with and without the expert axis."""

import dataclasses

import pytest

from configs.pretrain import llm
from model.flops import expert_forward_flops, training_flops_per_token
from tests.often import often
from train.planner.pricing import make_plan
from train.planner.search import search
from train.planner.topology import parse_topology
from train.planner.trace import trace
from train.settings import from_config, planned_model

# Published sizes: arXiv:2505.09388, table 2.
QWEN3_30B = {
    "vocab_size": 151936, "embed_dim": 2048, "num_layers": 48, "num_heads": 32, "num_kv_heads": 4, "head_dim": 128,
    "mlp_dim": 6144, "num_experts": 128, "experts_per_token": 8, "expert_dim": 768, "tie_embeddings": False,
}  # fmt: skip


def settings_of(model=None, mesh=None, **changes):
    config = llm.get_config("qwen3_0_6b")
    config.model.update(QWEN3_30B | (model or {}))
    config.mesh.update({"fsdp": 1} | (mesh or {}))
    config.update({"batch_size": 64, "sequence_length": 1024} | changes)
    return from_config(config.to_dict())


def plan_of(mesh, topology="h100-64", **changes):
    return make_plan(settings_of(mesh=mesh, **changes), parse_topology(topology), [], "estimated")


@pytest.mark.integration
def test_total_and_active_parameters_are_the_published_ones():
    plan = plan_of({"expert": 8, "fsdp": 8})
    assert plan.parameters == pytest.approx(30.5e9, rel=0.01)
    assert plan.active_parameters == pytest.approx(3.3e9, rel=0.02)
    dense = make_plan(from_config(llm.get_config("llama2_7b").to_dict()), parse_topology("h100-8"), [], "estimated")
    assert dense.active_parameters == dense.parameters


@pytest.mark.integration
@pytest.mark.parametrize(
    "model",
    [
        *({}, {"router": "sigmoid", "shared_expert_dim": 768}),
        *often([{"dense_layers": 4, "expert_every": 4}]),
    ],
    ids=str,
)
def test_flops_are_those_of_the_active_experts(model):
    settings = settings_of(model | {"remat": "none"})
    planned = planned_model(settings)
    formula = training_flops_per_token(planned, settings.sequence_length)
    assert trace(settings, planned).flops == pytest.approx(formula, rel=0.03)


@pytest.mark.integration
def test_split_experts_are_computed_again_and_save_their_inputs_alone():
    found = {}
    for remat in ("none", "full"):
        settings = settings_of({"remat": remat, "num_layers": 4})
        model = planned_model(settings)
        found[remat] = [trace(settings, model, split_experts=split) for split in (False, True)]
    whole, split = found["none"]
    assert split.flops - whole.flops == pytest.approx(expert_forward_flops(model), rel=1e-6)
    assert split.saved + split.saved_split < 0.5 * (whole.saved + whole.saved_split)
    whole, split = found["full"]
    # One residual stream in bfloat16 and the router's choices.
    per_layer = 2 * model.embed_dim + 4 * model.experts_per_token
    assert whole.flops == split.flops
    for found in (whole, split):
        assert found.saved + found.saved_split == pytest.approx(model.num_layers * per_layer, rel=0.01)


def sent_by(plan):
    return sum(sent["bytes"] for sent in plan.collectives.values())


@pytest.mark.integration
def test_the_axis_splits_the_state_and_sends_tokens_instead_of_experts():
    whole, split, both = (plan_of(mesh) for mesh in ({"fsdp": 64}, {"expert": 64}, {"expert": 8, "fsdp": 8}))
    assert split.state_bytes_per_chip == pytest.approx(whole.state_bytes_per_chip, rel=0.01)
    assert sent_by(both) < 0.5 * sent_by(whole)
    assert {plan.model_flops_per_step for plan in (split, both)} == {whole.model_flops_per_step}


@pytest.mark.integration
def test_peak_memory_grows_with_the_layers_that_have_experts():
    every, second = plan_of({"expert": 8, "fsdp": 8}), plan_of({"expert": 8, "fsdp": 8}, model={"expert_every": 2})
    assert second.state_bytes_per_chip < 0.7 * every.state_bytes_per_chip
    assert every.peak_bytes_per_chip > every.state_bytes_per_chip


@pytest.mark.integration
def test_search_uses_the_axis_only_for_experts():
    settings = settings_of({"num_layers": 2, "num_experts": 8, "experts_per_token": 2})
    found = search(settings, parse_topology("h100-4"), [], "estimated", lambda *_: None)
    assert {candidate.settings.mesh.expert for candidate in found} == {1, 2, 4}
    assert all(f"--config.mesh.expert={candidate.settings.mesh.expert}" in candidate.flags for candidate in found)
    dense = dataclasses.replace(settings, model=settings.model | {"num_experts": 0})
    found = search(dense, parse_topology("h100-4"), [], "estimated", lambda *_: None)
    assert {candidate.settings.mesh.expert for candidate in found} == {1}
