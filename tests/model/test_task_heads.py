"""Each head: packed rows equal examples alone, masks hold, a separable set is learned, meshes agree."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import VOCAB, init, mesh_of, tiny_model

from data.examples import labeled_segment, pack, text_segment
from model.heads import classifier, language_model, multi_label_classifier
from model.sharding import parameter_shardings
from model.task_heads import CANDIDATE, END, START, preference, regressor, reward, span
from tests.often import often
from train.distributed.placement import put_batch

MODEL = tiny_model(num_layers=1, embed_dim=32)
LENGTH = 32
WORDS = np.arange(10, VOCAB)
MARKS = (4, 5, 6)


def words(rng, low=3, high=9):
    return rng.choice(WORDS, rng.integers(low, high)).tolist()


def classified(rng):
    kind = int(rng.integers(3))
    tokens = [1, *words(rng), MARKS[kind], *words(rng), 2]
    return (labeled_segment(tokens, {len(tokens) - 1: kind}, {len(tokens) - 1: 1.0}, np.int32),)


def labelled(rng):
    has = rng.random(3) < 0.5
    tokens = [1, *words(rng), *(m for m, there in zip(MARKS, has, strict=True) if there), *words(rng), 2]
    segment = labeled_segment(tokens, {}, {len(tokens) - 1: 1.0}, np.float32)
    targets = np.zeros((len(tokens), 3), np.float32)
    targets[-1] = has
    return (segment | {"targets": targets},)


def tagged(rng):
    tokens = [1, *rng.choice([*WORDS[:4], *MARKS], 8).tolist(), 2]
    targets = {i: MARKS.index(t) + 1 if t in MARKS else 0 for i, t in enumerate(tokens[:-1]) if i}
    return (labeled_segment(tokens, targets, dict.fromkeys(targets, 1.0), np.int32),)


def valued(rng):
    count = int(rng.integers(5))
    tokens = [1, *rng.permutation([*words(rng, 2, 6), *[MARKS[0]] * count]).tolist(), 2]
    return (labeled_segment(tokens, {len(tokens) - 1: count - 2.0}, {len(tokens) - 1: 1.0}, np.float32),)


def answered(rng):
    before, answer, after = words(rng), words(rng, 1, 3), words(rng)
    there = rng.random() < 0.8
    inner = [*before, MARKS[0], *answer, MARKS[1], *after] if there else [*before, *after]
    tokens = [1, *inner, 2]
    start, end = (len(before) + 1, len(before) + 2 + len(answer)) if there else (len(tokens) - 1,) * 2
    flags = dict.fromkeys(range(1, len(tokens)), CANDIDATE)
    flags[start] |= START
    flags[end] |= END
    weights = {start: 0.5}
    weights[end] = weights.get(end, 0.0) + 0.5
    return (labeled_segment(tokens, flags, weights, np.int32),)


def compared(rng, score):
    prompt = words(rng, 1, 4)
    segments = []
    for mark in MARKS[:2]:
        tokens = [1, *prompt, mark, *words(rng, 1, 3), 2]
        if score:
            segments.append(labeled_segment(tokens, {}, {len(tokens) - 1: 1.0}, np.int32))
        else:
            segment = text_segment(tokens, [i > len(prompt) for i in range(len(tokens))])
            segments.append(segment | {"reference": np.zeros(len(tokens) - 1, np.float32)})
    if not score:
        for segment, log_p in zip(segments, (-9.0, -8.0), strict=True):
            segment["reference"][-1] = log_p
    return tuple(segments)


HEADS = {
    "classes": (classifier(MODEL, 3, "mean"), classified),
    "labels": (multi_label_classifier(MODEL, 3, "mean"), labelled),
    "tags": (classifier(MODEL, 4, "none", smoothing=0.05), tagged),
    "value": (regressor(MODEL, "mean"), valued),
    "span": (span(MODEL), answered),
    "reward": (reward(MODEL), lambda rng: compared(rng, True)),
    "preference": (preference(MODEL, 0.1, chunk=8), lambda rng: compared(rng, False)),
}


def batch_of(make, count, seed, packed=True):
    rng = np.random.default_rng(seed)
    examples = [make(rng) for _ in range(count)]
    rows = pack(examples, LENGTH, 0, seed)
    if not packed:
        rows = type(rows)(examples, [[i] for i in range(count)], LENGTH, 0)
    return rows, rows.rows(np.arange(len(rows)))


def gradient(objective, params, batch):
    """Returns (the sums of the loss, the gradient)."""

    def loss(params, batch):
        sums = objective.loss(params, batch)
        return sums.objective, sums

    grads, sums = jax.jit(jax.grad(loss, has_aux=True))(params, batch)
    return sums, grads


@pytest.mark.integration
@pytest.mark.parametrize("name", HEADS)
def test_packed_rows_have_the_same_loss_as_examples_alone(name):
    objective, make = HEADS[name]
    params = init(objective)
    (packed_rows, packed), (rows, alone) = batch_of(make, 12, 0), batch_of(make, 12, 0, packed=False)
    assert len(packed_rows) < len(rows)
    (one, grads), (other, other_grads) = (gradient(objective, params, batch) for batch in (packed, alone))
    assert (one.nll > 0 and one.weight == pytest.approx(float(alone["weights"].sum()) if name != "reward" else 12)) or (
        name == "preference" and one.weight == 12
    )
    np.testing.assert_allclose(jax.tree.leaves(one), jax.tree.leaves(other), rtol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), grads, other_grads)


@pytest.mark.integration
@pytest.mark.parametrize("name", often(HEADS, "tags", "span", "preference"))
def test_masked_examples_have_no_loss_and_no_gradient(name):
    """An example whose weights are 0 has no loss and no gradient, not even for its tokens' embeddings."""
    objective, make = HEADS[name]
    params = init(objective)
    rng = np.random.default_rng(1)
    seen, masked = make(rng), make(rng)
    # This token occurs only in the masked example.
    only = 9
    for segment in masked:
        segment["tokens"][1] = only
        segment["weights"][:] = 0.0
    rows = type(pack([seen], LENGTH, 0, 0))([seen, masked], [[0], [1]], LENGTH, 0)
    batch = rows.rows(np.arange(2))
    sums, grads = gradient(objective, params, batch)
    assert np.isfinite(sums.objective) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    alone = rows.rows(np.arange(1))
    assert sums.objective == pytest.approx(float(gradient(objective, params, alone)[0].objective), rel=1e-5)
    rows_of = grads["backbone"]["embedding"]["table"]
    if name != "preference":  # its tied output table has a gradient for every symbol
        assert not rows_of[only].any() and rows_of[seen[0]["tokens"]].any()
    nothing = batch | {"weights": np.zeros_like(batch["weights"])}
    sums, grads = gradient(objective, params, nothing)
    assert sums.objective == 0 and not any(leaf.any() for leaf in jax.tree.leaves(grads))


