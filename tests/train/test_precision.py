"""Mixed precision: bfloat16 matrix products; float32 for sums, parameters and optimizer state."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import init, mesh_of, tiny_model

from configs import default
from data.loader import BatchFunction
from data.packing import PackedRows
from data.store import store_from_documents
from model.heads import language_model
from train.distributed.placement import put_batch
from train.settings import from_config
from train.step import make_program, summed_gradients

VARIANTS = {
    "default": {},
    "gpt2": {"norm": "layernorm", "position": "learned", "mlp": "gelu", "qkv_bias": True, "output_bias": True,
             "mlp_bias": True, "num_kv_heads": 4, "qk_norm": False, "tie_embeddings": False},
    "gemma2": {"norm_position": "both", "norm_unit_offset": True, "mlp": "gelu_gated", "scale_embeddings": True,
               "logit_softcap": 30.0, "attention_softcap": 50.0, "sliding_window": (5, 0)},
}  # fmt: skip
# Softmax, norms and the loss; and sums over tokens, as in the gradients of embeddings, biases and norms.
IN_FLOAT32 = {"exp", "log", "rsqrt", "div", "reduce_max", "reduce_sum", "cumsum", "scatter-add"}


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_products_run_in_bfloat16_and_sums_in_float32(variant):
    objective = language_model(tiny_model(**variant, compute_dtype="bfloat16"), z_loss=1e-4, chunk=8)
    params = jax.eval_shape(lambda: init(objective))
    ids, weights = jax.ShapeDtypeStruct((2, 16), jnp.int32), jax.ShapeDtypeStruct((2, 16), jnp.float32)
    batch = dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), ids) | {"weights": weights}
    jaxpr = jax.make_jaxpr(lambda p, b: summed_gradients(objective, p, b, 1))(params, batch)
    seen, products = set(), []
    for equation in equations(jaxpr.jaxpr):
        dtypes = [v.aval.dtype.name for v in equation.invars]
        if equation.primitive.name in IN_FLOAT32:
            assert "bfloat16" not in dtypes, equation
            seen.add(equation.primitive.name)
        elif equation.primitive.name == "dot_general":
            products.append(dtypes)
    assert seen >= {"exp", "log", "rsqrt", "reduce_sum", "scatter-add"}
    assert len(products) > 20 and all("bfloat16" in dtypes for dtypes in products)


@pytest.mark.integration
def test_bfloat16_gradients_of_frequent_tokens_match_float32():
    """A bfloat16 sum stops growing at 256 times its terms, so sums over tokens must not use it."""
    model = tiny_model(**VARIANTS["gpt2"])
    params = init(language_model(model))
    tokens = np.full((64, 64), 5)
    tokens[:, ::7] = np.random.default_rng(0).integers(3, 64, tokens[:, ::7].shape)
    batch = {
        "tokens": tokens, "targets": np.full_like(tokens, 9), "segment_ids": np.ones_like(tokens),
        "positions": np.tile(np.arange(64), (64, 1)), "weights": np.ones(tokens.shape, np.float32),
    }  # fmt: skip

    def gradient(dtype):
        objective = language_model(dataclasses.replace(model, compute_dtype=dtype))
        return jax.jit(lambda p: summed_gradients(objective, p, batch, 1)[0])(params)

    low, high = gradient("bfloat16"), gradient("float32")
    # A shift of all logits of a query does not change its softmax: the exact gradient of the key bias is zero.
    for tree in (low, high):
        tree["backbone"]["layers"]["attention"]["key"].pop("bias")
    distances = jax.tree.map(lambda a, b: float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)), low, high)
    assert max(jax.tree.leaves(distances)) < 0.04, distances


@pytest.fixture(scope="module")
def curves():
    """dtype -> (losses of 30 steps on documents that count up from a random token, the final state)."""
    config = default.get_config()
    config.batch_size, config.sequence_length, config.num_steps = 8, 32, 30
    config.optimizer.warmup_steps, config.optimizer.learning_rate = 3, 1e-2
    settings = from_config(config.to_dict())
    starts = np.random.default_rng(0).integers(0, 61, 100)
    documents = [[1, *(3 + (start + np.arange(20)) % 61).tolist(), 2] for start in starts]
    function = BatchFunction(PackedRows(store_from_documents(documents), 32), 8, 0)
    found, mesh = {}, mesh_of()
    for dtype in ("float32", "bfloat16"):
        program = make_program(language_model(tiny_model(compute_dtype=dtype), chunk=8), settings, mesh)
        with jax.set_mesh(mesh):
            state, losses = program.initialize(jax.random.key_data(jax.random.key(0))), []
            for t in range(30):
                state, metrics = program.step(state, put_batch(function(t), mesh))
                losses.append(float(metrics["loss"]))
        found[dtype] = np.array(losses), state
    return found


@pytest.mark.slow
def test_bfloat16_loss_curve_matches_float32(curves):
    (high, _), (low, _) = curves["float32"], curves["bfloat16"]
    assert high[-1] < high[0] - 2 and not (high == low).all()
    assert np.abs(high - low).max() < 0.05


@pytest.mark.integration
def test_parameters_and_moments_are_float32(curves):
    _, state = curves["bfloat16"]
    assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {"float32"}
    assert {x.dtype.name for x in jax.tree.leaves(state.opt_state) if x.ndim} == {"float32"}
