"""Similar texts are found exactly, in any script, and in bounded time."""

import itertools
import random
import time

import pytest

from data.similar_texts import THRESHOLD, similar_texts, words


def jaccard(first, second):
    pairs = [set(zip(["", *text], [*text, ""], strict=True)) for text in (first, second)]
    return len(pairs[0] & pairs[1]) / len(pairs[0] | pairs[1])


def edited(rng, text):
    """Returns the text with up to three words replaced, removed or added."""
    text = [*text, "end"]
    for _ in range(rng.randint(0, 3)):
        place = rng.randrange(len(text) + 1)
        text[place : place + rng.randint(0, 1)] = rng.choices("abcdefghij", k=rng.randint(0, 1))
    return text


@pytest.mark.parametrize("seed", range(5))
def test_the_pairs_are_those_of_a_comparison_of_all_with_all(seed):
    rng = random.Random(seed)
    first = [rng.choices([f"w{i}" for i in range(60)], k=rng.randint(1, 40)) for _ in range(60)]
    texts = [*first, *(edited(rng, text) for text in first), *(edited(rng, text) for text in first)]
    expected = {
        (i, j) for i, j in itertools.combinations(range(len(texts)), 2) if jaccard(texts[i], texts[j]) >= THRESHOLD
    }
    found = similar_texts(texts)
    assert found.complete and {(p.first, p.second) for p in found.pairs} == expected and len(expected) > 20
    assert all(p.jaccard == pytest.approx(jaccard(texts[p.first], texts[p.second])) for p in found.pairs)


@pytest.mark.parametrize("repeats", [1, 2, 3, 8])
def test_texts_whose_rarest_pairs_differ_are_found_at_the_threshold(repeats):
    """The longer text has the pairs of the shorter one, and a quarter more that no other text has."""
    short = [f"w{i}" for i in range(4 * repeats - 1)]
    starts = [short[i : i + 2] for i in range(0, 2 * repeats, 2)]
    long = [word for start in starts for word in start * 2] + short[2 * repeats :]
    assert jaccard(short, long) == THRESHOLD
    assert similar_texts([long, short]).pairs == [(0, 1, THRESHOLD)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Where's MY card?!", ["where", "s", "my", "card"]),
        ("\uff26ull  Straße", ["full", "strasse"]),
        ("我的卡丢了", ["我", "的", "卡", "丢", "了"]),
        ("カード lost", ["カ", "ー", "ド", "lost"]),
        ("बैठक हुई", ["बैठक", "हुई"]),
        ("?! :-)", ["?!:-)"]),
        ("", [""]),
    ],
)
def test_words_are_those_of_any_script(text, expected):
    assert words(text) == expected


def test_texts_of_one_template_take_bounded_time_and_are_called_incomplete():
    long = " ".join(f"word{i}" for i in range(30))
    texts = [words(f"{long} {number} {long}") for number in range(5000)]
    start = time.process_time()
    found = similar_texts(texts)
    assert time.process_time() - start < 20
    assert not found.complete and len(found.pairs) >= 4999


def test_no_text_and_one_text_have_no_pairs():
    assert similar_texts([]) == similar_texts([["a"]]) == ([], True)
