"""The near-duplicates among the documents of all units, as a pass of stage 2, with their evidence."""

import contextlib
import dataclasses
import functools
import itertools
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from data.near_duplicates import NearDuplicate, bands_for, find_near_duplicates, signature
from data.preparation.reading import SAMPLES, Feature
from data.preparation.unit_files import UnitFiles
from data.storage.files import new_file

REASON = "near-duplicate"
EVIDENCE_FILE = "near_duplicates.jsonl"
_FEATURE = "bands"
_SAMPLE_CHARACTERS, _SAMPLE_CONTEXT = 1000, 150


def band_feature(threshold: float) -> tuple[str, Feature]:
    """Returns the name and the function of the array that stage 1 computes for each document."""
    return _FEATURE, functools.partial(signature, bands=bands_for(threshold))


@dataclasses.dataclass(frozen=True)
class NearDuplicatePass:
    """A pass of stage 2 that removes near-duplicates; see `data.near_duplicates`.

    It writes `EVIDENCE_FILE`: a line per removed document, in order of digests, with the digest of the document that
    stays and their Jaccard similarity; the first lines have 1,000 characters of both texts, from a little before the
    first difference, at character "start".

    Attributes:
        threshold: smallest Jaccard similarity of near-duplicates.
    """

    threshold: float

    def __call__(self, units: Sequence[UnitFiles], keep: list[np.ndarray]) -> dict[str, int]:
        """Clears the entries of near-duplicates; returns their number."""
        documents = _Documents(units, [np.flatnonzero(kept) for kept in keep])
        digests = np.concatenate([unit.array("digests")[kept] for unit, kept in zip(units, keep, strict=True)])
        sizes = np.concatenate([np.diff(unit.array("ends"))[kept] for unit, kept in zip(units, keep, strict=True)])
        with _columns(units, keep, bands_for(self.threshold).bands) as columns:
            # Big-endian bytes are ordered as the digests are.
            keys = digests.astype(">u8").view("V16").ravel()
            found = find_near_duplicates(keys, columns, sizes, documents.read, self.threshold)
        with new_file(units[0].folder / EVIDENCE_FILE) as path, path.open("w", encoding="utf-8") as file:
            _write_evidence(file, found, keys, documents)
        for pair in found:
            unit, row = documents.place(pair.removed)
            keep[unit][row] = False
        return {REASON: len(found)} if found else {}


class _Documents:
    """The documents that stay, numbered over all units."""

    def __init__(self, units: Sequence[UnitFiles], rows: Sequence[np.ndarray]) -> None:
        self._units, self._rows = units, rows
        self._starts = np.cumsum([0, *map(len, rows)])

    def place(self, number: int) -> tuple[int, int]:
        """Returns (unit, row in the unit) of a document."""
        unit = int(np.searchsorted(self._starts, number, side="right")) - 1
        return unit, int(self._rows[unit][number - self._starts[unit]])

    def read(self, numbers: Sequence[int]) -> Iterator[str]:
        """Yields the texts of documents, by ascending numbers."""
        bounds = np.searchsorted(numbers, self._starts).tolist()
        for unit, (low, high) in enumerate(itertools.pairwise(bounds)):
            if low < high:
                rows = self._rows[unit][np.asarray(numbers[low:high]) - self._starts[unit]]
                yield from self._units[unit].texts(rows.tolist())


@contextlib.contextmanager
def _columns(units: Sequence[UnitFiles], keep: list[np.ndarray], bands: int) -> Iterator[Iterator[np.ndarray]]:
    """Yields an iterator over the bands of all documents that stay; one band is in memory at a time."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{band}.bin" for band in range(bands)]
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(path.open("wb")) for path in paths]
            for unit, kept in zip(units, keep, strict=True):
                if len(kept):
                    for file, column in zip(files, unit.array(_FEATURE)[kept].T, strict=True):
                        file.write(np.ascontiguousarray(column).data)
        yield (np.fromfile(path, np.uint64) for path in paths)


def _write_evidence(file: IO[str], found: Sequence[NearDuplicate], keys: np.ndarray, documents: _Documents) -> None:
    for number, pair in enumerate(found):
        line = {
            "removed": keys[pair.removed].tobytes().hex(),
            "kept": keys[pair.kept].tobytes().hex(),
            "jaccard": pair.jaccard,
        }
        if number < SAMPLES:
            (removed,), (kept,) = documents.read([pair.removed]), documents.read([pair.kept])
            same = next((n for n, (a, b) in enumerate(zip(removed, kept, strict=False)) if a != b), 0)
            start = max(0, same - _SAMPLE_CONTEXT)
            stop = start + _SAMPLE_CHARACTERS
            line |= {"start": start, "removed_text": removed[start:stop], "kept_text": kept[start:stop]}
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
