"""Stage 2, one pass over digests and numbers: which documents stay, and which split each is in.

Memory is 9 bytes per document, and about 50 for each document of a range of digests; ranges are processed one by one,
and each reads the arrays of all units.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from configs.errors import UserError
from data.preparation.unit_files import UnitFiles, write_array

DOCUMENTS_AT_ONCE = 1 << 25
REMOVED, TRAIN, VALIDATION = 0, 1, 2

# (units, per unit a bool array that says which documents stay) -> {reason: number of documents}; clears the entries of
# the documents that it removes. It runs after the removal of exact duplicates, of which the first one stays.
DeletionPass = Callable[[Sequence[UnitFiles], list[np.ndarray]], Mapping[str, int]]
DUPLICATE = "duplicate"


@dataclasses.dataclass(frozen=True)
class SplitOptions:
    """How documents are divided.

    Attributes:
        fraction: of the documents, or of the characters of each, to hold out; 0: no validation split.
        method: "documents" or "tail"; see `data.prepare.StoreOptions`.
        deletions: passes that remove documents, in order.
    """

    fraction: float
    method: str
    deletions: tuple[DeletionPass, ...] = ()


def split_units(units: Sequence[UnitFiles], options: SplitOptions, source: str) -> dict[str, Any]:
    """Writes the place of each document, and returns counts and parts for the stages after this one.

    Args:
        units: all units, in order.
        options: how documents are divided.
        source: the input, for messages.

    Returns:
        {"duplicate": documents removed as exact copies, "removed": {reason: count} of the deletion passes,
        "bytes": {"duplicate" or reason: bytes of the removed text}, "parts": {split: [place, start, stop]}}: a split
        has the documents at a place, of each the part from `start` to `stop` as fractions of its characters.

    Raises:
        UserError: no document remains, or they cannot be split.
    """
    results = [unit.results() for unit in units]
    keep = [np.ones(result["documents"], bool) for result in results]
    removed: Counter[str] = Counter()
    sizes = [np.diff(unit.array("ends")) for unit in units]
    left = _bytes_left(sizes, keep)
    duplicates = remove_exact_duplicates(units, keep)
    removed_bytes = {DUPLICATE: left - _bytes_left(sizes, keep)}
    for deletion in options.deletions:
        left = _bytes_left(sizes, keep)
        counts_removed = deletion(units, keep)
        removed.update(counts_removed)
        # A pass has one reason.
        removed_bytes |= dict.fromkeys(counts_removed, left - _bytes_left(sizes, keep))
    if not any(kept.any() for kept in keep):
        counts = sum((Counter(result["counts"]) | Counter(result["skipped"]) for result in results), Counter())
        counts.update(removed + sum((Counter(result["removed"]) for result in results), Counter()))
        found = {"read": counts["read"], "empty": counts["empty"], "duplicate": duplicates} | dict(counts)
        listed = ", ".join(f"{number} {kind}" for kind, number in found.items())
        raise UserError(f"{source}: no documents remain ({listed}); expected at least one that is not blank")
    if options.fraction and options.method == "tail":
        parts = _tail_parts(units, keep, options.fraction, source)
        bound = 0.0
    elif options.fraction:
        parts = {"train": [TRAIN, 0.0, 1.0], "validation": [VALIDATION, 0.0, 1.0]}
        bound = _bound(units, keep, options.fraction, source)
    else:
        parts, bound = {"train": [TRAIN, 0.0, 1.0]}, 0.0
    for unit, kept in zip(units, keep, strict=True):
        places = np.where(kept, np.where(_fractions(unit) < bound, VALIDATION, TRAIN), REMOVED)
        write_array(unit.places_path, places.astype(np.uint8))
    found = {"duplicate": duplicates, "removed": dict(sorted(removed.items())), "bytes": removed_bytes}
    return found | {"parts": parts}


def _bytes_left(sizes: Sequence[np.ndarray], keep: Sequence[np.ndarray]) -> int:
    return sum(int(size[kept].sum()) for size, kept in zip(sizes, keep, strict=True))


def remove_exact_duplicates(units: Sequence[UnitFiles], keep: list[np.ndarray]) -> int:
    """Clears the entries of documents whose digest an earlier document has; returns their number."""
    starts = np.cumsum([0, *map(len, keep)])
    bits = max(int(starts[-1] - 1) // DOCUMENTS_AT_ONCE, 0).bit_length()
    removed = 0
    for number in range(1 << bits):
        found = [_in_range(unit, start, number, bits) for unit, start in zip(units, starts.tolist(), strict=False)]
        digests, documents = (np.concatenate(part) for part in zip(*found, strict=True))
        # The sort is stable, so the first of equal digests is the first document.
        order = np.lexsort((digests[:, 1], digests[:, 0]))
        repeated = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
        copies = np.sort(documents[order[1:][repeated]])
        removed += len(copies)
        for unit, (low, high) in enumerate(zip(*np.searchsorted(copies, [starts[:-1], starts[1:]]), strict=True)):
            keep[unit][copies[low:high] - starts[unit]] = False
    return removed


def _in_range(unit: UnitFiles, start: int, number: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the digests of a unit whose first `bits` bits are `number`, and the documents, counted over all units."""
    digests = unit.array("digests")
    if not bits:
        return digests, np.arange(start, start + len(digests))
    chosen = np.flatnonzero(digests[:, 0] >> np.uint64(64 - bits) == number)
    return digests[chosen], chosen + start


