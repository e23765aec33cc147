"""Generated texts end at the eos token or a stop string, and decoding ends with them."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_model

from data.tokenizer_training import train_tokenizer
from model.sampling import Decoding
from train.distributed.mesh import single_device_mesh
from train.generation import decode
from train.generation.decode import generate_text
from train.generation.language_model import GenerationOptions, LanguageModel

BYTES = train_tokenizer("bytes", [])
TEXT = "\n\nfirst\n\nsecond"


@pytest.fixture
def fake_model(monkeypatch):
    """Replaces prefill and advance: every row generates the tokens of a text; returns the steps of each advance."""
    asked = []

    def use(text):
        tokens = np.array([*BYTES.encode(text), BYTES.eos_id, *[70] * 200])

        def advance(config, params, state, sampling, *, steps, end_ids):
            done = sum(asked)
            asked.append(steps)
            part = np.tile(tokens[done : done + steps], (len(state.done_B), 1))
            part[np.cumsum(np.isin(part, end_ids), axis=1) > 0] = end_ids[0]
            part[state.done_B] = end_ids[0]
            return jnp.asarray(part), state._replace(done_B=state.done_B | np.isin(part, end_ids).any(1))

        start = Decoding(None, None, None, jnp.asarray(np.zeros(32, bool)), None)
        monkeypatch.setattr(decode, "prefill", lambda *_, **__: start)
        monkeypatch.setattr(decode, "advance", advance)
        return asked

    return use


def generated(tokenizer=BYTES, eos_id=BYTES.eos_id, **options):
    language_model = LanguageModel(tiny_model(), {}, tokenizer, "", eos_id, single_device_mesh())
    return generate_text(language_model, [[1, 5], [1, 6]], GenerationOptions(100, **options))


def test_without_stop_strings_all_steps_are_one_call(fake_model):
    asked = fake_model("\n\nfirst\n\nsecond")
    assert generated() == ["\n\nfirst\n\nsecond"] * 2 and asked == [100]


def test_eos_id_may_differ_from_the_tokenizer(fake_model):
    fake_model("\n\nfirst\n\nsecond")
    assert generated(eos_id=BYTES.encode("s")[0]) == ["\n\nfir"] * 2


@pytest.mark.parametrize(
    ("ends", "text"), [("d", "\n\nfirst\n\nsecon"), ("xr", "\n\nfi"), ("sr", "\n\nfi"), ("", TEXT)]
)
def test_the_first_of_all_end_ids_ends_a_text(fake_model, ends, text):
    fake_model(TEXT)
    tokenizer = dataclasses.replace(BYTES, end_ids=tuple(BYTES.encode(ends)))
    assert generated(tokenizer) == [text] * 2


def test_earliest_stop_string_after_text_ends_decoding(fake_model):
    asked = fake_model("\n\nfirst\n\nsecond")
    assert generated(stop=("cond", "\n\n")) == ["\n\nfirst"] * 2
    assert asked == [16]


def test_stop_at_start_counts_from_the_first_character(fake_model):
    fake_model("\n\nfirst\n\nsecond")
    assert generated(stop=("\n\n",), stop_at_start=True) == ["", ""]


def test_stop_string_across_two_decoding_calls_is_found(fake_model):
    asked = fake_model("0123456789abcdeSTOP and more")
    assert generated(stop=("STOP",)) == ["0123456789abcde"] * 2 and asked == [16, 16]
