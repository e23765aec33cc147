"""Looks for evaluation rows in the documents of a token store, by decoding them."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from data.filters.contamination import ContaminationIndex
from data.store import TokenStore
from data.tokenizer import Tokenizer

_BATCH = 1 << 12


def rows_in_store(
    store: TokenStore,
    tokenizer: Tokenizer,
    index: ContaminationIndex,
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> np.ndarray:
    """Returns bool[rows]: whether each evaluation row is found in a document of a split.

    Reads and decodes the whole split, about 5 MB of text per second and core.

    Args:
        store: the split.
        tokenizer: the store's.
        index: the evaluation rows.
        progress: called with (documents done, documents).
    """
    found = np.zeros(len(index.set_of), bool)
    total = len(store.offsets) - 1
    for done, tokens in enumerate(_documents(store), 1):
        found[index.find(tokenizer.decode(tokens.tolist()))] = True
        if done % _BATCH == 0 or done == total:
            progress(done, total)
    return found


def _documents(store: TokenStore) -> Iterator[np.ndarray]:
    offsets = store.offsets
    for start in range(0, len(offsets) - 1, _BATCH):
        bounds = np.asarray(offsets[start : start + _BATCH + 1])
        yield from store.read(bounds[:-1], bounds[1:])
