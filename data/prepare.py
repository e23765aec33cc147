"""Text -> token store: collect, clean, remove duplicates, split, train a tokenizer, tokenize, shuffle.

The source is read once; the documents that remain are kept in a scratch file beside the store while it is made. In
memory are only two numbers and a hash for each document.
"""

import dataclasses
import hashlib
import os
import re
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from configs.errors import UserError
from data import sources
from data.store import is_store, new_store, open_store, read_manifest, token_dtype, write_manifest, write_split
from data.tokenizer import Tokenizer
from data.tokenizer_training import get_tokenizer, is_trainable

T = TypeVar("T")

Progress = Callable[[str, int, int | None], None]

SPLIT_METHODS = ("documents", "tail")
_BATCH_CHARACTERS = 1 << 21
_BATCH_DOCUMENTS = 1 << 13
_DIGEST_BYTES = 16
_CLEANED = "control characters"  # documents that had some, which were taken out
_NO_FAULTS = ("read", "empty", "duplicate", _CLEANED)
# Everything of Unicode category Cc but line feed and tab, and halves of surrogate pairs, which UTF-8 cannot hold.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class DataChanged(UserError):
    """A store is there, of other text."""


def skipped_rows(manifest: dict[str, Any]) -> dict[str, int]:
    """Returns how many rows or files of each kind of fault a store's text was read without."""
    return {kind: count for kind, count in manifest["collected"].items() if kind not in _NO_FAULTS and count}


@dataclasses.dataclass(frozen=True)
class _Documents:
    """The documents that remain, in a file: number n at bytes `ends[n]` to `ends[n + 1]`."""

    file: IO[bytes]
    ends: "array[int]"
    digests: list[bytes]
    counts: Counter[str]

    def text(self, number: int) -> str:
        self.file.seek(self.ends[number])
        return self.file.read(self.ends[number + 1] - self.ends[number]).decode()


@dataclasses.dataclass(frozen=True)
class _Part:
    """A split: these documents, of each the characters from `start` to `stop`, as fractions of its length."""

    numbers: Sequence[int]
    start: float = 0.0
    stop: float = 1.0

    def texts(self, documents: _Documents) -> Iterator[tuple[int, str]]:
        for number in self.numbers:
            text = documents.text(number)
            piece = text[int(len(text) * self.start) : int(len(text) * self.stop)]
            if piece:
                yield number, piece


def clean(text: str) -> str:
    """Returns the text without control characters (line feeds and tabs stay) and without blanks at its end."""
    return _UNPRINTABLE.sub("", text.replace("\r\n", "\n").replace("\r", "\n")).rstrip()


def content_digest(text: str) -> bytes:
    """Returns 16 bytes that name a text; texts that differ only in white space have the same."""
    return hashlib.sha256(" ".join(text.split()).encode("utf-8", "replace")).digest()[:_DIGEST_BYTES]


def content_fraction(digest: bytes) -> float:
    """Returns a number in [0, 1) that depends on the digest alone, uniform over contents."""
    return int.from_bytes(digest[:6], "big") / 2**48


def _silent(stage: str, done: int, total: int | None) -> None:
    pass


def prepare(
    input: str,
    output: str | Path,
    tokenizer_spec: str,
    *,
    text_field: str = "text",
    validation_fraction: float = 0.0,
    validation_split: str = "documents",
    seed: int = 0,
    strict: bool = True,
    tokenizer: Tokenizer | None = None,
    progress: Progress = _silent,
) -> dict[str, Any]:
    """Makes a token store, or finds that `output` is that store already, and returns its manifest.

    Args:
        input: see `sources.read_documents`.
        output: directory of the store; it appears only when it is complete.
        tokenizer_spec: see `tokenizer.get_tokenizer`; trained on the training part, "chars" on everything.
        text_field: column of rows that holds the text.
        validation_fraction: part of the documents, or of each one's characters, to hold out; 0: no validation split.
        validation_split: "documents" holds out those whose content's hash falls below the fraction, so that adding one
            moves no other, and at least one; "tail" cuts every document at (1 - fraction) of its characters.
        seed: of the order in which documents are stored.
        strict: stop at the first fault of the source; otherwise skip and count it.
        tokenizer: one that is there already, for what `tokenizer_spec` once made.
        progress: called with (stage, done, total), in documents.

    Raises:
        UserError: an option or the source is at fault, no document remains, or `output` holds something else.
    """
    _check_split(validation_fraction, validation_split)
    output = Path(output)
    files = sources.inventory(input)
    made_from = {
        "source": sources.fingerprint(files),
        "files": files,
        "options": {
            "tokenizer": tokenizer_spec if is_trainable(tokenizer_spec) else _saved_name(tokenizer_spec),
            "text_field": text_field,
            "validation_fraction": float(validation_fraction),
            "validation_split": validation_split,
            "seed": seed,
            "strict": strict,
        },
    }
    if is_store(output):
        return _existing(output, made_from, progress)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    with new_store(output) as directory, tempfile.TemporaryFile(dir=directory) as scratch:
        documents = _collect(input, text_field, strict, scratch, progress)
        parts = _split(documents, validation_fraction, validation_split, input)
        tokenizer = tokenizer or _tokenizer(tokenizer_spec, documents, parts["train"], progress)
        tokenizer.save(directory)
        described = {
            "tokenizer_sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
            "dtype": token_dtype(tokenizer.vocab_size),
            "splits": {
                name: _write(directory / name, documents, part, tokenizer, seed, progress)
                for name, part in parts.items()
            },
            "collected": dict(documents.counts),
        }
        write_manifest(directory, made_from | described)
    return read_manifest(output)


