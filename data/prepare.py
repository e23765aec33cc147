"""Text -> token store: collect, clean, remove duplicates, split, train a tokenizer, tokenize, shuffle.

The work is divided into units (`data/preparation/`): memory holds a few numbers per document and the tokens of a unit.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.errors import UserError
from data import sources
from data.card.contents import licenses_of
from data.card.write import replace_licenses, write_card
from data.engines import Engine
from data.filters.chain import FilterOptions, Score
from data.preparation.filtering import make_filters
from data.preparation.gathering import MAX_PREFIX_BITS, shard_count
from data.preparation.pipeline import NotYet, Pipeline, make_store
from data.preparation.reading import ReadOptions, skipped_rows
from data.preparation.splitting import SplitOptions
from data.preparation.workspace import workspace
from data.sources import SourceEntry, match_sources
from data.storage.paths import at
from data.store import is_store, open_store, read_manifest, shards_of, write_manifest
from data.tokenizer import Tokenizer
from data.tokenizer_training import get_tokenizer, is_trainable
from data.units import usual_unit_bytes

Progress = Callable[[str, int, int | None], None]

__all__ = ["SPLIT_METHODS", "DataChanged", "Execution", "NotYet", "StoreOptions", "prepare", "skipped_rows"]

SPLIT_METHODS = ("documents", "tail")
_RECORDED = ("tokenizer", "text_field", "validation_fraction", "validation_split", "seed", "strict")
_USUAL_SHARD_BYTES = 1 << 28
_FILTERS = ("filters", "near_duplicates")


class DataChanged(UserError):
    """The store exists and was made from other text."""


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
        filters: which documents are removed or changed; none by default.
        near_duplicates: smallest Jaccard similarity of documents of which one is removed; 0: none is.
    """

    tokenizer: str
    text_field: str = "text"
    validation_fraction: float = 0.0
    validation_split: str = "documents"
    seed: int = 0
    strict: bool = True
    filters: FilterOptions = dataclasses.field(default_factory=FilterOptions)
    near_duplicates: float = 0.0


@dataclasses.dataclass(frozen=True)
class Execution:
    """How the work is divided, and what only the caller knows; the documents in a store do not depend on it.

    Attributes:
        engine: who does the work.
        unit_bytes: bytes of the input that a process reads at a time; 0: by the size of the input.
        shard_bytes: bytes of tokens in a shard at most, on average; 0: 256 MiB, and any size of an existing store.
        score: scores documents for `StoreOptions.filters.score_with`; picklable.
        command: how the store is made, for its card.
        licenses: of the sources, for its card; see `data.card.contents.licenses_of`.
    """

    engine: Engine = dataclasses.field(default_factory=Engine)
    unit_bytes: int = 0
    shard_bytes: int = 0
    score: Score | None = None
    command: str = ""
    licenses: tuple[str, ...] = ()


def _silent(stage: str, done: int, total: int | None) -> None:
    pass


