"""Stage 1: the documents of a unit, read, cleaned, filtered and hashed."""

import dataclasses
import hashlib
import heapq
import itertools
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.cleaning import clean_document, has_control_characters
from data.lines import BadInput
from data.preparation.unit_files import UnitFiles, write_mark
from data.readers import read_part
from data.storage.files import new_file
from data.units import Unit

CLEANED = "control characters"  # the number of documents from which control characters were removed
DIGEST_BYTES = 16
SAMPLES = 20  # per reason
COUNTERS = ("counts", "skipped", "removed", "bytes", "changed", "notes")
_NOT_SKIPPED = ("read", "empty", "duplicate", CLEANED)
_SAMPLE_CHARACTERS = 1000
_DOCUMENTS_AT_ONCE = 256


class Outcome(NamedTuple):
    """What a function made of a document.

    Attributes:
        text: what remains; "" removes the document.
        reasons: why it is removed, or each change that was made.
        notes: what else is counted, such as its language.
        sample: what to show of the document if it is drawn as a sample of a reason; "": as it was before.
    """

    text: str
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    sample: str = ""


# Documents -> what becomes of each; an outcome depends on its document alone.
DocumentFunction = Callable[[Sequence[str]], Sequence[Outcome]]
Feature = Callable[[str], np.ndarray]


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """How documents are read; functions are picklable and depend on nothing but the text.

    Attributes:
        text_field: column of rows that contains the text.
        strict: stop at the first bad row or file; otherwise skip and count it.
        functions: applied in order to the cleaned documents that are not blank.
        features: (name, function) -> an array that is kept for each document that remains, for stage 2.
    """

    text_field: str = "text"
    strict: bool = True
    functions: tuple[DocumentFunction, ...] = ()
    features: tuple[tuple[str, Feature], ...] = ()


def skipped_rows(manifest: Mapping[str, Any]) -> dict[str, int]:
    """Returns the number of rows and files that were skipped when a store was made, by kind of error."""
    return {kind: count for kind, count in manifest["collected"].items() if kind not in _NOT_SKIPPED and count}


def content_digest(text: str) -> bytes:
    """Returns a 16-byte hash of a text; texts that differ only in white space have the same hash."""
    return hashlib.sha256(" ".join(text.split()).encode("utf-8", "replace")).digest()[:DIGEST_BYTES]


def content_fraction(digest: bytes) -> float:
    """Returns a number in [0, 1) computed from a digest, uniformly distributed over contents."""
    return int.from_bytes(digest[:6], "big") / 2**48


def digest_array(digests: bytes) -> np.ndarray:
    """Returns uint64[n, 2], ordered as the 16-byte digests are, of the digests one after the other."""
    return np.frombuffer(digests, ">u8").reshape(-1, 2).astype(np.uint64)


class Samples:
    """At most `SAMPLES` texts per reason, those with the smallest digests: the same however the input is cut."""

    def __init__(self) -> None:
        self._kept: dict[str, list[tuple[str, str]]] = {}

    def add(self, reason: str, text: str) -> None:
        """Considers a text."""
        self.merge({reason: [(content_digest(text).hex(), text[:_SAMPLE_CHARACTERS])]})

    def merge(self, others: dict[str, list[tuple[str, str]]]) -> None:
        """Considers the samples of another unit."""
        for reason, found in others.items():
            known = self._kept.get(reason, [])
            self._kept[reason] = heapq.nsmallest(SAMPLES, {*known, *((digest, text) for digest, text in found)})

    def to_json(self) -> dict[str, list[tuple[str, str]]]:
        """Returns {reason: [(digest, beginning of the text)]}, sorted."""
        return {reason: self._kept[reason] for reason in sorted(self._kept)}


