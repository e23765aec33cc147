"""Text -> token store: collect, clean, remove duplicates, split, train a tokenizer, tokenize, shuffle.

The input is read once. While the store is made, the remaining documents are kept in a scratch file next to it; memory
holds only two numbers and a hash per document.
"""

import contextlib
import dataclasses
import hashlib
import os
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from configs.errors import UserError
from data import sources
from data.cleaning import clean_document, has_control_characters
from data.readers import read_documents
from data.sources import SourceEntry
from data.storage.new_directory import new_directory
from data.storage.paths import at
from data.store import is_store, open_store, read_manifest, token_dtype, write_manifest, write_split
from data.tokenizer import Tokenizer
from data.tokenizer_training import get_tokenizer, is_trainable

T = TypeVar("T")

Progress = Callable[[str, int, int | None], None]

SPLIT_METHODS = ("documents", "tail")
_BATCH_CHARACTERS = 1 << 21
_BATCH_DOCUMENTS = 1 << 13
_DIGEST_BYTES = 16
_CLEANED = "control characters"  # the number of documents from which control characters were removed
_NOT_SKIPPED = ("read", "empty", "duplicate", _CLEANED)


class DataChanged(UserError):
    """The store exists and was made from other text."""


def skipped_rows(manifest: dict[str, Any]) -> dict[str, int]:
    """Returns the number of rows and files that were skipped when a store was made, by kind of error."""
    return {kind: count for kind, count in manifest["collected"].items() if kind not in _NOT_SKIPPED and count}


@dataclasses.dataclass(frozen=True)
class _Documents:
    """The cleaned and deduplicated documents in a file: document n is at bytes `ends[n]` to `ends[n + 1]`."""

    file: IO[bytes]
    ends: "array[int]"
    digests: list[bytes]
    counts: Counter[str]

    def text(self, number: int) -> str:
        self.file.seek(self.ends[number])
        return self.file.read(self.ends[number + 1] - self.ends[number]).decode()


@dataclasses.dataclass(frozen=True)
class _Part:
    """A split: document numbers, and the part of each document from `start` to `stop` as fractions of its length."""

    numbers: Sequence[int]
    start: float = 0.0
    stop: float = 1.0

    def texts(self, documents: _Documents) -> Iterator[tuple[int, str]]:
        for number in self.numbers:
            text = documents.text(number)
            piece = text[int(len(text) * self.start) : int(len(text) * self.stop)]
            if piece:
                yield number, piece


def content_digest(text: str) -> bytes:
    """Returns a 16-byte hash of a text; texts that differ only in white space have the same hash."""
    return hashlib.sha256(" ".join(text.split()).encode("utf-8", "replace")).digest()[:_DIGEST_BYTES]


def content_fraction(digest: bytes) -> float:
    """Returns a number in [0, 1) computed from a digest, uniformly distributed over contents."""
    return int.from_bytes(digest[:6], "big") / 2**48


@dataclasses.dataclass(frozen=True)
class StoreOptions:
    """How a token store is made from text; recorded in its manifest.

    Attributes:
        tokenizer: see `tokenizer_training.get_tokenizer`; trained on the training split ("chars": on all documents).
        text_field: column of rows that contains the text.
        validation_fraction: fraction of the documents, or of the characters of each, to hold out; 0: no validation.
        validation_split: "documents" holds out the documents whose content hash is below the fraction, at least one,
            so that adding a document never moves another; "tail" holds out the last part of every document.
        seed: seed of the order in which documents are stored.
        strict: stop at the first bad row or file; otherwise skip and count it.
    """

    tokenizer: str
    text_field: str = "text"
    validation_fraction: float = 0.0
    validation_split: str = "documents"
    seed: int = 0
    strict: bool = True


def _silent(stage: str, done: int, total: int | None) -> None:
    pass


