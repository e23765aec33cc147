"""Texts end where they are told to, and nothing after that is computed."""

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_model

from data.tokenizer_training import train_tokenizer
from model.sampling import Decoding
from train.distributed.mesh import single_device_mesh
from train.generation import decode
from train.generation.decode import complete

BYTES = train_tokenizer("bytes", [])


@pytest.fixture
def written(monkeypatch):
    """Stands in for the model: every row gets the tokens of a text; returns the steps that were asked for."""
    asked = []

    def use(text):
        tokens = np.array([*BYTES.encode(text), BYTES.eos_id, *[70] * 200])

        def advance(config, params, state, sampling, *, steps, eos_id):
            done = sum(asked)
            asked.append(steps)
            part = np.tile(tokens[done : done + steps], (len(state.done_B), 1))
            part[np.cumsum(part == eos_id, axis=1) > 0] = eos_id
            part[state.done_B] = eos_id
            return jnp.asarray(part), state._replace(done_B=state.done_B | (part == eos_id).any(1))

        start = Decoding(None, None, None, jnp.asarray(np.zeros(32, bool)), None)
        monkeypatch.setattr(decode, "prefill", lambda *_, **__: start)
        monkeypatch.setattr(decode, "advance", advance)
        return asked

    return use


def completed(**keywords):
    return complete(tiny_model(), {}, [[1, 5], [1, 6]], 100, BYTES, single_device_mesh(), **keywords)


def test_without_a_stop_all_steps_are_one_program(written):
    asked = written("\n\nfirst\n\nsecond")
    assert completed() == ["\n\nfirst\n\nsecond"] * 2 and asked == [100]


def test_another_token_than_the_tokenizers_may_end_a_text(written):
    written("\n\nfirst\n\nsecond")
    assert completed(eos_id=BYTES.encode("s")[0]) == ["\n\nfir"] * 2


def test_the_earliest_stop_after_text_counts_and_ends_the_work(written):
    asked = written("\n\nfirst\n\nsecond")
    assert completed(stop=("cond", "\n\n")) == ["\n\nfirst"] * 2
    assert asked == [16]


def test_a_stop_may_count_from_the_first_character(written):
    written("\n\nfirst\n\nsecond")
    assert completed(stop=("\n\n",), after_text=False) == ["", ""]


def test_a_stop_that_straddles_two_looks_is_found(written):
    asked = written("0123456789abcdeSTOP and more")
    assert completed(stop=("STOP",)) == ["0123456789abcde"] * 2 and asked == [16, 16]
