"""Texts encoded piece by piece have the tokens that the tokenizers library gives the whole text."""

import json
import random
import threading

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, trainers

from data import pieces
from data.pieces import LLAMA3_PATTERN, QWEN2_PATTERN, PieceEncoder, piece_pattern

TEXT = (
    "The fox, it's 12 o'clock;  two blanks,   three    four\n\n and\ta tab.  DON'T!\n\nYou'll see: x = {1: 'a'}\r\n"
    '  if (a != b) return 3.14159 - 1,000,000;\n\n\n...  "Why?" he said.\n  - one\n'
    "  - two/three café naïve 日本語 🌱 e\u0301"
)
# What texts are made of here: everything on which one of the patterns decides, and some that join across it.
PARTS = [
    *"aZ9 \n\t\r.,'!?;:/-_=<>(){}\"é日\u0301\u00a0\u2028\u180e\u200b\x1c\x1f\x85\u0338žüỳЖѝ½²٣",
    "  ",
    "\n\n",
    "'s",
    "'LL",
    "don't",
    " the",
    "12345",
    "<x>",
]


def backend(*splitters, normalizer=None, added=(), use_regex=False):
    """A byte-level BPE of 400 tokens with these pre-tokenizers before its ByteLevel."""
    made = tokenizers.Tokenizer(models.BPE())
    made.normalizer = normalizer
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    made.pre_tokenizer = pre_tokenizers.Sequence([*splitters, byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [TEXT] * 3, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    made.add_tokens(list(added))
    return made


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


KINDS = {
    "gpt2": lambda: backend(use_regex=True),
    "llama3": lambda: backend(split(LLAMA3_PATTERN)),
    "qwen2": lambda: backend(split(QWEN2_PATTERN), normalizer=normalizers.NFC()),
    "digits": lambda: backend(pre_tokenizers.Digits(individual_digits=True), use_regex=True),
    "added": lambda: backend(split(LLAMA3_PATTERN), added=["<x>", "  ", "\n\n", "don"]),
}
FOREIGN = {
    "whole texts": lambda: backend(),
    "another pattern": lambda: backend(split(r"\w+ ?|\W")),
    "inverted": lambda: backend(split(LLAMA3_PATTERN, invert=True)),
    "merged": lambda: backend(split(LLAMA3_PATTERN, "merged_with_next")),
    "lower case": lambda: backend(use_regex=True, normalizer=normalizers.Lowercase()),
    "prepended": lambda: backend(use_regex=True, normalizer=normalizers.Prepend("_")),
    "an added token across a cut": lambda: backend(use_regex=True, added=["the fox"]),
    "an added token with the space after it": lambda: backend(use_regex=True, added=[AddedToken("<x>", rstrip=True)]),
    "an added word": lambda: backend(use_regex=True, added=[AddedToken("fox", single_word=True)]),
}


@pytest.fixture(scope="module", params=KINDS)
def known(request):
    made = KINDS[request.param]()
    return made, PieceEncoder(made, piece_pattern(json.loads(made.to_str())))


def tokens(made, texts):
    return [encoding.ids for encoding in made.encode_batch_fast(texts, add_special_tokens=False)]


def test_tokens_are_those_of_the_whole_text(known):
    made, encoder = known
    draw = random.Random(0)
    texts = [TEXT, "", *("".join(draw.choices(PARTS, k=draw.randrange(1, 40))) for _ in range(3000))]
    assert [ids.tolist() for ids in encoder(texts)] == tokens(made, texts)


@settings(max_examples=100, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])) | st.lists(st.sampled_from(PARTS)).map("".join))
)
def test_any_unicode(known, texts):
    made, encoder = known
    assert [ids.tolist() for ids in encoder(texts)] == tokens(made, texts)


def test_most_pieces_are_words(known):
    _, encoder = known
    found = encoder._pattern.findall(TEXT)
    assert "".join(found) == TEXT and len(found) > len(TEXT.split()) * 0.8


@pytest.mark.parametrize("name", FOREIGN)
def test_other_tokenizers_have_no_pieces(name):
    assert piece_pattern(json.loads(FOREIGN[name]().to_str())) is None


def test_memory_is_bounded_and_forgetting_changes_nothing(monkeypatch):
    made = KINDS["gpt2"]()
    encoder = PieceEncoder(made, piece_pattern(json.loads(made.to_str())))
    monkeypatch.setattr(pieces, "_MAX_BYTES", 40_000)
    texts = [f"{TEXT} number {n} " for n in range(400)]
    expected = tokens(made, texts)
    for n, text in enumerate(texts):
        assert encoder([text])[0].tolist() == expected[n]
        assert len(encoder._known) <= 250


def test_texts_of_new_words_are_encoded_whole(monkeypatch):
    made = KINDS["gpt2"]()
    encoder = PieceEncoder(made, piece_pattern(json.loads(made.to_str())))
    monkeypatch.setattr(pieces, "_FEW", 10)
    draw = random.Random(0)
    for hashes in [[TEXT], *([" ".join(draw.randbytes(4).hex() for _ in range(100))] for _ in range(20)), [TEXT]]:
        assert [ids.tolist() for ids in encoder(hashes)] == tokens(made, hashes)
    assert 10 < len(encoder._known) < 100


def test_threads_share_an_encoder(monkeypatch):
    made = KINDS["gpt2"]()
    encoder = PieceEncoder(made, piece_pattern(json.loads(made.to_str())))
    monkeypatch.setattr(pieces, "_MAX_BYTES", 4_000)
    texts = [f"{TEXT} {n}" for n in range(200)]
    expected, wrong = tokens(made, texts), []

    def run(first):
        for n in range(first, 200):
            if encoder([texts[n]])[0].tolist() != expected[n]:
                wrong.append(n)

    threads = [threading.Thread(target=run, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