def prepare(
    input: str,
    output: str | Path,
    options: StoreOptions,
    tokenizer: Tokenizer | None = None,
    progress: Progress = _silent,
) -> dict[str, Any]:
    """Makes a token store, or checks that `output` already is this store, and returns its manifest.

    An existing store is compared with the input by the names, sizes and modification times of the files; only files
    that differ in these are read and hashed (datasets always are).

    Args:
        input: see `readers.read_documents`.
        output: directory of the store; it appears only when it is complete.
        options: how the store is made.
        tokenizer: a tokenizer that `options.tokenizer` made earlier; None: make it.
        progress: called with (stage, done, total), in documents.

    Raises:
        UserError: an option or the input is invalid, no document remains, or `output` contains something else.
        DataChanged: `output` is a store made from other text with the same options.
    """
    _check_split(options)
    output = at(output)
    saved = options.tokenizer if is_trainable(options.tokenizer) else _saved_name(options.tokenizer)
    recorded = dataclasses.asdict(options) | {
        "tokenizer": saved,
        "validation_fraction": float(options.validation_fraction),
    }
    if is_store(output):
        return _existing(input, output, recorded, progress)
    entries = sources.hash_sources(input)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    with new_directory(output) as directory, tempfile.TemporaryFile(dir=directory) as scratch:
        documents = _collect(input, options, scratch, progress)
        parts = _split(documents, options, input)
        tokenizer = tokenizer or _tokenizer(options.tokenizer, documents, parts["train"], progress)
        tokenizer.save(directory)
        described = {
            "tokenizer_sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
            "dtype": token_dtype(tokenizer.vocab_size),
            "splits": {
                name: _write(directory / name, documents, part, tokenizer, options.seed, progress)
                for name, part in parts.items()
            },
            "collected": dict(documents.counts),
        }
        write_manifest(directory, _made_from(entries) | {"options": recorded} | described)
    return read_manifest(output)


def _made_from(entries: list[SourceEntry]) -> dict[str, Any]:
    """Returns the fields of the manifest that describe the input; "files" alone determines "source"."""
    files = [[entry.name, entry.size, entry.sha256] for entry in entries]
    return {"source": sources.fingerprint(files), "files": files, "mtimes_ns": [entry.mtime_ns for entry in entries]}


def _tokenizer(spec: str, documents: _Documents, train: _Part, progress: Progress) -> Tokenizer:
    # A character that occurs only in the validation split would be unknown otherwise.
    seen = _Part(range(len(documents.digests))) if spec == "chars" else train

    def texts() -> Iterator[str]:
        return (text for _, text in _shown(seen.texts(documents), progress, "tokenizer", len(seen.numbers)))

    return get_tokenizer(spec, texts)


def _check_split(options: StoreOptions) -> None:
    if not 0 <= options.validation_fraction < 1:
        raise UserError(f"validation_fraction={options.validation_fraction}; expected at least 0 and less than 1")
    if options.validation_split not in SPLIT_METHODS:
        raise UserError(f"validation_split={options.validation_split!r}; expected {' or '.join(SPLIT_METHODS)}")


def _saved_name(spec: str) -> str:
    """Returns a name for a saved tokenizer that does not depend on its path."""
    return f"sha256:{get_tokenizer(spec, tuple).sha256}"


