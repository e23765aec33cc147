import dataclasses
import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
from filter_documents import documents, prose
from filter_rules import RULES, decide

from data.filters.c4 import C4, c4
from data.filters.fineweb import FineWeb, fineweb
from data.filters.gopher import GopherQuality, GopherRepetition, gopher_quality, gopher_repetition
from data.filters.words import character_hash, count_words, ngram_hashes, split_sentences, split_words, word_id

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "filters.json").read_text())
TEXTS = documents(360)


def short(text):
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def test_the_documents_are_those_that_datatrove_decided_about():
    assert short("\0".join(TEXTS)) == GOLDEN["documents"]


@pytest.mark.parametrize("name", ["gopher_repetition", "gopher_quality", "c4", "fineweb"])
def test_every_decision_and_reason_is_datatrove_s(name):
    different = []
    for number, (text, theirs) in enumerate(zip(TEXTS, GOLDEN[name].split(" "), strict=True)):
        reason, kept = decide(text, name)
        ours = RULES[reason] or (f"+{short(kept)}" if name == "c4" else "+")
        different += [(number, ours, theirs)] if ours != theirs else []
    assert different == []
    assert 20 < sum(not theirs.startswith("+") for theirs in GOLDEN[name].split(" ")) < 300


def test_the_documents_break_nearly_every_rule():
    broken = {reason for name in GOLDEN if name != "documents" for reason in GOLDEN[name].split(" ")}
    assert set(RULES.values()) - broken == {
        "", "empty", "gopher_long_doc", "dup_para_frac", "duplicated_8_n_grams", "list_ratio",
    }  # fmt: skip


PLAIN = " ".join(prose(random.Random(5), 12))


@pytest.mark.parametrize(
    ("rule", "limits", "text", "reason"),
    [
        (gopher_quality, GopherQuality(max_words=60), PLAIN, "gopher: many words"),
        (gopher_quality, GopherQuality(min_words=0), "", "gopher: few words"),
        (gopher_quality, GopherQuality(min_words=0), "...", "gopher: few words"),
        (gopher_quality, GopherQuality(stop_words=("und", "der")), PLAIN, "gopher: few stop words"),
        (gopher_repetition, GopherRepetition(paragraphs=0.2), "a\n\nb\n\na\n\nc", "gopher: repeated paragraphs"),
        (gopher_repetition, GopherRepetition(), "", "gopher: empty"),
        (gopher_repetition, GopherRepetition(top_ngrams=((1, 0.01),)), PLAIN, "gopher: a frequent 1-gram"),
        (fineweb, FineWeb(), " \n ", "fineweb: empty"),
        (fineweb, FineWeb(max_short_lines=1), "a b.\n\n\n" * 3, "fineweb: repeated lines"),
        (fineweb, FineWeb(max_short_lines=1), "a.\n\n\nb.\n\n\nc.", "fineweb: a list"),
    ],
)
def test_a_threshold_decides(rule, limits, text, reason):
    assert rule(count_words(text), limits) == reason


@pytest.mark.parametrize("rules", [GopherQuality(), FineWeb(), GopherRepetition(), C4()])
def test_prose_passes(rules):
    text = PLAIN.replace(". ", ".\n", 3)
    rule = {GopherQuality: gopher_quality, FineWeb: fineweb, GopherRepetition: gopher_repetition}.get(type(rules))
    assert (rule(count_words(text), rules) if rule else c4(text, rules)[1]) is None
    assert dataclasses.is_dataclass(rules)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I can't, he said.", ["I", "can't", ",", "he", "said", "."]),
        ("x_1 = 3.5", ["x_1", "=", "3", ".", "5"]),
        ("“Wait…” don\u2019t", ["“", "Wait", "…", "”", "don\u2019t"]),
        ("日本 go", ["日", "本", "go"]),
        ("Ελλάδα, Việt Nam", ["Ελλάδα", ",", "Việt", "Nam"]),
        ("", []),
    ],
)
def test_words(text, words):
    assert split_words(text) == words
    assert count_words(text).hashes.tolist() == [character_hash(word) for word in words]
    assert count_words(text).ids.tolist() == [word_id(word) for word in words]


@pytest.mark.parametrize(
    ("text", "count"),
    [("One. Two! Three?", 3), ('"No." He left.', 2), ("No end", 1), ("3.5 is e.g. small", 2), ("…", 1), ("。河。", 1)],
)
def test_sentences(text, count):
    assert len(split_sentences(text)) == count


def test_words_are_compared_across_their_ends_only_where_the_rule_joins_them():
    one, two = count_words("ab c de f"), count_words("a bc d ef")
    assert one.joined_hashes(4).tolist() == two.joined_hashes(4).tolist()
    assert one.joined_hashes(2)[0] == two.joined_hashes(2)[0] and one.joined_hashes(1)[0] != two.joined_hashes(1)[0]
    assert ngram_hashes(one.hashes, 2)[0] != ngram_hashes(two.hashes, 2)[0]


def test_hashes_do_not_depend_on_what_was_read_before():
    before = count_words(PLAIN)
    for text in TEXTS[:40]:
        count_words(text)
    again = count_words(PLAIN)
    for name in ("hashes", "ids", "lengths", "is_symbol"):
        assert np.array_equal(getattr(before, name), getattr(again, name))
    # Other processes and later versions must compute the same.
    assert (word_id("the"), word_id("The"), character_hash("the")) == (0x2E3A97906CABDA5E,) * 2 + (0x716DE7212F0B10C1,)