def metric_of(name, outputs, rows, reference=None):
    """The metric of each head that must reach 0.95: accuracy, or R^2 of the regression."""
    hits, errors, values = [], [], []
    for row in range(len(rows)):
        for example, places in rows.segment_slices(row):
            segments = rows.examples[example]
            out = [np.asarray(outputs[row, place]) for place in places]
            y, w = segments[0]["targets"], segments[0]["weights"]
            if name == "classes":
                hits.append(out[0][-1].argmax() == y[-1])
            elif name == "labels":
                hits += ((out[0][-1] > 0) == y[-1]).tolist()
            elif name == "tags":
                hits += (out[0].argmax(-1) == y)[w > 0].tolist()
            elif name == "value":
                errors.append((out[0][-1] - y[-1]) ** 2)
                values.append(y[-1])
            elif name == "span":
                scores = np.where((y & CANDIDATE > 0)[:, None], out[0], -np.inf)
                hits.append(y[scores[:, 0].argmax()] & START > 0 and y[scores[:, 1].argmax()] & END > 0)
            elif name == "reward":
                hits.append(out[0][-1] > out[1][-1])
            else:
                log_p = [-(nll * s["weights"]).sum() for nll, s in zip(out, segments, strict=True)]
                hits.append(log_p[0] - log_p[1] > 5.0)  # the margin of the reference is -1
    return 1 - np.mean(errors) / np.var(values) if name == "value" else np.mean(hits)


@pytest.mark.integration
@pytest.mark.parametrize("name", often(HEADS, "classes", "span"))
def test_each_head_learns_a_separable_set(name):
    objective, make = HEADS[name]
    params = init(objective, seed=3)
    optimizer = optax.adam(optax.cosine_decay_schedule(4e-3, 300))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, batch):
        def loss(p):
            sums = objective.loss(p, batch)
            return sums.objective / jnp.maximum(sums.weight, 1e-9), sums.nll / sums.weight

        grads, nll = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, nll

    rows, _ = batch_of(make, 1500, 5)
    order = np.random.default_rng(0)
    for _ in range(300):
        params, state, _ = step(params, state, rows.rows(order.integers(0, len(rows), 16)))
    held_out, batch = batch_of(make, 100, 6)
    assert metric_of(name, np.asarray(jax.jit(objective.predict)(params, batch)), held_out) >= 0.95


@pytest.mark.integration
@pytest.mark.parametrize("name", often(HEADS, "classes", "span", "preference"))
def test_mesh_does_not_change_loss_and_gradient(name):
    objective, make = HEADS[name]
    params = init(objective)
    _, batch = batch_of(make, 40, 7)
    batch = {key: array[:8] for key, array in batch.items()}
    expected = gradient(objective, params, batch)
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        shardings = parameter_shardings(jax.eval_shape(objective.init, jax.random.key(0)), mesh)
        placed = jax.device_put(params, shardings)
        found = gradient(objective, placed, put_batch(batch, mesh))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.integration
def test_dpo_loss_follows_its_equation():
    objective, make = HEADS["preference"]
    params = init(objective)
    rows, batch = batch_of(make, 6, 8)
    nll = np.asarray(language_model(MODEL).predict(params, batch))
    expected = 0.0
    for row in range(len(rows)):
        for example, places in rows.segment_slices(row):
            margin = 0.0
            for sign, place, segment in zip((1, -1), places, rows.examples[example], strict=True):
                log_p = -(nll[row, place] * segment["weights"]).sum()
                margin += sign * (log_p - segment["reference"].sum())
            expected += np.log1p(np.exp(-0.1 * margin))
    assert float(objective.loss(params, batch).nll) == pytest.approx(expected, rel=1e-5)
