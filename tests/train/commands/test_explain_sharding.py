"""Every parameter is explained, and a table of rules that does not fit the parameters is an error."""

import json
import re

import pytest
from rich.text import Text

from configs.errors import UserError
from configs.pretrain import llm
from model import sharding
from train.commands.explain_sharding import _print
from train.planner.pricing import abstract_mesh
from train.planner.sharding import check_rules, explain
from train.settings import from_config, planned_model


@pytest.fixture(scope="module")
def llama():
    config = llm.get_config("llama2_7b")
    config.mesh.tensor = 4
    settings = from_config(config.to_dict())
    return settings, planned_model(settings), abstract_mesh(settings, 16)


def test_bytes_and_rules_of_a_published_model(llama):
    found = explain(*llama)
    rows = {row["parameter"]: row for row in found["parameters"]}
    up = rows["backbone/layers/mlp/up/kernel"]
    assert up["axes"] == ["layers", "embed", "mlp"] and up["shape"] == [32, 4096, 11008]
    assert up["rule"] == {"layers": [], "embed": ["expert", "fsdp"], "mlp": ["tensor"]}
    assert rows["backbone/embedding/table"]["rule"] == {"vocab": ["tensor", "expert", "fsdp"], "vocab_embed": []}
    assert up["local_shape"] == [32, 1024, 2752] and up["bytes"] == 4 * 32 * 1024 * 2752
    totals = found["totals"]
    assert totals["parameters"] == 6_738_415_616
    assert totals["parameter_bytes"] == sum(row["bytes"] for row in rows.values())
    assert totals["state_bytes"] == pytest.approx(3 * totals["parameter_bytes"], rel=1e-6)
    assert json.loads(json.dumps(found)) == found


def test_a_narrow_terminal_cuts_nothing(llama, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    _print(explain(*llama), llama[2])
    text = Text.from_ansi(capsys.readouterr().out).plain
    assert re.search(
        r"mlp/up/kernel +32x4096x11008 +layers, embed -> fsdp 4, mlp -> tensor 4 +32x1024x2752 +360\.710", text
    )


def test_a_parameter_without_a_rule_and_a_rule_without_a_parameter_are_errors(llama, monkeypatch):
    check_rules(llama[1])
    monkeypatch.setitem(sharding.PARAMETER_RULES, "pixels", ("fsdp",))
    with pytest.raises(UserError, match="the rule for 'pixels' has no parameter"):
        check_rules(llama[1])
    monkeypatch.delitem(sharding.PARAMETER_RULES, "pixels")
    monkeypatch.delitem(sharding.PARAMETER_RULES, "mlp")
    with pytest.raises(UserError, match=r"layers/mlp/down/kernel has an axis 'mlp' without a rule"):
        check_rules(llama[1])


def test_two_axes_of_a_parameter_over_one_mesh_axis_are_an_error(llama, monkeypatch):
    monkeypatch.setitem(sharding.PARAMETER_RULES, "expert_embed", ("expert", "fsdp"))
    message = (
        r"layers/experts/down/kernel: logical axes 'experts' and 'expert_embed' of one array are both split over the "
        "mesh axis 'expert'"
    )
    with pytest.raises(UserError, match=message):
        check_rules(llama[1])


@pytest.mark.integration
@pytest.mark.parametrize("name", ["gpt2", "llama2_7b", "gemma2_2b"])
def test_the_rules_fit_every_architecture(name):
    check_rules(planned_model(from_config(llm.get_config(name).to_dict())))


def test_experts_and_what_they_share_are_explained():
    config = llm.get_config("llama2_7b")
    config.model.update({"num_experts": 8, "expert_dim": 1024, "router_bias": True, "shared_expert_dim": 512})
    config.mesh.expert, config.mesh.fsdp, config.mesh.tensor = 4, 2, 2
    settings = from_config(config.to_dict())
    found = explain(settings, planned_model(settings), abstract_mesh(settings, 16))
    rows = {row["parameter"].removeprefix("backbone/layers/experts/"): row for row in found["parameters"]}
    assert rows["up/kernel"]["local_shape"] == [32, 2, 2048, 512]
    assert rows["down/kernel"]["local_shape"] == [32, 2, 512, 2048]
    assert rows["shared/up/kernel"]["local_shape"] == [32, 512, 256]
    assert rows["router/weight"]["local_shape"] == [32, 512, 8] and rows["router/bias"]["local_shape"] == [32, 8]


def test_a_parameter_that_names_no_axes_is_an_error(llama, monkeypatch):
    monkeypatch.setattr("model.transformer.with_axes", lambda init, *names: init)
    with pytest.raises(UserError, match="backbone/embedding/table has no axis names"):
        check_rules(llama[1])