def _tokenizer(spec: str, documents: _Documents, train: _Part, progress: Progress) -> Tokenizer:
    # A character that only the held-out part has would be unknown.
    seen = _Part(range(len(documents.digests))) if spec == "chars" else train

    def texts() -> Iterator[str]:
        return (text for _, text in _shown(seen.texts(documents), progress, "tokenizer", len(seen.numbers)))

    return get_tokenizer(spec, texts)


def _check_split(fraction: float, method: str) -> None:
    if not 0 <= fraction < 1:
        raise UserError(f"validation_fraction is {fraction}; legal: from 0 to below 1")
    if method not in SPLIT_METHODS:
        raise UserError(f"validation_split is {method!r}; legal: {', '.join(SPLIT_METHODS)}")


def _saved_name(spec: str) -> str:
    """Returns what names a saved tokenizer wherever it lies."""
    return f"sha256:{get_tokenizer(spec, tuple).sha256}"


def _existing(output: Path, made_from: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Returns the manifest of the store at `output` if it was made from the same text with the same options."""
    manifest = read_manifest(output)
    if not all(isinstance(manifest.get(name), dict) for name in ("options", "collected")) or "source" not in manifest:
        raise UserError(f"{output} is a token store that says not what it was made of; legal: a new directory")
    before, now = manifest["options"], made_from["options"]
    changed = [f"{name} {before.get(name)!r} -> {now[name]!r}" for name in now if before.get(name) != now[name]]
    if manifest["source"] != made_from["source"]:
        # A store from before files were listed has none.
        files = sources.differences(manifest.get("files", []), made_from["files"])
        text = f"the text itself: {', '.join(files)}"
        if not changed:
            raise DataChanged(
                f"{output} holds a store made otherwise ({text}); legal: a new directory, or the same text"
            )
        changed.append(text)
    if changed:
        raise UserError(
            f"{output} holds a store made otherwise ({'; '.join(changed)}); "
            f"legal: a new directory, or the same text and options"
        )
    for split in manifest["splits"]:
        open_store(output, split)
    total = sum(split["documents"] for split in manifest["splits"].values())
    progress("already prepared", total, total)
    return manifest


def _shown(items: Iterable[T], progress: Progress, stage: str, total: int | None) -> Iterator[T]:
    """Yields the items and reports how many, at most ten times a second and at the end."""
    last, done = time.monotonic(), 0
    progress(stage, 0, total)
    for done, item in enumerate(items, 1):
        yield item
        if time.monotonic() - last > 0.1:
            last = time.monotonic()
            progress(stage, done, total)
    progress(stage, done, total)


def _collect(pattern: str, text_field: str, strict: bool, scratch: IO[bytes], progress: Progress) -> _Documents:
    """Writes the documents that remain after cleaning and removal of duplicates to `scratch`."""
    skipped: Counter[str] = Counter()
    counts = Counter(read=0, empty=0, duplicate=0)
    ends, seen = array("q", [0]), dict[bytes, None]()
    read = sources.read_documents(pattern, text_field, strict, skipped)
    for raw in _shown(read, progress, "reading", None):
        counts["read"] += 1
        text = clean(raw)
        if _UNPRINTABLE.search(raw.replace("\r", "\n")):
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
        raise UserError(f"{pattern}: no documents remain ({found or '0 read'}); legal: at least one that is not blank")
    return _Documents(scratch, ends, list(seen), counts)


def _split(documents: _Documents, fraction: float, method: str, pattern: str) -> dict[str, _Part]:
    """Returns the parts "train" and, unless `fraction` is 0, "validation"."""
    numbers = range(len(documents.digests))
    if not fraction:
        return {"train": _Part(numbers)}
    if method == "tail":
        parts = {"train": _Part(numbers, 0.0, 1.0 - fraction), "validation": _Part(numbers, 1.0 - fraction, 1.0)}
        if any(next(part.texts(documents), None) is None for part in parts.values()):
            raise UserError(f"{pattern}: too short to cut off a tail of {fraction}; legal: a longer text")
        return parts
    if len(numbers) == 1:
        raise UserError(f"{pattern}: one document cannot be split by documents; legal: validation_split=tail")
    place = [content_fraction(digest) for digest in documents.digests]
    bound = fraction
    if min(place) >= bound or max(place) < bound:
        # All fall on one side: the one next to the other side moves over.
        bound = sorted(place)[1] if min(place) >= bound else max(place)
    return {
        "train": _Part([number for number in numbers if place[number] >= bound]),
        "validation": _Part([number for number in numbers if place[number] < bound]),
    }


def _write(
    directory: Path, documents: _Documents, part: _Part, tokenizer: Tokenizer, seed: int, progress: Progress
) -> dict[str, Any]:
    """Tokenizes a part and returns what `write_split` does, and "bytes" of UTF-8 text."""
    total_bytes = 0

    def encoded() -> Iterator[tuple[bytes, list[int]]]:
        nonlocal total_bytes
        texts = _shown(part.texts(documents), progress, f"tokenizing {directory.name}", len(part.numbers))
        for batch in _batches(texts):
            total_bytes += sum(len(text.encode()) for _, text in batch)
            rows = tokenizer.encode_batch([text for _, text in batch])
            for (number, _), ids in zip(batch, rows, strict=True):
                # Sorting by this hash is the shuffle: neighbours in the store are unrelated.
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
