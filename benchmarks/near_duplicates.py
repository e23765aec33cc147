"""Recall and precision of near-duplicates on planted edits, against the exact Jaccard similarity of all pairs.

PYTHONPATH=. python benchmarks/near_duplicates.py [DOCUMENTS]
"""

import json
import random
import sys
import time

import numpy as np
from scipy.sparse import csr_array, triu

from data.near_duplicates import bands_for, find_near_duplicates, shingles, signature
from data.preparation.reading import content_digest

THRESHOLD = 0.8
WORDS = [f"w{number}" for number in range(5000)]
EDITED = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.3)  # parts of the words that are replaced


def planted(count: int) -> list[str]:
    """Returns random documents of 20 to 400 words; three of five have 1 to 3 edited copies."""
    draw = random.Random(0)
    texts: dict[str, None] = {}
    while len(texts) < count:
        words = draw.choices(WORDS, k=draw.randrange(20, 400))
        texts[" ".join(words)] = None
        for _ in range(draw.randrange(1, 4) if draw.random() < 0.6 else 0):
            share = draw.choice(EDITED)
            texts[" ".join(draw.choice(WORDS) if draw.random() < share else word for word in words)] = None
    return list(texts)[:count]


def similar_pairs(texts: list[str]) -> dict[tuple[int, int], float]:
    """Returns the exact Jaccard similarity of every pair that is at least the threshold."""
    sets = [shingles(text) for text in texts]
    sizes = np.array([len(one) for one in sets])
    columns = np.unique(np.concatenate(sets), return_inverse=True)[1]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    matrix = csr_array((np.ones(len(columns), np.int32), columns, starts))
    shared = triu(matrix @ matrix.T, 1).tocoo()
    similarity = shared.data / (sizes[shared.row] + sizes[shared.col] - shared.data)
    close = similarity >= THRESHOLD
    pairs = zip(shared.row[close].tolist(), shared.col[close].tolist(), strict=True)
    return dict(zip(pairs, similarity[close].tolist(), strict=True))


def main(count: int) -> None:
    """Prints the figures as JSON."""
    texts, bands = planted(count), bands_for(THRESHOLD)
    exact = similar_pairs(texts)
    start = time.process_time()
    columns = np.stack([signature(text, bands) for text in texts]).T
    digests = np.array([content_digest(text) for text in texts], "V16")
    sizes = np.array([len(text) for text in texts])
    found = find_near_duplicates(digests, columns, sizes, lambda numbers: [texts[n] for n in numbers], THRESHOLD)
    seconds = time.process_time() - start
    removed = {pair.removed for pair in found}
    similar = {number for pair in exact for number in pair}
    missed = [pair for pair in exact if not removed.intersection(pair)]
    wrong = [p for p in found if p.kept in removed or exact.get(tuple(sorted(p[:2]))) != p.jaccard]
    figures = {
        "documents": len(texts),
        "documents_with_a_similar_one": len(similar),
        "similar_pairs": len(exact),
        "removed": len(found),
        "recall_of_pairs": round(1 - len(missed) / len(exact), 4),
        "precision": round(len(removed & similar) / len(removed), 4),
        "removed_without_a_similar_one_that_stays": len(wrong),
        "cpu_seconds": round(seconds, 1),
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
