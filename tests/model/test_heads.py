"""Classifiers read the states that their pooling selects, in packed rows as in single ones."""

import jax
import numpy as np
import pytest
from conftest import init, tiny_model
from flax import linen as nn

from model.heads import classifier, multi_label_classifier, running_mean
from model.transformer import forward


def row(*examples, length=16):
    batch = {name: np.zeros((1, length), np.int32) for name in ("tokens", "targets", "segment_ids", "positions")}
    batch["weights"] = np.zeros((1, length), np.float32)
    start = 0
    for segment, (tokens, target) in enumerate(examples, 1):
        span = slice(start, start + len(tokens))
        batch["tokens"][0, span], batch["segment_ids"][0, span] = tokens, segment
        batch["positions"][0, span] = np.arange(len(tokens))
        batch["targets"][0, span.stop - 1], batch["weights"][0, span.stop - 1] = target, 1
        start = span.stop
    return batch


@pytest.mark.integration
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_packed_examples_have_the_same_scores_as_alone(pooling):
    objective = classifier(tiny_model(), 3, pooling)
    params = init(objective)
    first, second = ([1, 8, 9, 2], 0), ([1, 30, 31, 32, 33, 2], 2)
    packed = objective.predict(params, row(first, second))[0]
    alone = [objective.predict(params, row(example))[0] for example in (first, second)]
    np.testing.assert_allclose(packed[3], alone[0][3], atol=1e-5)
    np.testing.assert_allclose(packed[9], alone[1][5], atol=1e-5)
    losses = [objective.loss(params, row(*examples)) for examples in ((first, second), (first,), (second,))]
    assert float(losses[0].nll) == pytest.approx(float(losses[1].nll) + float(losses[2].nll), rel=1e-5)
    assert float(losses[0].weight) == 2


def test_pooling_reads_the_last_token_or_the_mean():
    model = tiny_model()
    batch = row(([1, 8, 9, 2], 0))
    params = init(classifier(model, 3, "last"))
    x = np.asarray(forward(model, params["backbone"], batch))[0]
    table = np.asarray(params["head"]["table"])
    last = classifier(model, 3, "last").predict(params, batch)[0, 3]
    mean = classifier(model, 3, "mean").predict(params, batch)[0, 3]
    np.testing.assert_allclose(last, x[3] @ table.T, atol=1e-5)
    np.testing.assert_allclose(mean, x[:4].mean(0) @ table.T, atol=1e-5)


def test_running_mean_stays_within_its_segment():
    x = np.arange(6, dtype=np.float32).reshape(1, 6, 1)
    segments = np.array([[1, 1, 2, 2, 2, 0]])
    np.testing.assert_allclose(running_mean(x, segments)[0, :, 0], [0, 0.5, 2, 2.5, 3, 5])


def test_new_classifier_predicts_uniformly():
    objective = classifier(tiny_model(), 5, "mean")
    params = jax.tree.map(
        lambda box: box.value, jax.jit(objective.init)(jax.random.key(0)), is_leaf=lambda x: hasattr(x, "names")
    )
    sums = objective.loss(params, row(([1, 8, 2], 4)))
    assert float(sums.nll) == pytest.approx(np.log(5), rel=1e-6)


@pytest.mark.integration
def test_multi_label_loss_is_weighted_by_class_and_by_its_target():
    weights = np.array([[0.5, 3.0, 1.0], [4.0, 0.25, 1.0]], np.float32)
    targets = np.array([1.0, 0.0, 1.0], np.float32)
    batch = row(([5] * 8, 0), length=8) | {"targets": np.broadcast_to(targets, (1, 8, 3))}
    plain, weighted = (
        objective.loss(nn.meta.unbox(objective.init(jax.random.key(0))), batch)
        for objective in (
            multi_label_classifier(tiny_model(), 3, "last", class_weights_2V=given) for given in (None, weights)
        )
    )
    # A head of zeros gives every class a probability of 1/2.
    chosen = np.where(targets > 0, weights[1], weights[0])
    assert float(plain.nll) == pytest.approx(np.log(2)) and float(plain.weight) == 1.0
    assert float(weighted.nll) == pytest.approx(np.log(2) * chosen.mean())
    assert float(weighted.weight) == pytest.approx(chosen.mean())
