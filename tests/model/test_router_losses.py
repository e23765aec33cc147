"""Every head carries the losses of routers, with the same meaning whatever part of the tokens has a target."""

import jax
import numpy as np
import pytest
from conftest import init, tiny_model

from data.examples import text_segment
from model.heads import RouterLosses, classifier, language_model, multi_label_classifier
from model.task_heads import preference, regressor, reward, span
from model.transformer import forward_with_routers
from tests.model.test_task_heads import answered, batch_of, classified, compared, labelled, tagged, valued, words
from tests.often import often
from train.step import summed_gradients

MODEL = tiny_model(num_layers=2, embed_dim=32, num_experts=4, experts_per_token=2, expert_dim=16, expert_every=2)
ROUTER = RouterLosses(z=0.03, balance=0.2)


def answered_by_the_assistant(rng):
    tokens = [1, *words(rng), 4, *words(rng), 2]
    return (text_segment(tokens, [i > tokens.index(4) for i in range(len(tokens))]),)


HEADS = {
    "chat": (lambda router: language_model(MODEL, router=router), answered_by_the_assistant),
    "classes": (lambda router: classifier(MODEL, 3, "mean", router=router), classified),
    "labels": (lambda router: multi_label_classifier(MODEL, 3, "last", router=router), labelled),
    "tags": (lambda router: classifier(MODEL, 4, "none", router=router), tagged),
    "value": (lambda router: regressor(MODEL, "last", router), valued),
    "span": (lambda router: span(MODEL, router), answered),
    "reward": (lambda router: reward(MODEL, router), lambda rng: compared(rng, True)),
    "preference": (lambda router: preference(MODEL, 0.1, 8, router), lambda rng: compared(rng, False)),
}


def expected_losses(params, rows, weight_B):
    """Returns the losses of routers of all rows: the mean over a row's tokens, times the row's weight."""
    one_row = jax.jit(lambda row: forward_with_routers(MODEL, params["backbone"], row)[1])
    total = 0.0
    for row, weight in zip(rows, weight_B, strict=True):
        routers = one_row(row)
        loss = ROUTER.z * routers.z.sum() + ROUTER.balance * routers.balance.sum()
        total += float(loss / routers.tokens.sum()) * MODEL.expert_layers * weight
    return total


@pytest.mark.integration
@pytest.mark.parametrize("name", often(HEADS, "preference"))
def test_each_head_adds_the_losses_of_routers_however_a_batch_is_cut(name):
    make_objective, make_example = HEADS[name]
    _, batch = batch_of(make_example, 24, 3)
    batch = {key: np.array(array[:4]) for key, array in batch.items()}
    batch["weights"][3] = 0.0  # a row that only fills up the batch
    objective = make_objective(ROUTER)
    params = init(objective)
    plain = jax.jit(make_objective(RouterLosses()).loss)(params, batch)
    row_loss = jax.jit(make_objective(RouterLosses()).loss)
    rows = [{key: array[row : row + 1] for key, array in batch.items()} for row in range(4)]
    weight_B = [float(row_loss(params, row).weight) for row in rows]
    assert weight_B[3] == 0.0 and sum(weight_B) == pytest.approx(float(plain.weight))
    whole, halves = (jax.jit(lambda p, n=n: summed_gradients(objective, p, batch, n))(params) for n in (1, 2))
    for grads, sums in (whole, halves):
        assert float(sums.nll) == pytest.approx(float(plain.nll), rel=1e-5)
        added = float(sums.objective) - float(plain.objective)
        assert added == pytest.approx(expected_losses(params, rows, weight_B), rel=1e-4)
        assert np.abs(grads["backbone"]["layers"]["experts"]["router"]["weight"]).max() > 0
    for a, b in zip(*(jax.tree.leaves(grads) for grads, _ in (whole, halves)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
