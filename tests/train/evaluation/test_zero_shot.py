"""Zero-shot choices and texts equal the computation without a KV cache, also on a mesh."""

import jax
import numpy as np
import pytest
from conftest import init, mesh_of, tiny_model

from data.tokenizer_training import train_tokenizer
from model.heads import language_model, unembedding
from model.losses import logits
from model.sharding import parameter_shardings
from model.transformer import forward
from tests.designs import DESIGNS, design
from tests.often import often
from train.distributed.mesh import single_device_mesh
from train.evaluation.zero_shot import few_shot_prompt, rank_choices
from train.generation.decode import generate_text
from train.generation.language_model import GenerationOptions, LanguageModel

BYTES = train_tokenizer("bytes", [])
MODELS = {"plain": {}, "window": {"sliding_window": (4, 0), "logit_softcap": 5.0, "num_kv_heads": 1}}


def model_of(name):
    return tiny_model(vocab_size=320, **MODELS[name])


def language_model_of(model, params, mesh=None, tokenizer=BYTES):
    return LanguageModel(model, params, tokenizer, "", tokenizer.eos_id, mesh or single_device_mesh())


def prompts_of(count, seed=0):
    rng = np.random.default_rng(seed)
    return [[1, *rng.integers(3, 259, rng.integers(1, 14)).tolist()] for _ in range(count)]


def row_of(tokens):
    tokens = np.array(tokens, np.int32)[None]
    return {
        "tokens": tokens,
        "segment_ids": tokens * 0 + 1,
        "positions": np.arange(tokens.shape[1], dtype=np.int32)[None],
    }


@pytest.mark.integration
@pytest.mark.parametrize("name", often(MODELS, "window"))
def test_choice_scores_equal_scoring_prompt_and_choice_as_one_text(name):
    model = model_of(name)
    params = init(language_model(model))
    prompts, choices = prompts_of(3), [[10], [20, 21, 22], [30, 31]]
    found = rank_choices(language_model_of(model, params), prompts, [choices] * 3)
    for i, prompt in enumerate(prompts):
        for j, choice in enumerate(choices):
            tokens = [*prompt, *choice]
            batch = row_of(tokens[:-1]) | {"targets": np.array(tokens[1:], np.int32)[None]}
            nll = np.asarray(language_model(model).predict(params, batch))[0, -len(choice) :]
            assert found[i, j] == pytest.approx(-nll.mean(), abs=2e-5)


def greedy(model, params, prompt, count):
    """Greedy decoding that recomputes everything for each token."""
    tokens = list(prompt)
    for _ in range(count):
        x = forward(model, params["backbone"], row_of(tokens))
        tokens.append(int(logits(x[:, -1:], unembedding(params), model.logit_softcap)[0, 0].argmax()))
        if tokens[-1] == BYTES.eos_id:
            break
    return BYTES.decode(tokens[len(prompt) :])


@pytest.mark.integration
@pytest.mark.parametrize("name", often(MODELS, "window"))
def test_generated_texts_equal_decoding_without_a_cache(name):
    model = model_of(name)
    params = init(language_model(model))
    prompts = prompts_of(3, seed=1)
    texts = generate_text(language_model_of(model, params), prompts, GenerationOptions(4))
    assert texts == [greedy(model, params, prompt, 4) for prompt in prompts]


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"fsdp": 2, "tensor": 2}, {"data": 3}, {"context": 4}], ids=str)
def test_sharded_parameters_give_the_same_scores_and_texts(sizes):
    model = model_of("plain")
    objective = language_model(model)
    params, prompts, choices = init(objective), prompts_of(3), [[10], [20, 21]]
    one = language_model_of(model, params)
    expected = rank_choices(one, prompts, [choices] * 3), generate_text(one, prompts, GenerationOptions(4))
    mesh = mesh_of(**sizes)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, parameter_shardings(jax.eval_shape(objective.init, jax.random.key(0)), mesh))
        sharded = language_model_of(model, placed, mesh)
        found = rank_choices(sharded, prompts, [choices] * 3), generate_text(sharded, prompts, GenerationOptions(4))
        alone = rank_choices(sharded, prompts[:1], [choices])
    np.testing.assert_allclose(found[0], expected[0], atol=2e-5)
    np.testing.assert_allclose(alone, expected[0][:1], atol=2e-5)
    assert found[1] == expected[1]


SHOTS = [("review: the cat sat\nlabel:", "good"), ("review: a mat\nlabel:", "bad")]
CHOICES = ["good", "bad", "good dog"]


@pytest.mark.parametrize("name", DESIGNS)
@pytest.mark.parametrize("question", ["review: dog ran\nlabel:", "review: dog ran\nlabel: ", "label"])
def test_shots_question_and_choice_have_the_tokens_of_one_text(name, question):
    tokenizer = design(name)
    prompt, answers = few_shot_prompt(SHOTS, question, CHOICES, tokenizer, 500, 0)
    for choice, answer in zip(CHOICES, answers, strict=True):
        text = f"review: the cat sat\nlabel: good\n\nreview: a mat\nlabel: bad\n\n{question} {choice}"
        assert [*prompt, *answer] == tokenizer.encode_prompt(text)
    longest = max(map(len, answers))
    whole = len(prompt) + longest
    for length in range(longest + 2, whole):
        shorter, _ = few_shot_prompt(SHOTS, question, CHOICES, tokenizer, length, 0)
        assert 0 < len(shorter) <= length - longest
    assert few_shot_prompt(SHOTS, question, CHOICES, tokenizer, whole, 0)[0] == prompt


@pytest.mark.integration
@pytest.mark.parametrize("name", DESIGNS)
def test_choices_are_ranked_by_the_likelihoods_of_evaluate_tasks(name):
    """The table and lm-evaluation-harness see the same tokens; the first divides by their number."""
    harness = pytest.importorskip("train.evaluation.harness")
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    model = tiny_model(vocab_size=600, context_length=128)
    opened = language_model_of(model, init(language_model(model)), tokenizer=design(name))
    asked = [few_shot_prompt([], prompt, CHOICES, design(name), 128, 0) for prompt, _ in SHOTS]
    scores = rank_choices(opened, [prompt for prompt, _ in asked], [answers for _, answers in asked])
    pairs = [(prompt, f" {choice}") for prompt, _ in SHOTS for choice in CHOICES]
    requests = [instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0) for pair in pairs]
    found = [nats for nats, _ in harness.Harness(opened).loglikelihood(requests)]
    lengths = np.array([[len(answer) for answer in answers] for _, answers in asked])
    np.testing.assert_allclose((scores * lengths).ravel(), found, rtol=1e-4)