def prepare(
    input: str,
    output: str | Path,
    options: StoreOptions,
    tokenizer: Tokenizer | None = None,
    progress: Progress = _silent,
    execution: Execution = Execution(),
) -> dict[str, Any]:
    """Makes a token store, or checks that `output` already is this store, and returns its manifest.

    An existing store is compared with the input by the names, sizes and modification times of the files; only files
    that differ in these are read and hashed (datasets always are). If a command was killed, the same one continues
    with the units that are not done. Of an existing store other licenses replace those in its card.

    Args:
        input: see `readers.read_documents`.
        output: directory of the store; it appears only when it is complete.
        options: how the store is made.
        tokenizer: a tokenizer that `options.tokenizer` made earlier; None: make it.
        progress: called with (stage, jobs done, jobs).
        execution: how the work is divided.

    Raises:
        UserError: an option or the input is invalid, no document remains, or `output` contains something else.
        DataChanged: `output` is a store made from other text with the same options.
        NotYet: `execution.engine.part` is done, and the next stage needs the other parts.
    """
    _check(options, execution)
    output = at(output)
    saved = options.tokenizer if is_trainable(options.tokenizer) else _saved_name(options.tokenizer)
    filters = make_filters(options.filters, options.near_duplicates, execution.score)
    recorded = {name: getattr(options, name) for name in _RECORDED} | {
        "tokenizer": saved,
        "validation_fraction": float(options.validation_fraction),
        **filters.recorded(),
    }
    if is_store(output):
        manifest = _existing(input, output, recorded, progress)
        _check_shards(output, manifest, execution.shard_bytes)
        if execution.licenses:
            replace_licenses(output, execution.licenses, execution.command)
        return manifest
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    found = match_sources(input)
    described = [_described(source) for source in found]
    licenses = licenses_of([name for name, _, _ in described], execution.licenses)
    unit_bytes = execution.unit_bytes or usual_unit_bytes(sum(size for _, size, _ in described))
    shard_bytes = execution.shard_bytes or _USUAL_SHARD_BYTES
    pipeline = Pipeline(
        input=input,
        tokenizer=tokenizer or options.tokenizer,
        read=filters.read_options(ReadOptions(options.text_field, options.strict)),
        split=SplitOptions(options.validation_fraction, options.validation_split, filters.deletions()),
        seed=options.seed,
        unit_bytes=unit_bytes,
        shard_bytes=shard_bytes,
    )
    request = {
        "options": recorded,
        "tokenizer": tokenizer.sha256 if tokenizer else "",
        "sources": hashlib.sha256(json.dumps(described).encode()).hexdigest(),
        "unit_bytes": unit_bytes,
        "shard_bytes": shard_bytes,
    }
    with workspace(output, request, shared=execution.engine.part is not None) as space:
        made = make_store(pipeline, found, space, execution.engine, progress)
        about = filters.take_card_fields(made)
        fields = ("source", "files", "mtimes_ns")
        ordered = {name: made.pop(name) for name in fields} | {"options": recorded} | made
        write_card(space, output.name, ordered, about, (execution.command, licenses))
        write_manifest(space.store, ordered)
    return read_manifest(output)


def _described(source: Path | sources.HuggingFaceDataset) -> tuple[str, int, int | str]:
    """Returns what tells versions of a source apart without reading it: its name, size and modification time."""
    if isinstance(source, sources.HuggingFaceDataset):
        return str(source), 0, sources.dataset_version(source)
    status = sources.status_of(source)
    return str(source), status.st_size, status.st_mtime_ns


def _check(options: StoreOptions, execution: Execution) -> None:
    if not 0 <= options.validation_fraction < 1:
        raise UserError(f"validation_fraction={options.validation_fraction}; expected at least 0 and less than 1")
    if options.validation_split not in SPLIT_METHODS:
        raise UserError(f"validation_split={options.validation_split!r}; expected {' or '.join(SPLIT_METHODS)}")
    if execution.unit_bytes < 0:
        raise UserError(f"unit_bytes={execution.unit_bytes}; expected the size of a unit, or 0")
    if execution.shard_bytes < 0:
        raise UserError(f"shard_bytes={execution.shard_bytes}; expected the size of a shard, or 0")


def _saved_name(spec: str) -> str:
    """Returns a name for a saved tokenizer that does not depend on its path."""
    return f"sha256:{get_tokenizer(spec, tuple).sha256}"


def _existing(input: str, output: Path, options: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Returns the manifest of the store at `output` if it was made from the same text with the same options."""
    manifest = read_manifest(output)
    if not all(isinstance(manifest.get(name), dict) for name in ("options", "collected")) or "source" not in manifest:
        raise UserError(f"{output} is a token store without a record of its input; use a new directory")
    made_from = sources.manifest_fields(sources.hash_sources(input, _known_files(manifest)))
    before = manifest["options"]
    # Stores that were made without filters record none.
    names = [*options, *(name for name in _FILTERS if name in before and name not in options)]
    changed = [
        f"{name} {before.get(name)!r} -> {options.get(name)!r}"
        for name in names
        if before.get(name) != options.get(name)
    ]
    if manifest["source"] != made_from["source"]:
        # Stores of the first versions list no files.
        found = sources.differences(manifest.get("files", []), made_from["files"])
        text = f"files: {', '.join(found)}" if found else "the same files in another order"
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


def _check_shards(output: Path, manifest: dict[str, Any], shard_bytes: int) -> None:
    """Raises UserError if a store has another number of shards than a size of shards would make; 0: any number."""
    for name, split in manifest["splits"].items() if shard_bytes else ():
        found = len(shards_of(manifest, name))
        wanted = shard_count(split["tokens"], manifest["dtype"], shard_bytes, MAX_PREFIX_BITS)
        if found != wanted:
            raise UserError(
                f"{output} has {found} shards of {name!r}, but shards of {shard_bytes:,} bytes would be {wanted}; "
                "use a new directory, or leave out the size of shards"
            )


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
