"""Products with a weight: the gradient that a CPU computes fast equals the one of other machines."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mesh_of

from configs import default
from model import dtypes, products
from model.adapt import adapt
from model.adaptation import Adaptation
from model.products import token_sum, weight_product
from tests.often import often
from train.settings import complete_model, from_config
from train.step import objective_of, summed_gradients

EQUATIONS = {
    "BTD,DF->BTF": ((2, 3, 4), (4, 5)),
    "BTD,DNH->BTNH": ((2, 3, 4), (4, 2, 3)),
    "BTNH,NHD->BTD": ((2, 3, 2, 3), (2, 3, 4)),
}


def draw(seed, shape, dtype=jnp.bfloat16):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def gradients(equation, dtype):
    """Returns the gradients of a product with respect to both of its operands, and the compiled program's text."""
    x, weight = (draw(i, shape, dtype) for i, shape in enumerate(EQUATIONS[equation]))
    g = draw(2, jax.eval_shape(lambda: jnp.einsum(equation, x, weight)).shape, dtype)
    compiled = jax.jit(lambda x, w, g: jax.vjp(lambda *a: weight_product(equation, *a), x, w)[1](g)).lower(x, weight, g)
    return compiled.compile()(x, weight, g), compiled.compile().as_text()


@pytest.mark.parametrize("equation", EQUATIONS)
def test_the_copied_transpose_gives_the_gradients_of_einsum(equation, monkeypatch):
    copied, _ = gradients(equation, jnp.bfloat16)
    monkeypatch.setattr(products, "_copies", lambda x: False)
    plain, _ = gradients(equation, jnp.bfloat16)
    for a, b in zip(copied, plain, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("equation", EQUATIONS)
def test_no_product_of_the_gradient_sums_over_the_first_axis_of_its_first_operand(equation):
    _, text = gradients(equation, jnp.bfloat16)
    assert len(re.findall(r" dot\(", text)) == 2
    assert "lhs_contracting_dims={0}" not in text


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_a_gradient_of_the_table_is_a_float32_sum(dtype):
    x, y = draw(0, (1, 64, 5), dtype), draw(1, (1, 64, 3), dtype)
    got = token_sum("PRV,PRD->PVD", x, y)
    expected = np.einsum("prv,prd->pvd", np.asarray(x, np.float64), np.asarray(y, np.float64))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("equation", EQUATIONS)
def test_a_product_of_matrices_gives_the_values_and_gradients_of_einsum(equation, monkeypatch):
    x, weight = (draw(i, shape, jnp.float32) for i, shape in enumerate(EQUATIONS[equation]))
    np.testing.assert_allclose(weight_product(equation, x, weight), jnp.einsum(equation, x, weight), rtol=1e-5)
    of_matrices, _ = gradients(equation, jnp.float32)
    monkeypatch.setattr(products, "on_one_cpu", lambda: False)
    plain, _ = gradients(equation, jnp.float32)
    for a, b in zip(of_matrices, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def copies_of_a_gradient():
    """Returns how often the compiled gradient of a product's weight, behind an activation, reorders axes."""
    x, weight = draw(0, (4, 64, 128), jnp.float32), draw(1, (128, 96), jnp.float32)

    def loss(weight, x):
        return jnp.square(jax.nn.gelu(weight_product("BTD,DF->BTF", x, weight))).sum()

    text = jax.jit(jax.grad(loss)).lower(weight, x).compile().as_text()
    return len(re.findall(r" (?:copy|transpose)\(", text))


def test_the_gradient_of_a_float32_weight_reorders_no_axes_of_what_it_is_computed_from(monkeypatch):
    assert copies_of_a_gradient() == 0
    monkeypatch.setattr(products, "on_one_cpu", lambda: False)
    assert copies_of_a_gradient() > 0  # else XLA does it by itself, and `model/products.py` can be shorter


def program(dtype, mesh=None, product=weight_product):
    """Returns the lowered gradient of a product in a mesh."""
    x, weight = (draw(i, shape, dtype) for i, shape in enumerate(EQUATIONS["BTD,DF->BTF"]))

    def gradient(x, w):
        return jax.grad(lambda w: product("BTD,DF->BTF", x, w).astype(jnp.float32).sum())(w)

    if mesh is None:
        return jax.jit(gradient).lower(x, weight).as_text()
    with jax.set_mesh(mesh):
        return jax.jit(gradient).lower(x, weight).as_text()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("case", ["mesh", "gpu", "tpu"])
def test_other_programs_are_compiled_as_einsum(case, dtype, monkeypatch):
    assert program(dtype) != program(dtype, product=jnp.einsum)
    mesh = mesh_of(data=2) if case == "mesh" else None
    if case in ("gpu", "tpu"):
        monkeypatch.setattr(dtypes, "platform", lambda: case)
    assert program(dtype, mesh) == program(dtype, mesh, product=jnp.einsum)


def model_gradients(adaptation=None, microbatches=1, **fields):
    """Returns the gradients of a small model in bfloat16."""
    config = default.get_config()
    config.batch_size, config.sequence_length = 4, 16
    config.model.update({"vocab_size": 64, "embed_dim": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1})
    config.model.update({"mlp_dim": 48, "head_dim": 16, "compute_dtype": "bfloat16", "output_init": "scaled"} | fields)
    settings = from_config(config.to_dict())
    objective = objective_of(settings, complete_model(settings, 64))
    if adaptation:
        objective = adapt(objective, adaptation)
    params = jax.tree.map(
        lambda box: box.value, objective.init(jax.random.key(0)), is_leaf=lambda leaf: hasattr(leaf, "value")
    )
    params = jax.tree.map(lambda x: x + 0.02 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    tokens = jax.random.randint(jax.random.key(1), (4, 17), 0, 64)
    ones = jnp.ones((4, 16), jnp.int32)
    batch = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": ones,
        "weights": ones.astype(jnp.float32),
    }
    batch["positions"] = jnp.tile(jnp.arange(16), (4, 1))
    trained = {group: params[group] for group in objective.trained}
    frozen = {group: params[group] for group in params if group not in trained}
    return jax.jit(lambda p, b: summed_gradients(objective, p, b, microbatches, frozen)[0])(trained, batch)


FIELDS = (
    {"adaptation": Adaptation("lora", 0, 4, 8.0, ("query", "value", "down"))},
    {"remat": "full", "scan_layers": False},
    {"mlp": "gelu", "mlp_bias": True, "qkv_bias": True},
    {},
    {"scan_layers": False},
    {"remat": "dots"},
    {"tie_embeddings": False},
    {"microbatches": 2},
)


@pytest.mark.integration
@pytest.mark.parametrize("fields", often(FIELDS, *FIELDS[:3]), ids=str)
def test_gradients_of_a_model_are_the_plain_ones(fields, monkeypatch):
    copied = model_gradients(**fields)
    monkeypatch.setattr(products, "_copies", lambda x: False)
    plain = model_gradients(**fields)

    def close(a, b):
        # bfloat16 has 8 bits; the difference is relative to the size of the whole leaf.
        assert jnp.linalg.norm(a - b) <= 0.02 * jnp.linalg.norm(b) + 1e-6

    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(plain)) > 0.01
    jax.tree.map(close, copied, plain)
