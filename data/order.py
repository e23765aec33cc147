"""The order of training rows: each epoch is a permutation of its own, computed row by row in constant memory."""

import functools

import grain
import numpy as np

_ROUNDS = 4  # of the block cipher whose values are the permutation


def shuffled(numbers: np.ndarray, length: int, seed: int) -> np.ndarray:
    """Returns the row that comes at each place of the endless order: int64, `length` rows per epoch.

    The order is that of `grain.MapDataset.range(length).seed(seed).shuffle().repeat()`.

    Args:
        numbers: places, counted from 0 over all epochs.
        length: number of rows.
        seed: seed of the permutations.
    """
    first = _first_seed(seed)
    epochs, places = np.divmod(np.asarray(numbers, np.int64), length)
    pairs = zip(epochs.tolist(), places.tolist(), strict=True)
    shuffle = grain.experimental.index_shuffle
    found = [shuffle(place, length - 1, (first + epoch) % 2**32, _ROUNDS) for epoch, place in pairs]
    return np.array(found, np.int64)


@functools.lru_cache(maxsize=64)
def _first_seed(seed: int) -> int:
    """Returns the seed of the first epoch's permutation."""
    return int(np.random.SeedSequence((seed, 1)).generate_state(1, dtype=np.uint32)[0])
