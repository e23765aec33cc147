"""Properties of every decoder, tested on variants that together use all its parts."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import init, tiny_model

from configs import default
from configs.errors import UserError
from model import losses
from model.config import model_config
from model.context import segment_lengths
from model.heads import language_model, parameter_count, unembedding
from model.rotary import frequencies, rotate
from model.transformer import forward

VARIANTS = {
    "default": {},
    "gpt2": {"norm": "layernorm", "position": "learned", "mlp": "gelu", "qkv_bias": True, "output_bias": True,
             "mlp_bias": True, "num_kv_heads": 4, "qk_norm": False},
    "gemma2": {"norm_position": "both", "norm_unit_offset": True, "mlp": "gelu_gated", "scale_embeddings": True,
               "logit_softcap": 30.0, "attention_softcap": 50.0, "query_scale": 0.2, "sliding_window": (5, 0)},
    "untied_relu2_post": {"tie_embeddings": False, "mlp": "relu2", "norm_position": "post"},
    "llama3_scaling": {"rope_scaling": "llama3", "rope_scaling_factor": 8.0, "rope_original_context": 32},
    "gemma3": {"norm_position": "both", "norm_unit_offset": True, "sliding_window": (5, 0), "rope_theta": 1e6,
               "rope_scaling": "linear", "rope_scaling_factor": 8.0, "rope_layers": ("local", "rope")},
    "gpt_neox": {"norm": "layernorm", "parallel": "two_norms", "rope_fraction": 0.5, "mlp": "gelu_exact"},
    "cohere2": {"norm": "layernorm", "norm_bias": False, "parallel": "one_norm", "sliding_window": (5, 0),
                "rope_layers": ("rope", "none"), "logit_scale": 0.3},
    "granite": {"embedding_scale": 3.0, "residual_scale": 0.4, "query_scale": 0.1, "logit_scale": 0.2},
    "longrope": {"rope_scaling": "longrope", "rope_original_context": 8, "rope_short_factors": (1.0, 1.1, 1.2, 1.4),
                 "rope_long_factors": (2.0, 3.0, 5.0, 8.0)},
    "dynamic": {"rope_scaling": "dynamic", "rope_scaling_factor": 4.0, "rope_original_context": 8},
}  # fmt: skip
EXECUTIONS = (
    {"scan_layers": True, "remat": "full"},
    {"scan_layers": True, "remat": "none"},
    {"scan_layers": False, "remat": "dots"},
    {"scan_layers": True, "remat": "offload"},
)


def logits_of(model, params, tokens, segments=None, positions=None):
    tokens = jnp.asarray(tokens)
    ones = jnp.ones_like(tokens)
    batch = {
        "tokens": tokens,
        "segment_ids": ones if segments is None else jnp.asarray(segments),
        "positions": jnp.cumsum(ones, 1) - 1 if positions is None else jnp.asarray(positions),
    }
    x = forward(model, params["backbone"], batch)
    return losses.logits(x, unembedding(params), model.logit_softcap)


@pytest.fixture(scope="module", params=VARIANTS)
def case(request):
    model = tiny_model(**VARIANTS[request.param])
    return model, init(language_model(model))


@pytest.mark.integration
def test_attention_is_causal(case):
    model, params = case
    tokens = np.random.default_rng(0).integers(3, 64, (1, 16))
    changed = tokens.copy()
    changed[0, 9] = (changed[0, 9] - 2) % 61 + 3
    a, b = logits_of(model, params, tokens), logits_of(model, params, changed)
    np.testing.assert_array_equal(a[:, :9], b[:, :9])
    assert np.abs(a[:, 9] - b[:, 9]).max() > 1e-3


@pytest.mark.integration
def test_packed_documents_have_the_same_logits_as_alone(case):
    model, params = case
    rng = np.random.default_rng(1)
    first, second = rng.integers(3, 64, (1, 7)), rng.integers(3, 64, (1, 9))
    packed = logits_of(
        model,
        params,
        np.concatenate([first, second], 1),
        np.array([[1] * 7 + [2] * 9]),
        np.array([[*range(7), *range(9)]]),
    )
    np.testing.assert_allclose(packed[:, :7], logits_of(model, params, first), atol=2e-5)
    np.testing.assert_allclose(packed[:, 7:], logits_of(model, params, second), atol=2e-5)


@pytest.mark.integration
def test_scan_and_remat_do_not_change_the_gradient(case):
    model, params = case
    tokens = np.random.default_rng(2).integers(3, 64, (2, 16))
    batch = {
        "tokens": tokens, "targets": np.roll(tokens, -1, 1), "segment_ids": np.ones_like(tokens),
        "positions": np.tile(np.arange(16), (2, 1)), "weights": np.ones(tokens.shape, np.float32),
    }  # fmt: skip

    def gradient(**execution):
        objective = language_model(dataclasses.replace(model, **execution))
        return jax.jit(jax.grad(lambda p: objective.loss(p, batch).objective))(params)

    plain = gradient(scan_layers=False, remat="none")
    # Each way with the first variant; with the others, the one that changes most.
    ways = EXECUTIONS if model == tiny_model() else EXECUTIONS[:1]
    for execution in ways:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), plain, gradient(**execution))


@pytest.mark.integration
def test_scan_layers_does_not_change_the_parameter_layout(case):
    model, params = case
    layout = jax.tree.map(lambda x: (x.shape, x.dtype), params)
    tokens = np.random.default_rng(7).integers(3, 64, (2, 16))
    logits = {}
    for scan in (True, False):
        run = dataclasses.replace(model, scan_layers=scan)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), init(language_model(run))) == layout
        logits[scan] = jax.jit(lambda p, run=run: logits_of(run, p, tokens))(params)
    np.testing.assert_allclose(logits[True], logits[False], rtol=1e-6, atol=1e-6)


@pytest.mark.integration
def test_sliding_window_limits_how_far_back_a_token_attends():
    model = tiny_model(sliding_window=(4,), num_layers=1)
    params = init(language_model(model))
    tokens = np.random.default_rng(3).integers(3, 64, (1, 12))
    changed = tokens.copy()
    changed[0, 2] = (changed[0, 2] - 2) % 61 + 3
    a, b = logits_of(model, params, tokens), logits_of(model, params, changed)
    np.testing.assert_array_equal(a[:, 6:], b[:, 6:])
    assert np.abs(a[:, 5] - b[:, 5]).max() > 1e-4


def test_rotary_products_depend_only_on_distance():
    model = tiny_model()
    rng = np.random.default_rng(4)
    q, k = (jnp.asarray(rng.standard_normal((1, 1, 1, model.head_dim)), jnp.float32) for _ in range(2))

    def product(i, j):
        def at(x, position):
            angles = jnp.full((1, 1, 1), float(position)) * frequencies(model.rotaries[0])
            return rotate(x, jnp.sin(angles), jnp.cos(angles))

        return float((at(q, i) * at(k, j)).sum())

    assert product(11, 4) == pytest.approx(product(27, 20), abs=1e-4)
    assert abs(product(11, 4) - product(11, 9)) > 1e-3
    # Equation 15 of RoFormer: one radian per position for the first pair.
    assert float(frequencies(model.rotaries[0])[0]) == 1.0


def test_rotary_frequencies_are_powers_of_the_base():
    model = tiny_model(rope_theta=500.0)
    expected = [500.0 ** (-2 * i / model.head_dim) for i in range(model.head_dim // 2)]
    np.testing.assert_allclose(frequencies(model.rotaries[0]), expected, rtol=1e-6)


def test_llama3_scaling_stretches_only_long_wavelengths():
    plain, scaled = (frequencies(tiny_model(**v).rotaries[0]) for v in ({}, VARIANTS["llama3_scaling"]))
    ratio = np.asarray(plain / scaled)
    assert ratio[0] == pytest.approx(1.0) and ratio[-1] == pytest.approx(8.0)


@pytest.mark.integration
@pytest.mark.parametrize("variant", ["longrope", "dynamic"])
def test_frequencies_follow_the_length_of_each_document(variant):
    """A document in a packed row has its own length, as alone; only those beyond the original context change."""
    (rotary,) = tiny_model(**VARIANTS[variant]).rotaries
    segments = jnp.array([[1] * 6 + [2] * 9 + [0] * 3])
    positions = jnp.array([[*range(6), *range(9), 0, 0, 0]])
    lengths = segment_lengths(positions, segments)
    assert lengths.tolist() == [[6] * 6 + [9] * 9 + [1] * 3]
    found = frequencies(rotary, lengths)[0]
    short, long = (frequencies(rotary, jnp.full((1, 1), length))[0, 0] for length in (6, 9))
    np.testing.assert_allclose(found[:6], np.tile(short, (6, 1)))
    np.testing.assert_allclose(found[6:15], np.tile(long, (9, 1)))
    np.testing.assert_allclose(short, frequencies(rotary), rtol=1e-6)
    assert np.all(np.asarray(long)[1:] < np.asarray(short)[1:])


def test_yarn_keeps_fast_columns_and_stretches_slow_ones():
    yarn = {"rope_scaling": "yarn", "rope_scaling_factor": 8.0, "rope_original_context": 4096, "head_dim": 128}
    plain, scaled = tiny_model(head_dim=128).rotaries[0], tiny_model(**yarn).rotaries[0]
    ratio = np.asarray(frequencies(plain) / frequencies(scaled))
    assert ratio[0] == pytest.approx(1.0) and ratio[-1] == pytest.approx(8.0) and np.all(np.diff(ratio) >= -1e-4)
    # arXiv:2309.00071, equation 22.
    assert scaled.attention_factor == pytest.approx(0.1 * np.log(8.0) + 1.0)
    assert tiny_model(**yarn, rope_attention_factor=1.5).rotaries[0].attention_factor == 1.5


def test_the_period_of_kinds_is_that_of_windows_and_rotary_positions_together():
    model = tiny_model(num_layers=6, sliding_window=(4, 0), rope_layers=("local", "none", "rope"))
    assert [(kind.window, kind.rotary and kind.rotary.theta) for kind in model.period] == [
        (4, 10000.0), (0, None), (4, 10000.0), (0, 10000.0), (4, None), (0, 10000.0)
    ]  # fmt: skip
    assert (
        tiny_model(num_layers=6, rope_layers=("rope", "none")).period == tiny_model(rope_layers=("rope", "none")).kinds
    )
    assert len(tiny_model(num_layers=6, rope_layers=("local",), rope_local_theta=10000.0).period) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_layers": ("global",)}, "rope_layers=.* must be a non-empty tuple of 'rope', 'local', 'none'"),
        ({"rope_layers": ()}, "rope_layers=.* must be a non-empty tuple"),
        ({"rope_fraction": 0.4}, "rope_fraction=0.4 of config.model.head_dim=8 is 3 columns, which must be even"),
        ({"rope_fraction": 0.0}, "is 0 columns, which must be even"),
        ({"rope_scaling": "longrope", "rope_short_factors": (1.0,)}, "rope_short_factors has 1 values; expected 4"),
        ({"rope_scaling": "dynamic", "rope_fraction": 0.25}, "needs more than 2 rotated columns"),
        ({"rope_theta": 0.0}, "rope_theta=0.0 must be greater than 0"),
        ({"rope_scaling": "yarn", "rope_scaling_factor": -1.0}, "rope_scaling_factor=-1.0 must be greater than 0"),
        ({"parallel": "one_norm", "norm_position": "post"}, "parallel='one_norm' needs .*norm_position='pre'"),
    ],
)
def test_invalid_layer_kinds_are_one_line_errors(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        tiny_model(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.integration
def test_qk_norm_is_scale_invariant():
    model = tiny_model(norm_epsilon=1e-12)
    params = init(language_model(model))
    tokens = np.random.default_rng(8).integers(3, 64, (1, 10))
    for name in ("query", "key"):
        larger = jax.tree.map(lambda x: x, params)
        attention = larger["backbone"]["layers"]["attention"]
        attention[name] = {"kernel": 3.0 * attention[name]["kernel"]}
        np.testing.assert_allclose(
            logits_of(model, larger, tokens), logits_of(model, params, tokens), atol=1e-5, err_msg=name
        )


@pytest.mark.integration
def test_grouped_heads_equal_repeated_kv_heads():
    grouped, full = tiny_model(num_kv_heads=2), tiny_model(num_kv_heads=4)
    params = init(language_model(grouped))
    repeated = jax.tree.map(lambda x: x, params)
    attention = repeated["backbone"]["layers"]["attention"]
    for name in ("key", "value"):
        attention[name] = {"kernel": jnp.repeat(attention[name]["kernel"], 2, axis=2)}
    tokens = np.random.default_rng(5).integers(3, 64, (2, 10))
    np.testing.assert_allclose(logits_of(grouped, params, tokens), logits_of(full, repeated, tokens), atol=1e-5)


@pytest.mark.integration
def test_bfloat16_compute_keeps_float32_parameters_and_loss():
    model = tiny_model(compute_dtype="bfloat16")
    objective = language_model(model)
    params = init(objective)
    tokens = np.random.default_rng(6).integers(3, 64, (2, 16))
    batch = {
        "tokens": tokens, "targets": tokens, "segment_ids": np.ones_like(tokens),
        "positions": np.tile(np.arange(16), (2, 1)), "weights": np.ones(tokens.shape, np.float32),
    }  # fmt: skip
    low, gradient = jax.value_and_grad(lambda p: objective.loss(p, batch).objective)(params)
    high = language_model(tiny_model()).loss(params, batch).objective
    assert low.dtype == jnp.float32 and {g.dtype for g in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.float32)}
    assert low != high and low == pytest.approx(float(high), rel=2e-2)


def test_docstring_of_the_default_model_has_its_parameter_count():
    stated = float(re.search(r"([\d.]+) million parameters", default.model.__doc__)[1])
    vocab_size = int(re.search(r"([\d,]+)-token vocabulary", default.model.__doc__)[1].replace(",", ""))
    model = model_config(default.model().to_dict() | {"vocab_size": vocab_size, "context_length": 256})
    params = jax.eval_shape(language_model(model).init, jax.random.key(0))
    assert parameter_count(params) == pytest.approx(stated * 1e6, rel=0.02)
