"""LoRA and last-layer adapters: merged equals applied, meshes agree, invalid settings are errors."""

import jax
import numpy as np
import pytest
from adapters import adaptation, batch_of
from conftest import init, mesh_of, tiny_model
from flax import linen as nn

from configs import default, models
from configs.errors import UserError
from model.adapt import adapt, merge
from model.config import model_config
from model.heads import classifier, language_model, parameter_count
from model.sharding import parameter_shardings
from train.distributed.placement import put_batch


@pytest.mark.integration
@pytest.mark.parametrize("changes", [{}, {"scan_layers": False, "qkv_bias": True, "mlp": "gelu", "num_kv_heads": 4}])
@pytest.mark.parametrize("method", ["lora", "last"])
def test_merged_equals_applied(method, changes):
    model = tiny_model(**changes)
    plain = classifier(model, 3, "mean")
    targets = ("query", "key", "value", "output", "up", "down", *(["gate"] if model.gated else []))
    how = adaptation(method, rank=3, last_layers=1, targets=targets)
    adapted = adapt(plain, how)
    params = init(adapted)
    batch = batch_of()
    applied = adapted.predict(params, batch)
    merged = merge(params, how)
    assert set(merged) == {"backbone", "head"}
    np.testing.assert_allclose(applied, plain.predict(merged, batch), rtol=1e-5, atol=1e-5)
    assert np.abs(np.asarray(applied - plain.predict({k: params[k] for k in ("backbone", "head")}, batch))).max() > 1e-2


@pytest.mark.integration
def test_new_adapter_does_not_change_the_predictions():
    plain = language_model(tiny_model())
    for method in ("lora", "last"):
        adapted = adapt(plain, adaptation(method))
        params = nn.meta.unbox(adapted.init(jax.random.key(0)))
        base = {group: params[group] for group in ("backbone", "head")}
        np.testing.assert_array_equal(adapted.predict(params, batch_of()), plain.predict(base, batch_of()))


def test_lora_trains_less_than_two_percent_of_a_published_model():
    section = default.model()
    section.update({"qk_norm": False} | models.architecture("smollm2_135m"))
    objective = adapt(classifier(model_config(section), 77, "last"), adaptation("lora"))
    boxed = jax.eval_shape(objective.init, jax.random.key(0))
    trained = parameter_count({group: boxed[group] for group in objective.trained})
    assert objective.trained == ("adapter", "head") and 0 < trained < 0.02 * parameter_count(boxed)


@pytest.mark.integration
def test_mesh_does_not_change_the_adapted_loss_and_gradient():
    objective = adapt(classifier(tiny_model(), 3, "last"), adaptation("lora", rank=2))
    params, batch = init(objective), batch_of()
    expected = jax.jit(jax.value_and_grad(lambda p, b: objective.loss(p, b)[0]))(params, batch)
    mesh = mesh_of(fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, parameter_shardings(jax.eval_shape(objective.init, jax.random.key(0)), mesh))
        found = jax.jit(jax.value_and_grad(lambda p, b: objective.loss(p, b)[0]))(placed, put_batch(batch, mesh))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method": "lora", "targets": ("querry",)},
            "'querry', which is not a projection; expected some of down, gate",
        ),
        ({"method": "lora", "targets": ()}, "targets is empty; expected some of down"),
        ({"method": "lora", "rank": 0}, "config.adapt.rank=0 must be at least 1"),
        ({"method": "last", "last_layers": 3}, "config.adapt.last_layers=3 must be from 1 to 2"),
        ({"method": "head"}, "output table is its embedding; use 'full', 'last' or 'lora'"),
    ],
)
def test_invalid_adaptation_is_an_error_with_the_valid_values(changes, message):
    with pytest.raises(UserError, match=message):
        adapt(language_model(tiny_model()), adaptation(**changes))