@dataclasses.dataclass
class _Found:
    """What is counted while a unit is read."""

    counts: Counter[str] = dataclasses.field(default_factory=lambda: Counter(read=0, empty=0))
    skipped: Counter[str] = dataclasses.field(default_factory=Counter)
    removed: Counter[str] = dataclasses.field(default_factory=Counter)
    bytes: Counter[str] = dataclasses.field(default_factory=Counter)  # "read", and removed by reason
    changed: Counter[str] = dataclasses.field(default_factory=Counter)
    notes: Counter[str] = dataclasses.field(default_factory=Counter)
    samples: Samples = dataclasses.field(default_factory=Samples)

    def to_json(self) -> dict[str, Any]:
        counted = {name: dict(getattr(self, name)) for name in COUNTERS}
        return counted | {"samples": self.samples.to_json()}


def read_unit(folder: Path, options: ReadOptions, job: tuple[int, Unit]) -> None:
    """Writes the documents of unit `job[0]`, their arrays and their counts.

    The arrays are `ends` int64[n + 1], where each text ends in bytes; `digests` uint64[n, 2]; `characters` int64[n];
    `pieces` int32[n], the number of its piece in the unit; and the features.

    Raises:
        UserError: the input is bad (strict).
    """
    number, unit = job
    files, found = UnitFiles(folder, number), _Found()
    ends, characters, pieces, digests = array("q", [0]), array("q"), array("i"), bytearray()
    features: dict[str, list[np.ndarray]] = {name: [] for name, _ in options.features}
    with new_file(files.text_path) as path, path.open("wb") as file:
        for piece, text in _documents(unit, options, found):
            pieces.append(piece)
            ends.append(ends[-1] + file.write(text.encode()))
            characters.append(len(text))
            digests += content_digest(text)
            for name, function in options.features:
                features[name].append(function(text))
    arrays: dict[str, Any] = {name: np.stack(rows) if rows else np.empty(0) for name, rows in features.items()}
    arrays |= {"ends": ends, "digests": digest_array(bytes(digests)), "characters": characters}
    arrays["pieces"] = pieces
    with new_file(files.arrays_path) as path, path.open("wb") as file:
        np.savez(file, **arrays)
    totals = {"documents": len(characters), "text_bytes": ends[-1], "sources": [piece.source for piece in unit]}
    write_mark(folder, "read", number, found.to_json() | totals)


def _documents(unit: Unit, options: ReadOptions, found: _Found) -> Iterator[tuple[int, str]]:
    """Yields the cleaned documents that no function removes, each with the number of its piece."""
    cleaned = _cleaned(unit, options, found)
    while batch := list(itertools.islice(cleaned, _DOCUMENTS_AT_ONCE)):
        texts = _apply(options.functions, [text for _, text in batch], found)
        yield from ((piece, text) for (piece, _), text in zip(batch, texts, strict=True) if text)


def _cleaned(unit: Unit, options: ReadOptions, found: _Found) -> Iterator[tuple[int, str]]:
    """Yields the cleaned documents that are not blank, each with the number of its piece."""
    bad = BadInput(options.strict, found.skipped)
    for number, piece in enumerate(unit):
        for raw in read_part(piece.open(), piece.part, options.text_field, bad):
            text = clean_document(raw)
            found.counts["read"] += 1
            found.bytes["read"] += len(text.encode())
            if has_control_characters(raw):
                found.counts[CLEANED] += 1
            if text:
                yield number, text
            else:
                found.counts["empty"] += 1


def _apply(functions: Iterable[DocumentFunction], texts: Sequence[str], found: _Found) -> list[str]:
    """Returns each text after all functions, or "" if one of them removes it."""
    texts = list(texts)
    for function in functions:
        left = [number for number, text in enumerate(texts) if text]
        for number, outcome in zip(left, function([texts[number] for number in left]), strict=True):
            before, texts[number] = texts[number], outcome.text
            found.notes.update(outcome.notes)
            sample = outcome.sample or before
            if not outcome.text:
                found.removed[outcome.reasons[0]] += 1
                found.bytes[outcome.reasons[0]] += len(before.encode())
                found.samples.add(outcome.reasons[0], sample)
                continue
            found.changed.update(outcome.reasons)
            for reason in set(outcome.reasons):
                found.samples.add(reason, sample)
    return texts