def _existing(input: str, output: Path, options: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Returns the manifest of the store at `output` if it was made from the same text with the same options."""
    manifest = read_manifest(output)
    if not all(isinstance(manifest.get(name), dict) for name in ("options", "collected")) or "source" not in manifest:
        raise UserError(f"{output} is a token store without a record of its input; use a new directory")
    made_from = _made_from(sources.hash_sources(input, _known_files(manifest)))
    before = manifest["options"]
    changed = [
        f"{name} {before.get(name)!r} -> {value!r}" for name, value in options.items() if before.get(name) != value
    ]
    if manifest["source"] != made_from["source"]:
        # Stores of the first versions list no files.
        text = f"files: {', '.join(sources.differences(manifest.get('files', []), made_from['files']))}"
        if not changed:
            raise DataChanged(f"{output} was prepared from other text ({text}); use a new directory, or the same text")
        changed.append(text)
    if changed:
        raise UserError(
            f"{output} was prepared differently ({'; '.join(changed)}); "
            f"use a new directory, or the same text and options"
        )
    for split in manifest["splits"]:
        open_store(output, split)
    if manifest.get("mtimes_ns") != made_from["mtimes_ns"]:
        manifest |= made_from
        # A read-only store is used as it is; its files are hashed again at the next start.
        with contextlib.suppress(OSError):
            write_manifest(output, manifest)
    total = sum(split["documents"] for split in manifest["splits"].values())
    progress("already prepared", total, total)
    return manifest


def _known_files(manifest: dict[str, Any]) -> list[SourceEntry]:
    """Returns the files that a manifest lists with their modification times; stores of older versions have no times."""
    files, times = manifest.get("files"), manifest.get("mtimes_ns")
    if not isinstance(files, list) or not isinstance(times, list) or len(files) != len(times):
        return []
    return [
        SourceEntry(file[0], file[1], file[2], time)
        for file, time in zip(files, times, strict=True)
        if isinstance(time, int) and isinstance(file, list) and [type(value) for value in file] == [str, int, str]
    ]


def _shown(items: Iterable[T], progress: Progress, stage: str, total: int | None) -> Iterator[T]:
    """Yields the items and reports their number, at most ten times per second and at the end."""
    last, done = time.monotonic(), 0
    progress(stage, 0, total)
    for done, item in enumerate(items, 1):
        yield item
        if time.monotonic() - last > 0.1:
            last = time.monotonic()
            progress(stage, done, total)
    progress(stage, done, total)


def _collect(input: str, options: StoreOptions, scratch: IO[bytes], progress: Progress) -> _Documents:
    """Writes the cleaned and deduplicated documents to `scratch`."""
    skipped: Counter[str] = Counter()
    counts = Counter(read=0, empty=0, duplicate=0)
    ends, seen = array("q", [0]), dict[bytes, None]()
    read = read_documents(input, options.text_field, options.strict, skipped)
    for raw in _shown(read, progress, "reading", None):
        counts["read"] += 1
        text = clean_document(raw)
        if has_control_characters(raw):
            counts[_CLEANED] += 1
        digest = content_digest(text)
        if not text or digest in seen:
            counts["duplicate" if text else "empty"] += 1
            continue
        seen[digest] = None
        ends.append(ends[-1] + scratch.write(text.encode()))
    counts.update(skipped)
    if not seen:
        found = ", ".join(f"{number} {kind}" for kind, number in counts.items())
        raise UserError(f"{input}: no documents remain ({found or '0 read'}); expected at least one that is not blank")
    return _Documents(scratch, ends, list(seen), counts)


def _split(documents: _Documents, options: StoreOptions, input: str) -> dict[str, _Part]:
    """Returns the parts "train" and, unless the fraction is 0, "validation"."""
    fraction = options.validation_fraction
    numbers = range(len(documents.digests))
    if not fraction:
        return {"train": _Part(numbers)}
    if options.validation_split == "tail":
        parts = {"train": _Part(numbers, 0.0, 1.0 - fraction), "validation": _Part(numbers, 1.0 - fraction, 1.0)}
        if any(next(part.texts(documents), None) is None for part in parts.values()):
            raise UserError(f"{input}: too short to hold out a tail of {fraction}; expected a longer text")
        return parts
    if len(numbers) == 1:
        raise UserError(f"{input}: a single document cannot be split by documents; use validation_split=tail")
    place = [content_fraction(digest) for digest in documents.digests]
    bound = fraction
    if min(place) >= bound or max(place) < bound:
        # All documents fall into one split: move the one closest to the bound into the other.
        bound = sorted(place)[1] if min(place) >= bound else max(place)
    return {
        "train": _Part([number for number in numbers if place[number] >= bound]),
        "validation": _Part([number for number in numbers if place[number] < bound]),
    }


def _write(
    directory: Path, documents: _Documents, part: _Part, tokenizer: Tokenizer, seed: int, progress: Progress
) -> dict[str, Any]:
    """Tokenizes a part and returns the result of `write_split` and "bytes", the size of the text in UTF-8."""
    total_bytes = 0

    def encoded() -> Iterator[tuple[bytes, list[int]]]:
        """Yields (number, tokens) of each document and adds up the bytes of their texts."""
        nonlocal total_bytes
        texts = _shown(part.texts(documents), progress, f"tokenizing {directory.name}", len(part.numbers))
        for batch in _batches(texts):
            total_bytes += sum(len(text.encode()) for _, text in batch)
            rows = tokenizer.encode_batch([text for _, text in batch])
            for (number, _), ids in zip(batch, rows, strict=True):
                # The store sorts documents by this key, which shuffles them.
                key = hashlib.sha256(seed.to_bytes(8, "big", signed=True) + documents.digests[number]).digest()
                yield key[:_DIGEST_BYTES], [tokenizer.bos_id, *ids, tokenizer.eos_id]

    split = write_split(directory, encoded(), token_dtype(tokenizer.vocab_size))
    return {**split, "bytes": total_bytes}


def _batches(texts: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    batch: list[tuple[int, str]] = []
    characters = 0
    for item in texts:
        batch.append(item)
        characters += len(item[1])
        if characters >= _BATCH_CHARACTERS or len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
