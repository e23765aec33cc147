"""Stage 3: the tokens of a unit, sorted by the key that shuffles documents, ready to be gathered into shards."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.preparation.composition import Composition
from data.preparation.reading import DIGEST_BYTES, digest_array
from data.preparation.unit_files import UnitFiles, write_array, write_mark
from data.store import token_dtype
from data.tokenizer import Tokenizer, load_tokenizer

_BATCH_CHARACTERS = 1 << 21
_BATCH_DOCUMENTS = 1 << 13


@dataclasses.dataclass(frozen=True)
class TokenizeOptions:
    """How units are tokenized.

    Attributes:
        tokenizer: (directory of the tokenizer, its SHA-256).
        seed: of the order of documents.
        parts: {split: (place, start, stop)}; see `splitting.split_units`.
        prefix_bits: a unit's documents can be found by the first bits of their key, up to this many.
    """

    tokenizer: tuple[Path, str]
    seed: int
    parts: dict[str, tuple[int, float, float]]
    prefix_bits: int


@functools.lru_cache(1)
def _tokenizer(saved: tuple[Path, str]) -> Tokenizer:
    """Loads a tokenizer once per process; another one in the same directory has another checksum."""
    return load_tokenizer(saved[0])


def unit_file(split: str, number: int, kind: str) -> str:
    """Returns the name of a file of a unit's split: its "tokens"; its "keys", uint64[n, 3] of key and length; or its
    "table", int64[2^bits + 1, 2]: documents and tokens before each prefix of keys.
    """  # noqa: D205
    return f"tokenize-{number:06}-{split}.{kind}"


def tokenize_unit(folder: Path, options: TokenizeOptions, number: int) -> None:
    """Writes the tokens, keys and table of each split of a unit, and deletes its text, which nothing reads any more."""
    unit, tokenizer = UnitFiles(folder, number), _tokenizer(options.tokenizer)
    about = Composition()
    counts = {split: _tokenize(unit, split, options, tokenizer, about) for split in options.parts}
    write_mark(folder, "tokenize", number, {"counts": counts, "composition": about.to_json()})
    unit.text_path.unlink(missing_ok=True)


def _tokenize(
    unit: UnitFiles, split: str, options: TokenizeOptions, tokenizer: Tokenizer, about: Composition
) -> dict[str, int]:
    place, start, stop = options.parts[split]
    rows = np.flatnonzero(unit.places() == place).tolist()
    dtype = token_dtype(tokenizer.vocab_size)
    documents: list[np.ndarray] = []
    used: list[int] = []
    sizes: list[int] = []
    texts = (
        (row, text[int(len(text) * start) : int(len(text) * stop)])
        for row, text in zip(rows, unit.texts(rows), strict=True)
    )
    for batch in _batches((row, text) for row, text in texts if text):
        sizes += [len(text.encode()) for _, text in batch]
        documents += tokenizer.encode_documents([text for _, text in batch], dtype)
        used += [row for row, _ in batch]
    lengths = np.array([len(ids) for ids in documents], np.int64)
    about.add(unit, used, np.array(sizes, np.int64), lengths)
    keys = shuffle_keys(unit.array("digests")[used], options.seed)
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    keys, lengths = keys[order], lengths[order]
    bounds = _prefix_bounds(keys[:, 0], options.prefix_bits)
    table = np.stack([bounds, np.concatenate([[0], np.cumsum(lengths)])[bounds]], axis=1)
    tokens = np.concatenate([np.empty(0, dtype), *(documents[row] for row in order.tolist())])
    contents = {"tokens": tokens, "keys": np.column_stack([keys, lengths.astype(np.uint64)]), "table": table}
    for kind, content in contents.items():
        write_array(unit.folder / unit_file(split, unit.number, kind), content)
    unknown = int(np.count_nonzero(tokens == tokenizer.unknown_id)) if tokenizer.unknown_id >= 0 else 0
    return {"documents": len(documents), "tokens": len(tokens), "bytes": sum(sizes), "unknown": unknown}


def shuffle_keys(digests: np.ndarray, seed: int) -> np.ndarray:
    """Returns uint64[n, 2]: the order of the documents with these digests, which sorting by these keys shuffles."""
    prefix, data = seed.to_bytes(8, "big", signed=True), digests.astype(">u8").tobytes()
    keys = (
        hashlib.sha256(prefix + data[start : start + DIGEST_BYTES]).digest()[:DIGEST_BYTES]
        for start in range(0, len(data), DIGEST_BYTES)
    )
    return digest_array(b"".join(keys))


def _prefix_bounds(keys: np.ndarray, bits: int) -> np.ndarray:
    """Returns int64[2^bits + 1]: how many of the sorted keys have a smaller prefix than each, and their number."""
    if not bits:
        return np.array([0, len(keys)])
    firsts = np.arange(1 << bits, dtype=np.uint64) << np.uint64(64 - bits)
    return np.append(np.searchsorted(keys, firsts), len(keys))


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


def token_counts(marks: Iterable[dict[str, Any]], splits: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Returns {split: {"documents", "tokens", "bytes", "unknown"}} summed over the marks of the units."""
    none = {"documents": 0, "tokens": 0, "bytes": 0, "unknown": 0}
    totals: dict[str, dict[str, Any]] = {split: dict(none) for split in splits}
    for mark in marks:
        for split, counts in mark["counts"].items():
            for kind, count in counts.items():
                totals[split][kind] += count
    return totals
