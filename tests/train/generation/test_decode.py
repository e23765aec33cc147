"""Generated texts end at the eos token or a stop string, and decoding ends with them."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_model

from data.tokenizer_training import train_tokenizer
from model.sampling import Decoding
from tests.designs import DESIGNS, design
from train.distributed.mesh import single_device_mesh
from train.generation import decode
from train.generation.decode import generate_text, stream_text
from train.generation.language_model import GenerationOptions, LanguageModel
from train.generation.stopping import GrowingText, text_until_stop

BYTES = train_tokenizer("bytes", [])
TEXT = "\n\nfirst\n\nsecond"


@pytest.fixture
def fake_model(monkeypatch):
    """Replaces prefill and advance: every row generates the tokens of a text; returns the steps of each advance."""
    asked = []

    def use(text, tokenizer=BYTES, prompt=""):
        asked.clear()
        ids = tokenizer.encode_with_specials(prompt + text)[0][len(tokenizer.encode(prompt)) :]
        tokens = np.array([*ids, tokenizer.eos_id, *[70] * 200])

        def advance(config, params, state, sampling, *, steps, end_ids):
            done = sum(asked)
            asked.append(steps)
            part = np.tile(tokens[done : done + steps], (len(state.done_B), 1))
            part[np.cumsum(np.isin(part, end_ids), axis=1) > 0] = end_ids[0]
            part[state.done_B] = end_ids[0]
            return jnp.asarray(part), state._replace(done_B=state.done_B | np.isin(part, end_ids).any(1))

        advance.asked = asked
        start = Decoding(None, None, None, jnp.asarray(np.zeros(32, bool)), None)
        monkeypatch.setattr(decode, "prefill", lambda *_, **__: start)
        monkeypatch.setattr(decode, "advance", advance)
        return asked

    return use


def generated(tokenizer=BYTES, eos_id=BYTES.eos_id, **options):
    language_model = LanguageModel(tiny_model(), {}, tokenizer, "", eos_id, single_device_mesh())
    return generate_text(language_model, [[1, 5], [1, 6]], GenerationOptions(100, **options))


def continued(tokenizer, prompt, max_new_tokens=100, **options):
    """The text after a prompt, which is the same in a batch and in a stream."""
    language_model = LanguageModel(tiny_model(), {}, tokenizer, "", tokenizer.eos_id, single_device_mesh())
    how = GenerationOptions(max_new_tokens, **options)
    tokens = tokenizer.encode_raw_prompt(prompt)
    parts = list(stream_text(language_model, tokens, how))
    decode.advance.asked.clear()
    (text, again) = generate_text(language_model, [tokens, tokens], how)
    assert text == again == "".join(parts)
    assert all("\N{REPLACEMENT CHARACTER}" not in part for part in parts[:-1])
    return text


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


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [("\nQ: x\nA: y", "\nQ:", ""), (" Q: more", " Q:", ""), ("\n\nQ", "\n", "\n\nQ"), ("\n\nQ: x", "\nQ:", "\n")],
)
def test_a_stop_string_may_begin_in_the_white_space_before_the_text(fake_model, text, stop, expected):
    fake_model(text)
    assert generated(stop=(stop,)) == [expected] * 2


def test_stop_at_start_counts_from_the_first_character(fake_model):
    fake_model("\n\nfirst\n\nsecond")
    assert generated(stop=("\n\n",), stop_at_start=True) == ["", ""]


def test_stop_string_across_two_decoding_calls_is_found(fake_model):
    asked = fake_model("0123456789abcdeSTOP and more")
    assert generated(stop=("STOP",)) == ["0123456789abcde"] * 2 and asked == [16, 16]


STOPS = {
    "a special token": ("<|im_end|>", "good dog"),
    "a name within a longer stop": ("dog<|im_end|>\n", "good "),
    "two special tokens": ("<|im_end|>\n<|im_start|>", "good dog"),
    "text before a special token": ("od d", "go"),
    "text after a special token": ("user", "good dog\n"),
    "neither": ("nothing", "good dog\nuser"),
}


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("name", ["byte-level BPE", "prepend normalizer", "metaspace first", "bytes"])
def test_stop_strings_may_contain_special_tokens(fake_model, name, stop):
    tokenizer, prompt, (text, expected) = design(name), "the cat\n", STOPS[stop]
    fake_model("good dog<|im_end|>\n<|im_start|>user", tokenizer, prompt)
    assert continued(tokenizer, prompt, stop=(text,)) == expected


@pytest.mark.parametrize("name", DESIGNS)
def test_prompt_and_continuation_are_one_text(fake_model, name):
    """The space before the first generated word is kept."""
    tokenizer = design(name)
    fake_model(" sat on a mat", tokenizer, "the cat")
    assert continued(tokenizer, "the cat") == " sat on a mat"


@pytest.mark.parametrize("name", DESIGNS)
@pytest.mark.parametrize("prompt", ["the cat ", "the cat"])
def test_a_space_at_the_end_of_a_prompt_is_not_written_twice(fake_model, name, prompt):
    tokenizer = design(name)
    model = LanguageModel(tiny_model(), {}, tokenizer, "", tokenizer.eos_id, single_device_mesh())
    start = prompt.rstrip() if tokenizer.joins_spaces or name == "WordPiece" else prompt
    fake_model("the cat sat"[len(start) :], tokenizer, start)
    (text,) = decode.continuations(model, [prompt], GenerationOptions(9))
    assert prompt + text.lstrip(" " if name == "WordPiece" and prompt.endswith(" ") else "") == "the cat sat"


@pytest.mark.parametrize(("text", "expected"), [(" and", "and"), ("and", "and"), ("  and", "and"), ("   and", " and")])
def test_of_the_spaces_that_end_a_prompt_those_that_are_written_again_are_left_out(text, expected):
    assert decode.without_spaces(text, 2) == expected


def test_an_answer_does_not_start_with_the_space_before_it(fake_model):
    tokenizer = design("byte-level BPE")
    model = LanguageModel(tiny_model(), {}, tokenizer, "plain_chat", tokenizer.eos_id, single_device_mesh())
    fake_model(" sat on a mat", tokenizer, "User: the cat\nAssistant:")
    assert decode.continuations(model, ["the cat"], GenerationOptions(9)) == ["sat on a mat"]


@pytest.mark.parametrize("text", ["dog \u00e9", "dog \u732b", "dog \U0001f415", "\U0001f415"])
@pytest.mark.parametrize("kept", range(1, 9))
def test_a_stream_that_ends_within_a_character_is_complete(fake_model, text, kept):
    fake_model(text)
    expected = BYTES.decode(BYTES.encode(text)[:kept])
    assert continued(BYTES, "a", kept) == expected


@pytest.mark.parametrize("prompt", ["<s>the<|im_end|>", "the<|im_end|>", "<|im_start|>user\nthe cat<|im_end|>"])
@pytest.mark.parametrize("name", ["byte-level BPE", "prepend normalizer", "bytes"])
def test_a_raw_prompt_contains_special_tokens(name, prompt):
    tokenizer = design(name)
    tokens = LanguageModel(tiny_model(), {}, tokenizer, "plain", 2, single_device_mesh()).encode_text(
        prompt, 4, raw=True
    )
    assert tokenizer.decode(tokens, specials=True).replace(" ", "") == prompt.replace(" ", "")
    assert tokens.count(tokenizer.special_tokens["<|im_end|>"]) == 1


@pytest.mark.parametrize("stop", ["<|im_end|>", "mat<|im_end|>\n", "never"])
@pytest.mark.parametrize("name", DESIGNS)
def test_text_that_grows_token_by_token_is_the_text_of_all_tokens(name, stop):
    tokenizer = design(name)
    prompt = tokenizer.encode_raw_prompt("the cat")
    ids = tokenizer.encode_with_specials("the cat sat on \u732b a mat<|im_end|>\n<|im_start|>user dog")[0]
    options = GenerationOptions(99, stop=(stop,))
    growing = GrowingText(tokenizer, prompt, options)
    for count in range(1, len(ids) + 1):
        assert growing.add(ids[count - 1 : count]) == text_until_stop(tokenizer, prompt, ids[:count], options)


@pytest.mark.parametrize(("drop", "expected"), [(0, ("", True)), (1, (" a", True)), (2, (" a", True))])
def test_a_stop_string_is_not_looked_for_in_spaces_that_are_dropped(drop, expected):
    tokenizer = design("bytes")
    options = GenerationOptions(99, stop=(" ",), stop_at_start=True)
    growing = GrowingText(tokenizer, tokenizer.encode_prompt("the"), options, drop)
    assert growing.add(tokenizer.encode(" a cat")) == expected
