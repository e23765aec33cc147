"""Writing and talking: parts add up to the whole, turns are remembered and forgotten, what does not fit is one line."""

import pytest
from absl import flags
from conftest import init, tiny_model

from configs.errors import UserError
from data.tokenizer_training import train_tokenizer
from model.heads import language_model
from model.sampling import Sampling
from train.commands import generate, sampling_flags
from train.distributed.mesh import single_device_mesh
from train.generation import talk as talking
from train.generation.decode import generate_text, stream_text
from train.generation.language_model import GenerationOptions, LanguageModel
from train.generation.talk import talk

BYTES = train_tokenizer("bytes", [])
MODEL = tiny_model(vocab_size=320, context_length=96)


@pytest.fixture(scope="module")
def model():
    return LanguageModel(MODEL, init(language_model(MODEL)), BYTES, "plain", BYTES.eos_id, single_device_mesh())


@pytest.mark.integration
def test_a_stream_adds_up_to_what_is_written_at_once(model):
    prompt = model.encode([{"role": "user", "content": "hello"}], 10)
    for sampling in (Sampling(), Sampling(temperature=0.9, top_p=0.9, repetition_penalty=1.2)):
        options = GenerationOptions(10, sampling, seed=1)
        parts = list(stream_text(model, prompt, options))
        again = list(stream_text(model, prompt, options))
        assert parts == again and len(parts) >= 1
    (whole,) = generate_text(model, [prompt], GenerationOptions(10))
    assert whole == "".join(stream_text(model, prompt, GenerationOptions(10)))


def test_a_talk_remembers_until_it_is_reset(model, monkeypatch):
    prompts = []

    def stream(_, tokens, options):
        prompts.append(BYTES.decode(tokens))
        assert options.stop == (" END",)
        yield from ("", " an", "swer")

    monkeypatch.setattr(talking, "stream_text", stream)
    said = ["one", "", "two", "/reset", "three", "/exit", "four"]
    shown = "".join(talk(model, said, "be kind", GenerationOptions(8, stop=(" END",))))
    assert shown == "answer\n" * 3
    assert prompts[0].startswith("be kind") and "one" in prompts[0]
    assert "one" in prompts[1] and "Assistant: answer" in prompts[1] and "two" in prompts[1]
    assert "one" not in prompts[2] and "be kind" in prompts[2] and len(prompts) == 3


def test_seeds_of_the_turns_stay_within_64_bits(model, monkeypatch):
    seeds = []
    monkeypatch.setattr(talking, "stream_text", lambda _, tokens, options: seeds.append(options.seed) or iter(["yes"]))
    list(talk(model, ["a", "b", "c"], "", GenerationOptions(8, seed=2**63 - 2)))
    assert seeds == [2**63 - 2, 2**63 - 1, -(2**63)]


def test_an_indented_answer_keeps_its_indentation(model, monkeypatch):
    """As `generate` and `serve` write it: one space can belong to the token before the answer."""
    monkeypatch.setattr(talking, "stream_text", lambda *_: iter(["  ", "  return x"]))
    assert "".join(talk(model, ["code"], "", GenerationOptions(8))) == "   return x\n"


def test_a_prompt_without_tokens_is_one_line(model):
    with pytest.raises(UserError, match="the prompt has no tokens; expected some text"):
        model._checked([], 10)


def test_a_default_number_of_tokens_leaves_room_for_the_prompt():
    values = flags.FlagValues()
    generate.define_flags(values)
    values(["generate"])
    assert sampling_flags.options_of(values, {"max_new_tokens": 64}, 64).max_new_tokens == 32
    assert sampling_flags.options_of(values, {"max_new_tokens": 8}, 64).max_new_tokens == 8
    values(["generate", "--max_new_tokens=60"])
    assert sampling_flags.options_of(values, {"max_new_tokens": 64}, 64).max_new_tokens == 60


def test_a_long_talk_loses_its_oldest_turns(model, monkeypatch):
    lengths = []
    monkeypatch.setattr(talking, "stream_text", lambda _, tokens, options: lengths.append(len(tokens)) or iter(["yes"]))
    list(talk(model, [f"line number {i}" for i in range(12)], "", GenerationOptions(16)))
    assert len(lengths) == 12 and max(lengths) <= 80


def test_a_prompt_beyond_the_context_is_one_line(model):
    with pytest.raises(UserError, match=r"the prompt has \d+ tokens; expected at most 86, the model's context of 96"):
        model.encode([{"role": "user", "content": "x" * 100}], 10)


def test_a_message_that_does_not_fit_is_left_out_with_a_warning(model, monkeypatch, capsys):
    sent = []
    monkeypatch.setattr(talking, "stream_text", lambda _, tokens, options: sent.append(tokens) or iter(["yes"]))
    list(talk(model, ["one", "a long report. " * 20 + "Now translate it.", "two"], "", GenerationOptions(16)))
    assert len(sent) == 2 and "report" not in model.tokenizer.decode(list(sent[1]))
    error = " ".join(capsys.readouterr().err.split())
    assert "expected at most 80, the model's context minus --max_new_tokens=16; it is left out" in error
