"""Near-duplicates: candidates by MinHash, each verified by the exact Jaccard similarity with the document that stays.

Documents are compared by their sets of shingles, 5 adjacent words without case and punctuation. Documents that share a
band of MinHash values are candidates (Broder 1997; Leskovec et al., Mining of Massive Datasets, section 3.4). In the
order of their content digests, each document is compared with the candidates that stay, and removed if one of them is
similar enough. So every removed document has a similar one that stays, none is removed for a neighbor's neighbor, and
the result depends on the documents alone: not on their order, on units or on the number of processes.
"""

import dataclasses
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from configs.errors import UserError
from data.filters.words import count_words, ngram_hashes, word_id

_SHINGLE = 5
_MAX_HASHES = 112
_MIN_RECALL = 0.92
_BLOCK = 512
_GROUP_BYTES = 1 << 28
_parameters = np.random.RandomState(1)
_FACTORS = _parameters.randint(0, 1 << 32, (_MAX_HASHES, 1), np.uint32) | np.uint32(1)
_TERMS = _parameters.randint(0, 1 << 32, (_MAX_HASHES, 1), np.uint32)

ReadTexts = Callable[[Sequence[int]], Iterable[str]]


@dataclasses.dataclass(frozen=True)
class Bands:
    """Two documents are candidates if they agree in the MinHash values of a band.

    Attributes:
        bands: number of bands.
        rows: values per band.
    """

    bands: int
    rows: int

    def recall(self, jaccard: float) -> float:
        """Returns the probability that two documents of this similarity become candidates."""
        return 1.0 - (1.0 - jaccard**self.rows) ** self.bands


class NearDuplicate(NamedTuple):
    """A removed document, the one that stays in its place, and their similarity; the evidence of a removal."""

    removed: int
    kept: int
    jaccard: float