def _fractions(unit: UnitFiles) -> np.ndarray:
    """Returns a number in [0, 1) per document: the first 48 bits of its digest, uniformly distributed over contents."""
    return (unit.array("digests")[:, 0] >> np.uint64(16)) / 2.0**48


def _bound(units: Sequence[UnitFiles], keep: list[np.ndarray], fraction: float, source: str) -> float:
    ends = [_ends(_fractions(unit)[kept]) for unit, kept in zip(units, keep, strict=True)]
    lowest, highest = np.sort(np.concatenate([low for low, _ in ends])), max(high for _, high in ends)
    return held_out_bound(lowest.tolist(), highest, fraction, source)


def held_out_bound(lowest: Sequence[float], highest: float, fraction: float, source: str) -> float:
    """Returns the number below which a document's fraction is that of a held-out one; both splits get at least one.

    Args:
        lowest: the smallest fractions of different documents, at least two if there are two.
        highest: the largest one.
        fraction: of the documents, to hold out.
        source: the input, for messages.

    Raises:
        UserError: there is a single document.
    """
    if len(lowest) == 1:
        raise UserError(f"{source}: a single document cannot be split by documents; use validation_split=tail")
    if lowest[0] >= fraction or highest < fraction:
        # All documents fall into one split: move the one closest to the bound into the other.
        return lowest[1] if lowest[0] >= fraction else highest
    return fraction


def _ends(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the two smallest values, or as many as there are, and the largest one."""
    return np.sort(values)[:2], float(values.max(initial=-1.0))


def _tail_parts(
    units: Sequence[UnitFiles], keep: list[np.ndarray], fraction: float, source: str
) -> dict[str, list[float]]:
    """Returns the parts of a split by tails, after checking that none is empty."""
    parts = {"train": [TRAIN, 0.0, 1.0 - fraction], "validation": [TRAIN, 1.0 - fraction, 1.0]}
    for _, start, stop in parts.values():
        if not any(
            _has_text(unit.array("characters")[kept], start, stop) for unit, kept in zip(units, keep, strict=True)
        ):
            raise UserError(f"{source}: too short to hold out a tail of {fraction}; expected a longer text")
    return parts


def _has_text(characters: np.ndarray, start: float, stop: float) -> bool:
    return bool(((characters * start).astype(np.int64) < (characters * stop).astype(np.int64)).any())


def texts_of(unit: UnitFiles, part: tuple[int, float, float] | None) -> Iterator[str]:
    """Yields the texts of a split that are not empty (see `split_units` for its part), or all whole documents."""
    place, start, stop = part or (REMOVED, 0.0, 1.0)
    places = unit.places()
    rows = np.flatnonzero(places == place if part is not None else places != REMOVED)
    for text in unit.texts(rows.tolist()):
        if piece := text[int(len(text) * start) : int(len(text) * stop)]:
            yield piece
