"""Contexts are batched by length and by what they begin with, and each score is that of the context alone."""

import numpy as np
import pytest
from conftest import init, tiny_model

from data.tokenizer_training import train_tokenizer
from model.heads import language_model
from tests.often import often
from train.distributed.mesh import single_device_mesh
from train.evaluation import continuations, likelihood
from train.evaluation.continuations import continuation_likelihoods
from train.evaluation.likelihood import chunk_size
from train.generation.language_model import LanguageModel

BYTES = train_tokenizer("bytes", [])
MODEL = tiny_model(vocab_size=320, context_length=512)
MESH = single_device_mesh()


def texts(count, lengths, common=(), seed=0):
    rng = np.random.default_rng(seed)
    return [[*common, *rng.integers(3, 259, rng.integers(*lengths)).tolist()] for _ in range(count)]


def batches(contexts, several=None):
    return list(continuations._batches(contexts, several or [[[5]]] * len(contexts), MESH))


def check(found, contexts):
    """Each context is in one batch, where its common tokens are there and its last tokens fit."""
    assert sorted(number for batch in found for number in batch.numbers) == list(range(len(contexts)))
    for batch in found:
        own = [contexts[number] for number in batch.numbers]
        assert len({tuple(context[: batch.common]) for context in own}) == 1
        for context in own:
            # Between its common and its last tokens nothing is missing, and nothing stands before the common ones.
            assert batch.common < len(context) <= batch.common + batch.width
            assert not batch.common or len(context) >= batch.width


@pytest.mark.parametrize(
    "contexts",
    [
        texts(50, (1, 400)),
        texts(50, (1, 400), common=range(3, 133)),
        [*texts(20, (1, 40), common=range(3, 203)), *texts(20, (1, 40), common=range(50, 250)), *texts(3, (1, 300))],
        [list(range(3, 131))] * 12,
        texts(40, (1, 400), common=range(3, 67)),
        [[5]],
    ],
    ids=["nothing common", "all", "two kinds", "the same", "little common", "one"],
)
def test_batches_hold_each_context_once_and_whole(contexts):
    check(batches(contexts), contexts)


def test_common_tokens_are_read_once_for_contexts_that_share_them():
    contexts = texts(30, (10, 30), common=range(3, 203))
    assert {(batch.common, batch.width <= 48) for batch in batches(contexts)} == {(192, True)}
    few = batches(contexts[:7])
    assert {batch.common for batch in few} == {0}


def test_few_contexts_compile_few_widths():
    contexts = texts(16, (200, 600))
    assert len({batch.width for batch in batches(contexts)}) <= 2
    assert len({batch.width for batch in batches(texts(2000, (200, 600)))}) == 4


def test_a_batch_is_not_larger_than_its_share_of_memory():
    found = batches(texts(500, (200, 500)))
    assert all(len(batch.numbers) * batch.width <= 4096 for batch in found)
    assert len({len(batch.numbers) for batch in found}) <= 6


@pytest.mark.integration
@pytest.mark.parametrize("common", often([0, 130], 130))
def test_scores_do_not_depend_on_what_is_scored_together(common):
    params = init(language_model(MODEL))
    model = LanguageModel(MODEL, params, BYTES, "", BYTES.eos_id, MESH)
    contexts = texts(10, (1, 60), common=list(range(3, 3 + common)))
    several = [texts(1 + number % 3, (1, 6), seed=number) for number in range(10)]
    together = continuation_likelihoods(model, contexts, several)
    for number, scores in enumerate(together):
        (alone,) = continuation_likelihoods(model, [contexts[number]], [several[number]])
        assert [score.nats for score in scores] == pytest.approx([score.nats for score in alone], abs=1e-4)
        assert [score.greedy for score in scores] == [score.greedy for score in alone]


def test_a_batch_of_contexts_that_share_much_is_not_larger_than_its_cache():
    contexts = [[*range(3, 2003), number] for number in range(100)]
    found = batches(contexts)
    assert {batch.common for batch in found} == {1984}
    assert all(len(batch.numbers) * (batch.common + batch.width) <= 8192 for batch in found)
    check(found, contexts)


@pytest.mark.integration
def test_logits_of_few_positions_exist_at_a_time(monkeypatch):
    params = init(language_model(MODEL))
    model = LanguageModel(MODEL, params, BYTES, "", BYTES.eos_id, MESH)
    contexts, several = texts(6, (5, 9)), [texts(2, (1, 6), seed=number) for number in range(6)]
    whole = continuation_likelihoods(model, contexts, several)
    asked = []
    monkeypatch.setattr(likelihood, "_LOGITS_PER_CHUNK", 6)
    monkeypatch.setattr(continuations, "chunk_size", lambda *sizes: asked.append(chunk_size(*sizes)) or asked[-1])
    cut = continuation_likelihoods(model, contexts, several)
    assert max(asked) <= 3  # of up to 5 tokens
    for before, after in zip(whole, cut, strict=True):
        assert [score.nats for score in after] == pytest.approx([score.nats for score in before], abs=1e-5)
