"""plan, explain-sharding and certify compile the objective that pre-training optimizes, label smoothing included."""

import dataclasses

import numpy as np
import pytest
from conftest import init, random_documents

from configs.pretrain import tiny
from data.packing import PackedRows
from data.store import store_from_documents
from train.planner import certificate, pricing, search, sharding, trace
from train.planner.topology import parse_topology
from train.settings import from_config, planned_model
from train.step import objective_of


@pytest.fixture
def settings():
    config = tiny.get_config()
    config.loss.label_smoothing, config.loss.z_loss = 0.2, 1e-3
    config.tokenizer, config.model.vocab_size = "bytes", 320
    config.model.update(
        {"embed_dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 48, "compute_dtype": "float32"}
    )
    config.batch_size, config.sequence_length, config.loss.chunk = 8, 32, 0
    return from_config(config.to_dict())


class Recorded(Exception):
    """Carries the objective that a function was about to compile."""


def objective_compiled_by(module, call, monkeypatch):
    """Returns the objective that `call` hands to `make_program` in `module`."""

    def record(objective, *_):
        raise Recorded(objective)

    monkeypatch.setattr(module, "make_program", record)
    with pytest.raises(Recorded) as caught:
        call()
    return caught.value.args[0]


def without_smoothing(settings):
    plain = dataclasses.replace(settings, loss=dataclasses.replace(settings.loss, label_smoothing=0.0))
    return objective_of(plain, planned_model(plain))


def loss(objective, params):
    batch = PackedRows(store_from_documents(random_documents(40)), 32).rows(np.arange(4))
    return float(objective.loss(params, batch).objective)


CALLS = {
    "plan": (pricing, lambda s: pricing.make_plan(s, parse_topology("h100-8"), [], "")),
    "plan --search": (search, lambda s: search.search(s, parse_topology("h100-8"), [], "", lambda *_: None)),
    "explain-sharding": (sharding, lambda s: sharding.explain(s, planned_model(s), pricing.abstract_mesh(s, 8))),
}


@pytest.mark.integration
@pytest.mark.parametrize("command", CALLS)
def test_planner_compiles_the_objective_with_label_smoothing(command, settings, monkeypatch):
    module, call = CALLS[command]
    objective = objective_compiled_by(module, lambda: call(settings), monkeypatch)
    trained = objective_of(settings, planned_model(settings))
    params = init(trained)
    assert loss(objective, params) == pytest.approx(loss(trained, params), rel=1e-5)
    assert loss(objective, params) != pytest.approx(loss(without_smoothing(settings), params), rel=1e-4)


@pytest.mark.integration
def test_certify_trains_the_objective_with_label_smoothing(settings):
    shrunk = certificate.shrink(settings)
    objective = certificate.objective_with_noise(shrunk)
    trained = objective_of(shrunk, certificate.model_config(shrunk.model))
    params = init(trained)
    assert loss(objective, params) == loss(trained, params)


def test_trace_counts_the_objective_with_label_smoothing(settings, monkeypatch):
    seen = []
    monkeypatch.setattr(trace, "objective_of", lambda s, m: seen.append(s.loss.label_smoothing) or objective_of(s, m))
    trace.trace(settings, planned_model(settings))
    assert seen == [0.2]
