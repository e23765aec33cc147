"""Attention in both directions: what a token sees, in packed rows, with windows, under every execution option."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import init, mesh_of, tiny_model

from model.cache import CacheSize
from model.flops import visible_fraction
from model.heads import classifier
from model.task_heads import regressor, reward, span
from model.transformer import forward, prefill_layers
from tests.model.test_task_heads import answered, classified, compared
from tests.model.test_task_heads import batch_of as labeled_rows

HEADS = {
    "classes": lambda model: classifier(model, 3, "mean"),
    "tags": lambda model: classifier(model, 3, "none"),
    "number": lambda model: regressor(model, "mean"),
    "span": span,
    "score": reward,
}
WINDOWS = {"no window": (0,), "window": (4,), "windows and none": (4, 0)}


def batch_of(*lengths, total=None):
    """One row of segments with these lengths, then padding."""
    segments = [i for i, n in enumerate(lengths, 1) for _ in range(n)]
    positions = [p for n in lengths for p in range(n)]
    padding = [0] * ((total or len(segments)) - len(segments))
    tokens = np.random.default_rng(len(segments)).integers(3, 64, len(segments))
    found = {"tokens": [*tokens, *padding], "segment_ids": segments + padding, "positions": positions + padding}
    return {name: jnp.asarray([values], jnp.int32) for name, values in found.items()}


def seen(model, params, length, query):
    """Returns the positions whose token changes the state of `query`, in a text of this length."""
    batch = batch_of(length)
    states = jax.jit(lambda tokens: forward(model, params["backbone"], {**batch, "tokens": tokens})[0, query])
    before = states(batch["tokens"])
    found = []
    for place in range(length):
        changed = batch["tokens"].at[0, place].set((batch["tokens"][0, place] - 2) % 61 + 3)
        if np.abs(states(changed) - before).max() > 1e-6:
            found.append(place)
    return found


@pytest.mark.parametrize(
    ("windows", "causal", "expected"),
    [
        ((0,), True, range(8)),
        ((0,), False, range(20)),
        ((4,), True, range(4, 8)),
        ((4,), False, range(4, 11)),
        ((1,), False, range(7, 8)),
    ],
)
def test_a_token_sees_its_window_on_both_sides(windows, causal, expected):
    model = tiny_model(num_layers=1, sliding_window=windows, causal=causal)
    assert seen(model, init(classifier(model, 2, "last")), 20, 7) == list(expected)


@pytest.mark.parametrize("windows", WINDOWS.values(), ids=WINDOWS)
def test_packed_texts_have_the_same_states_as_alone(windows):
    model = tiny_model(sliding_window=windows, causal=False)
    params = init(classifier(model, 2, "last"))["backbone"]
    packed = batch_of(7, 9, 5, total=32)
    found = forward(model, params, packed)[0]
    for segment in (1, 2, 3):
        places = np.flatnonzero(np.asarray(packed["segment_ids"][0]) == segment)
        alone = forward(model, params, {name: values[:, places] for name, values in packed.items()})[0]
        np.testing.assert_allclose(found[places], alone, atol=2e-5)


TARGETS = {"classes": classified, "span": answered, "score": lambda rng: compared(rng, True)}


@pytest.mark.slow
@pytest.mark.parametrize("head", TARGETS)
def test_meshes_and_execution_options_do_not_change_the_gradient(head):
    model = tiny_model(sliding_window=(4, 0), causal=False)
    _, rows = labeled_rows(TARGETS[head], 40, 0)
    batch, params = {name: values[:8] for name, values in rows.items()}, init(HEADS[head](model))
    assert len(batch["tokens"]) == 8

    def gradient(mesh, **execution):
        objective = HEADS[head](dataclasses.replace(model, **execution))
        with jax.set_mesh(mesh):
            return jax.jit(jax.grad(lambda p: objective.loss(p, batch).objective))(params)

    expected = gradient(mesh_of())
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected)) > 1e-3
    for sizes, execution in (
        ({"fsdp": 2, "tensor": 2, "context": 2}, {"remat": "full"}),
        ({"context": 4}, {"scan_layers": False, "remat": "dots"}),
    ):
        found = gradient(mesh_of(**sizes), **execution)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), found, expected)


def test_a_model_that_looks_ahead_does_not_generate():
    model = tiny_model(causal=False)
    params = init(classifier(model, 2, "last"))["backbone"]
    with pytest.raises(ValueError, match="both directions cannot generate"):
        prefill_layers(model, params, jnp.ones((1, 4), jnp.int32), jnp.zeros(1, jnp.int32), CacheSize(8, 1))


@pytest.mark.parametrize("windows", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("causal", [True, False])
def test_flops_count_the_keys_that_a_query_sees(windows, causal):
    model, T = tiny_model(sliding_window=windows, causal=causal), 10
    pairs = [
        (not causal or k <= q) and (not window or abs(q - k) < window)
        for window in model.windows
        for q in range(T)
        for k in range(T)
    ]
    assert visible_fraction(model, T) == pytest.approx(np.mean(pairs))
