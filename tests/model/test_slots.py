"""Continuous batching: a text in a slot is the text that it would be alone, whatever the other slots contain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import VOCAB, init, tiny_model

from model.heads import language_model
from model.sampling import Prompts, Sampling, sample
from model.slots import Slots, SlotSampling, decode, draw, empty_slots, insert, prompt_widths, slot_sampling
from tests.model.test_sampling import VARIANTS, greedy_without_cache

COLUMNS = 16
GREEDY = Sampling()


def put(model, params, slots, slot, prompt, sampling=GREEDY, width=8):
    padded = np.zeros((1, width), np.int32)
    padded[0, width - len(prompt) :] = prompt
    prompts = Prompts(padded, np.array([len(prompt)], np.int32))
    return insert(model, params, slots, prompts, np.int32(slot), slot_sampling(sampling, 0), columns=COLUMNS)


def take(model, params, slots, texts, count):
    """Decodes `count` tokens; appends them to the texts, slot -> tokens."""
    tokens, slots = decode(model, params, slots, steps=count)
    for slot, ids in texts.items():
        ids += np.asarray(tokens)[slot].tolist()
    return slots


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(
            changes, id=name, marks=[] if name in ("grouped heads", "sliding window") else pytest.mark.integration
        )
        for name, changes in VARIANTS.items()
    ],
)
def test_texts_that_come_and_go_equal_uncached_texts(variant):
    model = tiny_model(**variant)
    params = init(language_model(model))
    slots = empty_slots(model, params, slots=3, columns=COLUMNS)
    prompts = {"a": [1, 5, 9, 30, 7], "b": [1, 44], "c": [1, 12, 13, 50, 51, 52, 8], "d": [1, 60]}
    got = {name: [] for name in prompts}
    slots = put(model, params, slots, 2, prompts["a"])
    slots = take(model, params, slots, {2: got["a"]}, 2)
    slots = put(model, params, slots, 0, prompts["b"])
    slots = take(model, params, slots, {2: got["a"], 0: got["b"]}, 2)
    slots = put(model, params, slots, 1, prompts["c"])
    # The slot of "a" is taken by "d", whose text is shorter than what "a" left in the cache.
    slots = put(model, params, slots, 2, prompts["d"])
    for _ in range(2):
        slots = take(model, params, slots, {0: got["b"], 1: got["c"], 2: got["d"]}, 2)
    for name, prompt in prompts.items():
        expected = greedy_without_cache(model, params, prompt, len(got[name]))
        assert got[name][: len(expected)] == expected, name
    assert {name: len(ids) for name, ids in got.items()} == {"a": 4, "b": 6, "c": 4, "d": 4}


def test_a_slot_computes_the_same_bits_beside_other_texts():
    model = tiny_model(sliding_window=(3, 0))
    params = init(language_model(model))
    empty = empty_slots(model, params, slots=3, columns=COLUMNS)
    alone = put(model, params, empty, 0, [1, 44, 9])
    _, alone = decode(model, params, alone, steps=2)
    expected = np.asarray(alone.logits_SV)[0]
    crowded = empty_slots(model, params, slots=3, columns=COLUMNS)
    crowded = put(model, params, crowded, 2, [1, 5, 9, 30, 7])
    _, crowded = decode(model, params, crowded, steps=2)
    crowded = put(model, params, crowded, 0, [1, 8, 8, 8, 8, 8])
    crowded = put(model, params, crowded, 1, [1, 44, 9])
    _, crowded = decode(model, params, crowded, steps=2)
    np.testing.assert_array_equal(np.asarray(crowded.logits_SV)[1], expected)


OPTIONS = {
    "temperature": Sampling(0.7),
    "top_k": Sampling(1.0, top_k=5),
    "top_p": Sampling(1.3, top_p=0.6),
    "top_k, then top_p": Sampling(1.5, top_k=4, top_p=0.5),
    "min_p": Sampling(0.9, min_p=0.2),
    "penalty": Sampling(0.0, repetition_penalty=1.4),
    "all": Sampling(0.8, 7, 0.9, 0.05, 1.2),
    "greedy": Sampling(),
}


def test_each_slot_draws_as_a_batch_with_its_options_would():
    rng = np.random.default_rng(0)
    options = list(OPTIONS.values())
    count = len(options)
    seen = rng.random((count, VOCAB)) < 0.3
    columns = [[getattr(each, name) for each in options] for name in Sampling.__dataclass_fields__]
    kinds = (np.float32, np.int32, np.float32, np.float32, np.float32)
    sampling = [np.array(values, kind) for values, kind in zip(columns, kinds, strict=True)]
    drawn = set()
    for number in range(20):
        logits = 3 * rng.standard_normal((count, VOCAB)).astype(np.float32)
        seeds = np.arange(count, dtype=np.uint32) + number
        counts = np.full(count, number, np.int32)
        slots = Slots(jnp.asarray(logits), None, jnp.asarray(seen), counts, SlotSampling(*sampling, seeds))
        got = np.asarray(jax.jit(draw)(slots)).tolist()
        for row, each in enumerate(options):
            key = jax.random.fold_in(jax.random.key(seeds[row]), number)
            expected = sample(logits[row : row + 1], seen[row : row + 1], key, each)
            assert got[row] == int(expected[0]), each
        drawn |= {token == int(logits[row].argmax()) for row, token in enumerate(got)}
    assert drawn == {True, False}


@pytest.mark.parametrize(("columns", "widths"), [(64, [64]), (100, [64, 100]), (256, [64, 128, 256]), (20, [20])])
def test_prompts_are_padded_to_few_widths(columns, widths):
    assert prompt_widths(columns) == widths
