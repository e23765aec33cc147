"""QLoRA: levels and packing against NumPy, gradients of LoRA on the dequantized base, memory, merging, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapters import adaptation, batch_of
from conftest import init, mesh_of, tiny_model
from flax import linen as nn

from configs.errors import UserError
from model.adapt import adapt, merge
from model.heads import classifier
from model.quantization import NF4_LEVELS, dequantize, dequantize_layers, quantize
from model.sharding import parameter_shardings
from tests.often import often
from train.distributed.placement import put_batch
from train.step import split, summed_gradients
from train.trees import abstract_params

# Every matrix has a multiple of 64 inputs.
MODEL = tiny_model(embed_dim=128, head_dim=32, mlp_dim=128)
TARGETS = ("query", "key", "value", "output", "gate", "up", "down")
HOW = ("int8", "nf4")


def qlora(how, **changes):
    return adaptation("lora", rank=2, targets=TARGETS, base_quantization=how, **changes)


def params_of(model, how):
    """Parameters of the model with adapters that are not zero, and the quantized base."""
    params = init(adapt(classifier(model, 3, "mean"), qlora("none")))
    return params, adapt(classifier(model, 3, "mean"), qlora(how)).cast(params)


def reference_nf4(kernel_IO):
    """The weights that NF4 stands for, one block of one output at a time."""
    levels, found = np.array(NF4_LEVELS, np.float32), np.zeros_like(kernel_IO)
    for column in range(kernel_IO.shape[1]):
        for start in range(0, len(kernel_IO), 64):
            block = kernel_IO[start : start + 64, column]
            scale = np.float32(np.abs(block).max().astype(jnp.bfloat16))
            nearest = np.abs(block[:, None] / scale - levels).argmin(1)
            found[start : start + 64, column] = levels[nearest] * scale
    return found


def test_levels_are_the_quantiles_of_a_normal_distribution():
    # arXiv:2305.14314, section 3 and the code of appendix E: 8 quantiles above zero, 7 below, from offset 0.9677083.
    from statistics import NormalDist

    offset, quantile = 0.9677083, NormalDist().inv_cdf
    above = [quantile(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    below = [-quantile(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    expected = np.sort([*below, 0.0, *above]) / max(above)
    np.testing.assert_allclose(NF4_LEVELS, expected, atol=1e-5)


@pytest.mark.parametrize(("shape", "inputs"), [((192, 2, 5), 1), ((4, 32, 6), 2), ((64, 7), 1)])
def test_nf4_equals_a_numpy_reference(shape, inputs):
    kernel = np.random.default_rng(0).standard_normal(shape).astype(np.float32) * np.arange(1, shape[-1] + 1)
    kernel[..., -1] = 0.0
    packed = quantize(jnp.asarray(kernel), "nf4", inputs)
    found = np.asarray(dequantize(packed, inputs, jnp.float32))
    flat = kernel.reshape(int(np.prod(shape[:inputs])), -1)
    with np.errstate(invalid="ignore"):
        expected = np.nan_to_num(reference_nf4(flat)).reshape(shape)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # Half of the widest gap between levels, and the rounding of a scale to bfloat16.
    blocks = np.abs(flat.reshape(-1, 64, flat.shape[1])).max(1, keepdims=True)
    bound = (np.diff(NF4_LEVELS).max() / 2 + 2.0**-8) * blocks
    assert (np.abs((found - kernel).reshape(-1, 64, flat.shape[1])) <= bound).all()
    # What was quantized is represented exactly.
    again = quantize(jnp.asarray(found), "nf4", inputs)
    np.testing.assert_array_equal(dequantize(again, inputs, jnp.float32), found)


@pytest.mark.parametrize(("shape", "inputs"), [((20, 2, 5), 1), ((4, 8, 6), 2)])
def test_int8_is_within_half_a_step_of_its_output_channel(shape, inputs):
    kernel = np.random.default_rng(0).standard_normal(shape).astype(np.float32) * 10.0 ** np.arange(shape[-1])
    packed = quantize(jnp.asarray(kernel), "int8", inputs)
    assert packed["codes"].dtype == jnp.int8 and packed["codes"].shape == shape
    step = np.abs(kernel).max(tuple(range(inputs))) / 127
    np.testing.assert_allclose(packed["scales"], step, rtol=1e-6)
    assert (np.abs(dequantize(packed, inputs, jnp.float32) - kernel) <= 0.5001 * step).all()


@pytest.mark.integration
@pytest.mark.parametrize("changes", often([{}, {"scan_layers": False, "remat": "full"}], {}))
@pytest.mark.parametrize("how", HOW)
def test_loss_and_gradients_equal_lora_on_the_dequantized_base(how, changes):
    model = dataclasses.replace(MODEL, **changes)
    params, quantized = params_of(model, how)
    layers = dequantize_layers(quantized["backbone"]["layers"])
    plain = params | {"backbone": params["backbone"] | {"layers": layers}}
    batch, found = batch_of(2, 16), []
    for adapted, how_kept in ((plain, "none"), (quantized, how)):
        objective = adapt(classifier(model, 3, "mean"), qlora(how_kept))
        trained, frozen = split(objective, adapted)
        step = jax.jit(lambda t, f, b, objective=objective: summed_gradients(objective, t, b, 1, f))
        found.append(step(trained, frozen, batch))
    assert set(found[1][0]) == {"adapter", "head"}
    assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(found[1][0]))
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.integration
@pytest.mark.parametrize("how", HOW)
def test_merged_model_is_the_one_that_was_trained(how):
    params, quantized = params_of(MODEL, how)
    plain, batch = classifier(MODEL, 3, "mean"), batch_of(2, 16)
    applied = adapt(plain, qlora(how)).predict(quantized, batch)
    # The base as its own run saved it, and as the state of training has it.
    for given in (params, quantized):
        merged = merge(given, qlora(how))
        assert jax.tree.structure(merged["backbone"]) == jax.tree.structure(params["backbone"])
        np.testing.assert_allclose(applied, plain.predict(merged, batch), rtol=1e-5, atol=1e-5)
    original = plain.predict(merge(params, qlora("none")), batch)
    assert np.abs(np.asarray(applied - original)).max() > 1e-3


@pytest.mark.integration
@pytest.mark.parametrize(("how", "ratio"), [("int8", 4.0), ("nf4", 32 / 4.25)])
def test_bytes_of_the_frozen_kernels(how, ratio):
    objective = adapt(classifier(MODEL, 3, "mean"), qlora(how))
    layers = nn.meta.unbox(jax.eval_shape(objective.init, jax.random.key(0)))["backbone"]["layers"]
    kernels = [layers["attention"][name] for name in TARGETS[:4]] + [layers["mlp"][name] for name in TARGETS[4:]]
    held = sum(leaf.size * leaf.dtype.itemsize for part in kernels for leaf in jax.tree.leaves(part["kernel"]))
    boxed = nn.meta.unbox(jax.eval_shape(classifier(MODEL, 3, "mean").init, jax.random.key(0)))["backbone"]["layers"]
    whole = sum(4 * leaf.size for leaf in jax.tree.leaves(boxed) if leaf.ndim > 2)
    assert 0.95 * ratio <= whole / held <= ratio


@pytest.mark.integration
def test_backward_pass_keeps_no_dequantized_kernel():
    objective = adapt(classifier(MODEL, 3, "mean"), qlora("nf4"))
    trained, frozen = split(objective, nn.meta.unbox(jax.eval_shape(objective.init, jax.random.key(0))))
    gradient = jax.make_jaxpr(lambda t, f, b: summed_gradients(objective, t, b, 1, f)[0])(
        trained, frozen, batch_of(1, 16)
    )
    forward = next(eqn for eqn in gradient.jaxpr.eqns if eqn.primitive.name == "scan")
    saved = [v.aval for v in forward.outvars]
    # Two layers of the smallest matrix have 2 x 128 x 64 elements; two layers of activations 2 x 16 x 128.
    assert saved and all(aval.size < 2 * 128 * 64 for aval in saved), saved


@pytest.mark.integration
@pytest.mark.parametrize("how", often(HOW, "nf4"))
def test_mesh_does_not_change_the_quantized_loss_and_gradient(how):
    objective = adapt(classifier(MODEL, 3, "mean"), qlora(how))
    _, params = params_of(MODEL, how)
    batch = batch_of(8, 16)

    def gradient(trained, frozen, batch):
        return summed_gradients(objective, trained, batch, 1, frozen)

    expected = jax.jit(gradient)(*split(objective, params), batch)
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, parameter_shardings(jax.eval_shape(objective.init, jax.random.key(0)), mesh))
        found = jax.jit(gradient)(*split(objective, placed), put_batch(batch, mesh))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_mesh_that_splits_a_block_is_refused():
    objective = adapt(classifier(MODEL, 3, "mean"), qlora("nf4"))
    message = (
        "config.mesh.fsdp=4 must divide the 2 blocks of the embed axis that config.adapt.base_quantization='nf4' "
        "needs; use another mesh, or 'int8'"
    )
    with pytest.raises(UserError, match=message) as caught:
        abstract_params(objective, mesh_of(fsdp=4))
    assert "\n" not in str(caught.value) and str(caught.value).count("blocks of the embed axis") == 1
    abstract_params(adapt(classifier(MODEL, 3, "mean"), qlora("int8")), mesh_of(fsdp=4))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (tiny_model(), "'nf4' needs a multiple of 64 inputs in every matrix, but '(query|key|value|output)' has 32"),
        (
            tiny_model(embed_dim=64, head_dim=16, num_experts=2, experts_per_token=1),
            "'nf4' is not supported for '(gate|up|down)', a matrix of the model's experts; expected 'none'",
        ),
    ],
)
def test_kernels_that_cannot_be_quantized_are_refused(model, message):
    how = dataclasses.replace(qlora("nf4"), targets=("query",))
    with pytest.raises(UserError, match=message):
        adapt(classifier(model, 3, "mean"), how)
