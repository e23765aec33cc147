"""Writing and talking: parts add up to the whole, turns are remembered and forgotten, what does not fit is one line."""

import jax
import pytest
from conftest import init, tiny_model

from configs.errors import UserError
from data.tokenizer_training import train_tokenizer
from model.heads import language_model
from model.sampling import Sampling
from train.commands.chat import Answering, talk
from train.distributed.mesh import single_device_mesh
from train.generation.language_model import Writer

BYTES = train_tokenizer("bytes", [])
MODEL = tiny_model(vocab_size=320, context_length=96)


@pytest.fixture(scope="module")
def writer():
    return Writer(MODEL, init(language_model(MODEL)), BYTES, "plain", BYTES.eos_id, single_device_mesh())


def test_a_stream_adds_up_to_what_is_written_at_once(writer):
    for sampling in (Sampling(), Sampling(temperature=0.9, top_p=0.9, repetition_penalty=1.2)):
        prompt = writer.encode([{"role": "user", "content": "hello"}], 10)
        parts = list(writer.stream(prompt, 10, sampling, seed=1))
        again = list(writer.stream(prompt, 10, sampling, seed=1))
        assert parts == again and len(parts) >= 1
    greedy = "".join(writer.stream(prompt, 10, Sampling(), 0))
    (whole,) = writer.write([prompt], 10, Sampling(), 0)
    assert whole.startswith(greedy.rstrip("\ufffd")) and len(whole) - len(greedy) <= 3


def test_a_talk_remembers_until_it_is_reset(writer, monkeypatch):
    prompts = []

    def stream(self, tokens, *_):
        prompts.append(BYTES.decode(tokens))
        yield from ("an", "swer END", " never")

    monkeypatch.setattr(Writer, "stream", stream)
    said = ["one", "", "two", "/reset", "three", "/exit", "four"]
    shown = "".join(talk(writer, said, "be kind", Answering(8, Sampling(), 0, (" END",))))
    assert shown == "answer\n" * 3
    assert prompts[0].startswith("be kind") and "one" in prompts[0]
    assert "one" in prompts[1] and "answer" in prompts[1] and " END" not in prompts[1] and "two" in prompts[1]
    assert "one" not in prompts[2] and "be kind" in prompts[2] and len(prompts) == 3


def test_a_long_talk_loses_its_oldest_turns(writer, monkeypatch):
    lengths = []
    monkeypatch.setattr(Writer, "stream", lambda self, tokens, *_: lengths.append(len(tokens)) or iter(["yes"]))
    list(talk(writer, [f"line number {i}" for i in range(12)], "", Answering(16, Sampling(), 0, ())))
    assert len(lengths) == 12 and max(lengths) <= 80


def test_a_prompt_beyond_the_context_is_one_line(writer):
    with pytest.raises(UserError, match=r"the prompt has \d+ tokens; legal: at most 86, the model's context of 96"):
        writer.encode([{"role": "user", "content": "x" * 100}], 10)
    assert jax.tree.leaves(writer.params)