def bands_for(threshold: float) -> Bands:
    """Returns the bands of at most 112 values with the longest bands that find 92 % of the pairs at a threshold.

    At 0.8 these are 14 bands of 8 values. More similar pairs are found more often.

    Raises:
        UserError: the threshold is not one of a similarity.
    """
    if not 0.1 <= threshold <= 1.0:
        raise UserError(f"near_duplicates={threshold}; expected a Jaccard similarity from 0.1 to 1, such as 0.8")
    for rows in range(_MAX_HASHES // 2, 1, -1):
        found = Bands(_MAX_HASHES // rows, rows)
        if found.recall(threshold) >= _MIN_RECALL:
            return found
    return Bands(_MAX_HASHES, 1)


def shingles(text: str) -> np.ndarray:
    """Returns uint64: the sorted hashes of the different shingles of a text.

    A text of fewer than 5 words, or of punctuation only, is one shingle.
    """
    ids = count_words(text).content_ids
    if not len(ids):
        return np.array([word_id(text)], np.uint64)
    hashes = ngram_hashes(ids, min(_SHINGLE, len(ids)))
    hashes.sort()
    return hashes[np.concatenate([[True], hashes[1:] != hashes[:-1]])]


def signature(text: str, bands: Bands) -> np.ndarray:
    """Returns uint64[bands]: a hash of each band of a text's MinHash values."""
    hashes = shingles(text)
    values = (hashes ^ (hashes >> np.uint64(32))).astype(np.uint32)
    count = bands.bands * bands.rows
    lowest = np.full(count, np.iinfo(np.uint32).max, np.uint32)
    for start in range(0, len(values), _BLOCK):
        permuted = values[None, start : start + _BLOCK] * _FACTORS[:count]
        permuted += _TERMS[:count]
        np.minimum(lowest, permuted.min(axis=1), out=lowest)
    rows = lowest.reshape(bands.bands, bands.rows).astype(np.uint64)
    # Equal values in two bands mean nothing, so a band's number is part of its hash.
    numbered = np.concatenate([np.arange(bands.bands, dtype=np.uint64)[:, None], rows], axis=1)
    return ngram_hashes(numbered.ravel(), bands.rows + 1)[:: bands.rows + 1]


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the Jaccard similarity of two sets, given as sorted arrays of different values."""
    both = np.concatenate([one, other])
    both.sort()
    shared = int(np.count_nonzero(both[1:] == both[:-1]))
    return shared / (len(both) - shared)


def find_near_duplicates(
    digests: np.ndarray,
    columns: Iterable[np.ndarray],
    sizes: np.ndarray,
    read: ReadTexts,
    threshold: float,
    group_bytes: int = _GROUP_BYTES,
) -> list[NearDuplicate]:
    """Returns the documents to remove, in order of their digests, each with the most similar document that stays.

    Memory: 56 bytes per document, 24 bytes per band that a document shares, and the shingles of a part of them.

    Args:
        digests: bytes[n] ("V16"), content digests, all different; of two documents the one with the lower digest stays.
        columns: uint64[n] per band, `signature` of each document; one column is in memory at a time.
        sizes: int64[n], bytes of each document.
        read: returns the texts of documents, by ascending numbers.
        threshold: smallest Jaccard similarity of near-duplicates.
        group_bytes: bytes of text whose shingles are in memory.
    """
    if not len(digests):
        return []
    rank = np.empty(len(digests), np.int64)
    rank[np.argsort(digests, kind="stable")] = np.arange(len(digests))
    candidates = _candidates(columns, rank)
    cache = _Shingles(read, 2 * group_bytes)
    # Band -> the documents that stay, of the connected group of candidates that is read.
    staying: dict[int, list[int]] = {}
    group, found = -1, []
    for places in _groups(candidates, sizes, group_bytes):
        cache.load(candidates.documents[places.start : places.stop].tolist())
        for place in places:
            if candidates.group[place] != group:
                group = candidates.group[place]
                staying.clear()
            document, shared = int(candidates.documents[place]), candidates.shared_bands(place)
            # Several candidates at once are ordered, so that the same one is named every time.
            rivals = sorted({rival for band in shared for rival in staying.get(band, ())}, key=rank.__getitem__)
            kept, similarity = _most_similar(cache, document, rivals, threshold)
            if similarity >= threshold:
                found.append(NearDuplicate(document, kept, similarity))
            else:
                for band in shared:
                    staying.setdefault(band, []).append(document)
    return sorted(found, key=lambda pair: rank[pair.removed])


def _most_similar(cache: "_Shingles", document: int, rivals: list[int], threshold: float) -> tuple[int, float]:
    best = (document, 0.0)
    if rivals:
        own = cache[document]
        for rival in rivals:
            other = cache[rival]
            # A quotient is compared, as below, so that a similarity equal to the threshold is rounded as it is there.
            if min(len(own), len(other)) / max(len(own), len(other)) >= threshold:
                similarity = jaccard(own, other)
                best = (rival, similarity) if similarity > best[1] else best
    return best


@dataclasses.dataclass(frozen=True)
class _Candidates:
    """The documents that share a band with another one; they are ordered by group, then by digest.

    Documents that can be compared directly or through others are one group.

    Attributes:
        documents: int64[n], their numbers.
        group: int64[n], number of each one's group.
        starts: int64[n + 1], where the shared bands of each one begin in `bands`.
        bands: int64, the shared bands of all, each with a number of its own.
    """

    documents: np.ndarray
    group: np.ndarray
    starts: np.ndarray
    bands: np.ndarray

    def shared_bands(self, place: int) -> list[int]:
        return self.bands[self.starts[place] : self.starts[place + 1]].tolist()


def _candidates(columns: Iterable[np.ndarray], rank: np.ndarray) -> _Candidates:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    members, bands, first = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    count = 0
    for column in columns:
        order = np.argsort(column, kind="stable")
        ordered = column[order]
        same = ordered[1:] == ordered[:-1]
        shared = np.concatenate([[False], same]) | np.concatenate([same, [False]])
        # A band begins where a value differs from the one before.
        begins = np.concatenate([[True], ~same])[shared]
        documents = order[shared]
        numbers = np.cumsum(begins) - 1
        members.append(documents)
        bands.append(numbers + count)
        first.append(documents[begins][numbers])
        count += int(begins.sum())
    member, band, leader = map(np.concatenate, (members, bands, first))
    edges = coo_array((np.ones(len(member), np.int8), (member, leader)), shape=(len(rank), len(rank)))
    group = connected_components(edges, directed=False)[1]
    order = np.lexsort((rank[member], group[member]))
    member, band = member[order], band[order]
    begins = np.flatnonzero(np.diff(member, prepend=-1))
    documents = member[begins]
    return _Candidates(documents, group[documents], np.append(begins, len(member)), band)


def _groups(candidates: _Candidates, sizes: np.ndarray, group_bytes: int) -> Iterator[range]:
    """Yields ranges of candidates, of about `group_bytes` of text each."""
    lengths = sizes[candidates.documents]
    number = (np.cumsum(lengths) - lengths) // group_bytes
    cuts = (np.flatnonzero(np.diff(number)) + 1).tolist()
    for start, stop in itertools.pairwise([0, *cuts, len(lengths)]):
        yield range(start, stop)


class _Shingles:
    """Document -> its shingles; the last ones that were used stay in memory."""

    def __init__(self, read: ReadTexts, most_bytes: int) -> None:
        self._read, self._most_bytes = read, most_bytes
        self._held: OrderedDict[int, np.ndarray] = OrderedDict()
        self._bytes = 0

    def load(self, documents: Sequence[int]) -> None:
        missing = sorted(document for document in documents if document not in self._held)
        for document, text in zip(missing, self._read(missing), strict=True):
            self._held[document] = found = shingles(text)
            self._bytes += found.nbytes
        while self._bytes > self._most_bytes and len(self._held) > max(1, len(documents)):
            self._bytes -= self._held.popitem(last=False)[1].nbytes

    def __getitem__(self, document: int) -> np.ndarray:
        if document not in self._held:
            self.load([document])
        self._held.move_to_end(document)
        return self._held[document]
