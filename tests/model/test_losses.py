"""Values and gradients of the chunked cross-entropy against Optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import mesh_of

from model import losses
from model.losses import LossOptions


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 12, 8)), jnp.float32)
    table = jnp.asarray(rng.standard_normal((17, 8)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 17, (2, 12)))
    weights = jnp.asarray(rng.integers(0, 2, (2, 12)), jnp.float32)
    return x, table, targets, weights


def reference(x, table, targets, weights, softcap, z_loss):
    z = jnp.einsum("btd,vd->btv", x, table)
    z = softcap * jnp.tanh(z / softcap) if softcap else z
    nll = optax.softmax_cross_entropy_with_integer_labels(z, targets)
    return ((nll + z_loss * jnp.square(jax.nn.logsumexp(z, -1))) * weights).sum()


@pytest.mark.integration
@pytest.mark.parametrize("chunk", [0, 3, 12])
@pytest.mark.parametrize(("softcap", "z_loss"), [(0.0, 0.0), (5.0, 0.0), (0.0, 0.1), (5.0, 0.1)])
@pytest.mark.parametrize("few_targets", [False, True])
def test_value_and_gradient_equal_optax(inputs, chunk, softcap, z_loss, few_targets):
    x, table, targets, weights = inputs

    def ours(x, table):
        return losses.cross_entropy(
            x, table, targets, weights, LossOptions("vocab", softcap, z_loss, chunk=chunk, few_targets=few_targets)
        ).objective

    expected = jax.value_and_grad(reference, argnums=(0, 1))(x, table, targets, weights, softcap, z_loss)
    got = jax.value_and_grad(ours, argnums=(0, 1))(x, table)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, expected)
    np.testing.assert_allclose(ours(x, table), expected[0], rtol=1e-6)


def test_smoothing_equals_cross_entropy_with_smoothed_labels(inputs):
    x, table, targets, weights = inputs

    def smoothed(x, table):
        labels = optax.smooth_labels(jax.nn.one_hot(targets, len(table)), 0.2)
        return (optax.softmax_cross_entropy(jnp.einsum("btd,vd->btv", x, table), labels) * weights).sum()

    def ours(x, table):
        sums = losses.cross_entropy(x, table, targets, weights, LossOptions(smoothing=0.2, chunk=4))
        return sums.objective, sums.nll

    expected = jax.value_and_grad(smoothed, argnums=(0, 1))(x, table)
    (value, nll), gradient = jax.value_and_grad(ours, argnums=(0, 1), has_aux=True)(x, table)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), (value, gradient), expected)
    np.testing.assert_allclose(ours(x, table)[0], expected[0], rtol=1e-6)
    assert float(nll) == pytest.approx(float(reference(x, table, targets, weights, 0.0, 0.0)), rel=1e-6)


@pytest.mark.integration
@pytest.mark.parametrize("vocabulary", [16, 1024], ids=["gathers the table", "gathers the tokens"])
@pytest.mark.parametrize("sizes", [{"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "context": 2}], ids=str)
@pytest.mark.parametrize("few_targets", [False, True])
def test_mesh_does_not_change_value_and_gradient(sizes, vocabulary, few_targets):
    rng = np.random.default_rng(1)
    x, table = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 32, 8), (vocabulary, 8)))
    targets = rng.integers(0, vocabulary, (4, 32))
    weights = rng.integers(0, 2, (4, 32)).astype(np.float32)

    def ours(x, table):
        options = LossOptions("vocab", 5.0, 0.1, chunk=4, few_targets=few_targets)
        return losses.cross_entropy(x, table, targets, weights, options).objective

    expected = jax.value_and_grad(reference, argnums=(0, 1))(x, table, targets, weights, 5.0, 0.1)
    with jax.set_mesh(mesh_of(**sizes)):
        got = jax.device_get(jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))(x, table))
        nll = jax.device_get(jax.jit(lambda x, t: losses.token_nll(x, t, targets, softcap=5.0, chunk=4))(x, table))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, expected)
    np.testing.assert_allclose(nll, losses.token_nll(x, table, targets, softcap=5.0), rtol=1e-5)


def test_masked_tokens_get_exactly_zero_gradient(inputs):
    x, table, targets, weights = inputs
    gradient = jax.grad(lambda x: losses.cross_entropy(x, table, targets, weights, LossOptions(z_loss=0.1)).objective)(
        x
    )
    assert (np.asarray(gradient)[np.asarray(weights) == 0] == 0).all()
    assert (np.abs(np.asarray(gradient)[np.asarray(weights) == 1]).max(-1) > 0).all()


@pytest.mark.parametrize("chunk", [3, 5, 100])
def test_a_chunk_of_rows_that_are_scored_need_not_divide_them(inputs, chunk):
    x, table, targets, *_ = inputs
    nll = losses.token_nll(x, table, targets, softcap=5.0, chunk=chunk)
    np.testing.assert_allclose(nll, losses.token_nll(x, table, targets, softcap=5.0), rtol=1e-5)


def test_token_nll_sums_to_the_loss(inputs):
    x, table, targets, weights = inputs
    nll = losses.token_nll(x, table, targets, softcap=5.0, chunk=4)
    sums = losses.cross_entropy(x, table, targets, weights, LossOptions(softcap=5.0, z_loss=0.3))
    assert float((nll * weights).sum()) == pytest.approx(float(sums.nll), rel=1e-6)
    assert float(sums.weight) == float(weights.sum()) and float(sums.objective) > float(sums.nll)


def test_logits_exist_only_one_chunk_at_a_time(inputs):
    """The compiled gradient needs memory for one chunk's logits, not for the whole row's."""
    x, table = jnp.ones((2, 64, 8)), jnp.ones((1024, 8))
    targets, weights = jnp.zeros((2, 64), jnp.int32), jnp.ones((2, 64))

    def loss(x, table, chunk):
        return losses.cross_entropy(x, table, targets, weights, LossOptions(chunk=chunk)).objective

    def temporary(chunk):
        compiled = jax.jit(jax.grad(lambda x, t: loss(x, t, chunk), argnums=(0, 1))).lower(x, table).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(8) < temporary(0) / 3


def test_on_one_cpu_the_logits_are_cut_into_chunks_and_not_those_of_few_classes(monkeypatch):
    monkeypatch.setattr(losses, "_CACHED_LOGITS", 2**14)
    monkeypatch.setattr(losses, "_FEWEST_TOKENS", 32)
    chosen = LossOptions(chunk=24)

    def chunk(symbols, options=LossOptions(), length=48):  # noqa: B008 - frozen
        return losses._with_chunk(options, jnp.ones((2, length, 8)), jnp.ones((symbols, 8))).chunk

    # 16,384 logits: of 256 symbols 64 tokens, so 32 positions of 2 rows, of which 24 is the largest that divides 48.
    assert (chunk(256), chunk(1024), chunk(2)) == (24, 16, 48)
    assert chunk(1024, chosen) == 24
    assert chunk(1024, length=47) == 0  # a prime number
    assert chunk(1024, LossOptions(few_targets=True)) == 0
    with jax.set_mesh(mesh_of(fsdp=2)):
        assert chunk(1024) == 0


@pytest.mark.parametrize("chunk", [0, 2])
@pytest.mark.parametrize("targets_of_rows", [(0, 0), (4, 1), (3, 4)], ids=str)
def test_chunks_without_targets_are_skipped(chunk, targets_of_rows):
    """Positions that are not in the loss have no number at all, and neither value nor gradient sees them."""
    rng = np.random.default_rng(2)
    table, targets = jnp.asarray(rng.standard_normal((17, 8)), jnp.float32), jnp.asarray(rng.integers(0, 17, (2, 16)))
    weights = np.zeros((2, 16), np.float32)
    for row, count in enumerate(targets_of_rows):
        weights[row, rng.permutation(16)[:count]] = 0.5
    # What shares a chunk with a target is computed; the chunks begin with the targets, so that is the first ones.
    used = -(-max(targets_of_rows) // 2) * 2
    order = np.argsort(weights == 0, axis=1, kind="stable")
    x = rng.standard_normal((2, 16, 8)).astype(np.float32)
    np.put_along_axis(x, order[:, used:, None], np.nan, axis=1)

    def loss(x, table, options):
        return losses.cross_entropy(x, table, targets, jnp.asarray(weights), options).objective

    ours = jax.jit(
        jax.value_and_grad(lambda x, t: loss(x, t, LossOptions(chunk=chunk, few_targets=True)), argnums=(0, 1))
    )
    expected = jax.value_and_grad(lambda x, t: loss(x, t, LossOptions()), argnums=(0, 1))(jnp.nan_to_num(x), table)
    got = ours(x, table)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected)
    np.testing.assert_allclose(loss(x, table, LossOptions(chunk=chunk, few_targets=True)), expected[0], rtol=1e-5)
