"""Likelihoods of packed texts, in windows and on a mesh, equal those of each text alone."""

import jax
import numpy as np
import pytest
from conftest import init, mesh_of, tiny_model

from configs.errors import UserError
from data.examples import sliding_windows, text_segment
from data.tokenizer_training import train_tokenizer
from model.heads import language_model, unembedding
from model.losses import logits
from model.sharding import parameter_shardings
from model.transformer import forward
from train.distributed.mesh import single_device_mesh
from train.evaluation.likelihood import likelihoods
from train.evaluation.perplexity import perplexity, summary
from train.generation.language_model import LanguageModel

BYTES = train_tokenizer("bytes", [])
MODEL = tiny_model(vocab_size=320, context_length=64, logit_softcap=5.0)


@pytest.fixture(scope="module")
def params():
    return init(language_model(MODEL))


def model_of(params, mesh=None):
    return LanguageModel(MODEL, params, BYTES, "", BYTES.eos_id, mesh or single_device_mesh())


@jax.jit
def log_probabilities_of_row(params, tokens):
    """(T, V) log-probabilities of the next token at each place of a row."""
    row = tokens[None]
    batch = {"tokens": row, "segment_ids": row * 0 + 1, "positions": np.arange(row.shape[1], dtype=np.int32)[None]}
    x = forward(MODEL, params["backbone"], batch)
    return jax.nn.log_softmax(logits(x, unembedding(params), MODEL.logit_softcap))[0]


def log_probabilities(params, tokens):
    """(T - 1, V) log-probabilities of each token but the first, given those before it."""
    # Padding on the right changes nothing on its left, and one length compiles once.
    row = np.zeros(MODEL.context_length, np.int32)
    row[: len(tokens)] = tokens
    return np.asarray(log_probabilities_of_row(params, row))[: len(tokens) - 1]


def texts(count=40):
    rng = np.random.default_rng(0)
    return [[1, *rng.integers(3, 259, rng.integers(1, 63)).tolist()] for _ in range(count)]


@pytest.mark.integration
def test_likelihoods_equal_those_of_each_text_alone(params):
    segments, expected = [], []
    for i, tokens in enumerate(texts()):
        known = log_probabilities(params, tokens)
        if i % 3 == 0:  # what greedy decoding would generate
            tokens[-1] = int(known[-1].argmax())
        first = len(tokens) - 1 if i % 3 == 0 else 1 + i % max(len(tokens) - 1, 1)
        segments.append(text_segment(tokens, [place >= first for place in range(len(tokens))]))
        chosen = known[np.arange(len(tokens) - 1), tokens[1:]][first - 1 :]
        expected.append((chosen.sum(), len(chosen), bool((chosen == known.max(-1)[first - 1 :]).all())))
    found = likelihoods(model_of(params), segments)
    np.testing.assert_allclose(found.nats, [nats for nats, _, _ in expected], rtol=1e-5)
    assert found.targets.tolist() == [count for _, count, _ in expected]
    assert found.greedy.tolist() == [greedy for _, _, greedy in expected] and 10 < found.greedy.sum() < 30
    mesh = mesh_of(fsdp=2, tensor=2)
    boxed = jax.eval_shape(language_model(MODEL).init, jax.random.key(0))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, parameter_shardings(boxed, mesh))
        shared = likelihoods(model_of(placed, mesh), segments)
    np.testing.assert_allclose(shared.nats, found.nats, rtol=1e-5)


@pytest.mark.parametrize("stride", [1, 3, 8])
@pytest.mark.parametrize("count", [2, 8, 9, 10, 30])
def test_sliding_windows_score_each_token_once_with_as_much_context_as_fits(count, stride):
    tokens = list(range(100, 100 + count))
    seen = []
    for segment in sliding_windows(tokens, 8, stride):
        assert len(segment["tokens"]) <= 8
        for place in np.flatnonzero(segment["weights"]):
            seen.append(int(segment["targets"][place]))
            before = place + 1
            assert before >= min(seen[-1] - 100, 8 - stride + 1)
            assert segment["tokens"][: place + 1].tolist() == tokens[seen[-1] - 100 - before : seen[-1] - 100]
    assert seen == tokens[1:]


def test_perplexity_per_source_equals_scoring_each_window_alone(params, tmp_path):
    contents = {
        "a.txt": "short",
        "b.txt": "a longer text of über sixty bytes, more than one window of tokens",
    }
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
    found = perplexity(model_of(params), f"{tmp_path}/*.txt", "text", window=16, stride=4)
    assert list(found) == [str(tmp_path / name) for name in contents]
    for sums, text in zip(found.values(), contents.values(), strict=True):
        tokens = [1, *BYTES.encode(text), 2]
        nats, done = 0.0, 0
        while done < len(tokens) - 1:
            end = min(done + (4 if done else 16), len(tokens) - 1)
            start = max(end - 16, 0)
            known = log_probabilities(params, tokens[start : end + 1])
            nats -= sum(known[place - 1 - start, tokens[place]] for place in range(done + 1, end + 1))
            done = end
        assert sums.nats == pytest.approx(nats, rel=1e-5)
        assert (sums.tokens, sums.size, sums.documents) == (len(tokens) - 1, len(text.encode()), 1)
    figures = summary(found)
    total = sum(sums.nats for sums in found.values())
    assert figures["bits_per_byte"] == pytest.approx(
        total / np.log(2) / sum(len(t.encode()) for t in contents.values())
    )
    assert figures["perplexity"] == pytest.approx(np.exp(figures["nats_per_token"])) and len(figures["sources"]) == 2


def test_window_or_stride_out_of_range_is_a_one_line_error(params, tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UserError, match="--window=65; expected 1 to 64"):
        perplexity(model_of(params), f"{tmp_path}/a.txt", "text", 65, 1)
    with pytest.raises(UserError, match="--stride=9; expected 1 to --window=8"):
        perplexity(model_of(params), f"{tmp_path}/a.txt", "text", 8, 9)
