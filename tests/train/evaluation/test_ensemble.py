"""Two models together are used only where validation rows show that they are better, and their sums are calibrated."""

import numpy as np
import pytest

from train.evaluation.calibration import UNSEEN, Decisions, calibration_error, softmax
from train.evaluation.ensemble import fit_weights

CLASSES = 5


def drawn(count, noise, seed):
    """Returns (labels, logits of two models that see the same label through noise of their own)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=count)
    truth = np.eye(CLASSES)[labels] * 3.0
    return labels, *(truth + rng.normal(size=(count, CLASSES)) * scale for scale in noise)


def decisions(logits, labels):
    return Decisions(logits, labels, np.arange(len(labels)))


def accuracy(logits, labels):
    return (logits.argmax(-1) == labels).mean()


def test_two_models_with_errors_of_their_own_are_better_together():
    labels, model, linear = drawn(400, (1.5, 1.5), 0)
    weights = fit_weights(decisions(model, labels), linear)
    fresh, model, linear = drawn(2000, (1.5, 1.5), 1)
    both = weights.model * model + weights.linear * linear
    assert accuracy(both, fresh) > max(accuracy(model, fresh), accuracy(linear, fresh)) + 0.02
    assert calibration_error(decisions(both, fresh), 1.0).value < 0.03
    assert 0.5 < weights.model / weights.linear < 2.0


def test_the_weights_contain_the_temperature():
    """A model whose logits are ten times too large gets a tenth of the weight."""
    labels, model, linear = drawn(400, (1.5, 1.5), 0)
    weights = fit_weights(decisions(model, labels), linear)
    scaled = fit_weights(decisions(10.0 * model, labels), linear)
    # The rows that count as labeled by the model itself are as sure as it is, so it is not exactly a tenth.
    assert scaled.model == pytest.approx(weights.model / 10.0, rel=0.1)
    assert scaled.linear == pytest.approx(weights.linear, rel=0.1)


@pytest.mark.parametrize("rows", [8, 60, 400])
def test_a_model_of_noise_does_not_join(rows):
    for seed in range(20):
        labels, model, _ = drawn(rows, (1.0, 1.0), seed)
        noise = np.random.default_rng(100 + seed).normal(size=(rows, CLASSES))
        assert fit_weights(decisions(model, labels), noise) is None


def test_a_few_rows_do_not_decide():
    labels, model, linear = drawn(6, (1.5, 0.1), 0)
    assert fit_weights(decisions(model, labels), linear) is None


def test_rows_with_a_class_that_the_model_lacks_do_not_count():
    labels, model, linear = drawn(400, (1.5, 1.5), 0)
    weights = fit_weights(decisions(model, labels), linear)
    more = np.concatenate([labels, np.full(100, UNSEEN)])
    odd = np.random.default_rng(0).normal(size=(100, CLASSES))
    padded = fit_weights(decisions(np.concatenate([model, odd]), more), np.concatenate([linear, odd]))
    np.testing.assert_allclose(padded, weights, rtol=1e-6)
    assert fit_weights(decisions(odd, np.full(100, UNSEEN)), odd) is None


def test_a_perfect_linear_model_does_not_silence_the_model():
    """Without an error, the loss falls with the weight; the model's own rows keep both finite."""
    labels, model, linear = drawn(300, (1.5, 0.0), 0)
    weights = fit_weights(decisions(model, labels), linear)
    assert weights.linear < 20.0 and np.isfinite(softmax(weights.model * model + weights.linear * linear)).all()
