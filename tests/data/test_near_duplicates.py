import hashlib
import itertools
import random

import numpy as np
import pytest

from configs.errors import UserError
from data.near_duplicates import Bands, bands_for, find_near_duplicates, jaccard, shingles, signature

WORDS = [f"w{number}" for number in range(3000)]


def planted(count, seed=0):
    """Returns random documents, most with edited copies in which up to 30 % of the words are replaced."""
    draw = random.Random(seed)
    texts = []
    while len(texts) < count:
        words = draw.choices(WORDS, k=draw.randrange(20, 150))
        texts.append(" ".join(words))
        for _ in range(draw.randrange(4) if draw.random() < 0.8 else 0):
            share = draw.choice([0.005, 0.01, 0.02, 0.04, 0.1, 0.3])
            edited = [draw.choice(WORDS) if draw.random() < share else word for word in words]
            texts.append(" ".join(edited))
    return list(dict.fromkeys(texts))[:count]


def digests_of(texts):
    return np.array([hashlib.sha256(text.encode()).digest()[:16] for text in texts], "V16")


def removed(texts, threshold=0.8, bands=None, **how):
    """Returns {removed text: (text that stays, Jaccard)}."""
    bands = bands or bands_for(threshold)
    matrix = np.array([signature(text, bands) for text in texts])
    sizes = np.array([len(text.encode()) for text in texts])
    reads = []

    def read(numbers):
        assert numbers == sorted(numbers)
        reads.extend(numbers)
        return [texts[number] for number in numbers]

    found = find_near_duplicates(digests_of(texts), matrix.T, sizes, read, threshold, **how)
    return {texts[pair.removed]: (texts[pair.kept], pair.jaccard) for pair in found}


def similar_pairs(texts, threshold):
    """Returns the pairs of numbers whose exact Jaccard similarity is at least the threshold, from an inverted index."""
    sets = [set(shingles(text).tolist()) for text in texts]
    index, shared = {}, {}
    for number, found in enumerate(sets):
        for value in found:
            for other in index.setdefault(value, []):
                shared[other, number] = shared.get((other, number), 0) + 1
            index[value].append(number)
    return {p: n / (len(sets[p[0]]) + len(sets[p[1]]) - n) for p, n in shared.items()
            if n >= threshold * (len(sets[p[0]]) + len(sets[p[1]]) - n)}  # fmt: skip


@pytest.fixture(scope="module")
def texts():
    return planted(240)


@pytest.fixture(scope="module")
def found(texts):
    return removed(texts)


def test_every_removed_document_has_a_similar_one_that_stays(texts, found):
    assert len(found) > 20
    for text, (kept, similarity) in found.items():
        assert kept in set(texts) - set(found)
        one, other = set(shingles(text).tolist()), set(shingles(kept).tolist())
        assert similarity == len(one & other) / len(one | other) >= 0.8


def test_of_two_similar_documents_the_one_with_the_lower_digest_stays(found):
    for text, (kept, _) in found.items():
        assert hashlib.sha256(kept.encode()).digest() < hashlib.sha256(text.encode()).digest()


def test_nearly_all_similar_documents_are_found(texts, found):
    pairs = similar_pairs(texts, 0.8)
    missed = [p for p in pairs if texts[p[0]] not in found and texts[p[1]] not in found]
    assert len(pairs) > 30 and len(missed) <= 0.03 * len(pairs)


@pytest.mark.parametrize("how", [{}, {"group_bytes": 3000}, {"group_bytes": 1}])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_result_depends_on_the_documents_alone(texts, found, how, seed):
    shuffled = random.Random(seed).sample(texts, len(texts))
    assert removed(shuffled, **how) == found


def test_a_chain_of_neighbors_is_not_removed_as_a_whole():
    """Each is similar to the next one, the first is not similar to the last."""
    words = WORDS[:200]
    chain = [" ".join(WORDS[1000 + 1 : 1000 + 6 * step + 1] + words[6 * step :]) for step in range(8)]
    sets = [shingles(text) for text in chain]
    assert all(jaccard(a, b) >= 0.9 for a, b in itertools.pairwise(sets)) and jaccard(sets[0], sets[-1]) < 0.7
    gone = removed(chain, 0.9, Bands(40, 2))
    kept = [text for text in chain if text not in gone]
    assert 3 <= len(kept) < 8
    for text, (stays, similarity) in gone.items():
        assert stays in kept and similarity == jaccard(shingles(text), shingles(stays)) >= 0.9


@pytest.mark.parametrize("text", ["", "one", "one two three", "...", "— — —", "日本", "the same words again and again"])
def test_short_documents(text):
    other = "some entirely different words of another document"
    same = text + " !"
    assert removed([text, other]) == {}
    assert len(removed([text, same, other])) == (any(c.isalnum() for c in text))
    assert removed(["!!!!!!!!!!a"[:10], "!!!!!!!!!?"]) == {}


def test_a_similarity_equal_to_the_threshold_is_enough():
    # 0.28 * 25 is above 7.
    part, whole = (" ".join(f"w{number}" for number in range(shingle_count + 4)) for shingle_count in (7, 25))
    assert [similarity for _, similarity in removed([part, whole], 0.28, Bands(112, 1)).values()] == [0.28]


def test_case_and_punctuation_do_not_matter():
    text = " ".join(WORDS[:40])
    assert len(removed([text, text.upper() + ".", f"“{text}”"])) == 2


def test_no_documents():
    assert find_near_duplicates(np.zeros(0, "V16"), [np.zeros(0, np.uint64)] * 14, np.zeros(0, int), list, 0.8) == []
    assert removed(["one two three four five six"]) == {}


@pytest.mark.parametrize(
    ("threshold", "bands"),
    [(0.8, Bands(14, 8)), (0.9, Bands(9, 12)), (0.7, Bands(22, 5)), (0.5, Bands(37, 3)), (1.0, Bands(2, 56))],
)
def test_the_bands_fit_the_threshold(threshold, bands):
    assert bands_for(threshold) == bands
    assert bands.recall(threshold) >= 0.92
    assert bands.bands * bands.rows <= 112


@pytest.mark.parametrize("threshold", [0, -1, 1.1, 80, float("nan")])
def test_an_invalid_threshold_is_named(threshold):
    with pytest.raises(UserError, match=rf"near_duplicates={threshold}; expected a Jaccard similarity"):
        bands_for(threshold)


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.8])
def test_bands_agree_as_often_as_the_theory_says(similarity):
    """The probability that the values of a band of 4 agree is the similarity to the power of 4."""
    draw, bands = random.Random(3), Bands(28, 4)
    agree = []
    for _ in range(60):
        words = draw.sample(WORDS, 300)
        own = round(300 * (1 - similarity) / (1 + similarity))
        one, other = words[: 300 - own], words[own:]
        true = jaccard(shingles(" ".join(one)), shingles(" ".join(other)))
        agree.append(np.mean(signature(" ".join(one), bands) == signature(" ".join(other), bands)) - true**4)
    assert abs(np.mean(agree)) < 0.05
