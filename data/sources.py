"""Where text and labelled rows come from: files, globs, directories, Hugging Face datasets.

A fault in a file ends the reading with one line that says where it is; with `strict=False` the row is skipped and
counted instead.
"""

import csv
import dataclasses
import glob
import gzip
import hashlib
import importlib
import json
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from configs.errors import UserError

TEXT_SUFFIXES = (".txt", ".md", ".rst")
ROW_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
COMPRESSED_SUFFIXES = (".gz", ".zst")
_LEGAL = f"{' '.join(TEXT_SUFFIXES + ROW_SUFFIXES)}, all but .parquet also with .gz or .zst"
_LEGAL_PATTERNS = f"a file, a glob or a directory of {_LEGAL}, or hf:NAME"
_CHUNK_BYTES = 1 << 20
# A row that is longer is taken for a file without line feeds; the Bible as one row is half of it.
LONGEST_LINE_BYTES = 1 << 23

Row = dict[str, object]
Inventory = list[list[Any]]


@dataclasses.dataclass(frozen=True)
class _Faults:
    """What to do about a fault: raise it, or count it by kind."""

    strict: bool
    report: Counter[str]

    def found(self, kind: str, message: str) -> None:
        if self.strict:
            raise UserError(message)
        self.report[kind] += 1


@dataclasses.dataclass(frozen=True)
class _HuggingFace:
    """A dataset of the `datasets` library: a name on the hub, or a directory here, and its split."""

    name: str
    split: str

    def __str__(self) -> str:
        return f"hf:{self.name}:{self.split}"


def read_documents(
    pattern: str, text_field: str = "text", strict: bool = True, report: Counter[str] | None = None
) -> Iterator[str]:
    """Yields documents, in the same order every time.

    Args:
        pattern: a file, a glob (`**` too), a directory, several of these with commas, or "hf:NAME[:SPLIT]". A .txt, .md
            or .rst is one document; a .jsonl, .json (one object a line), .csv, .tsv, .parquet or dataset has one a row.
        text_field: the column that holds the text of a row.
        strict: raise at the first fault; otherwise skip the row or file.
        report: counts what was skipped, by kind of fault.

    Raises:
        UserError: nothing matches, an unknown suffix or, if strict, a fault: empty, not UTF-8, broken JSON or CSV, a
            line of more than 8 MiB, no such field, a value that is not text.
    """
    faults = _Faults(strict, Counter() if report is None else report)
    for source in _sources(pattern):
        if isinstance(source, Path) and _kind(source) in TEXT_SUFFIXES:
            yield from _read_text(source, faults)
            continue
        for place, row in _read_source(source, faults):
            text = row.get(text_field)
            if isinstance(text, str):
                yield text
            elif text_field in row:
                kind = type(text).__name__
                faults.found("not text", f"{place}: {text_field!r} is of type {kind}; legal: a string")
            else:
                fields = ", ".join(map(str, row))
                faults.found("missing field", f"{place}: no field {text_field!r}; fields found: {fields}")


def read_rows(pattern: str, strict: bool = True, report: Counter[str] | None = None) -> Iterator[Row]:
    """Yields rows as dicts, in the same order every time; see `read_documents` for arguments and errors.

    Values are strings in .csv and .tsv, and keep their types elsewhere.
    """
    faults = _Faults(strict, Counter() if report is None else report)
    for source in _sources(pattern):
        if isinstance(source, Path) and _kind(source) in TEXT_SUFFIXES:
            raise UserError(f"{source} has no rows; legal: {' '.join(ROW_SUFFIXES)}, or hf:NAME")
        for _, row in _read_source(source, faults):
            yield row


def split_sources(pattern: str) -> list[str]:
    """Returns a pattern for each file or dataset that `pattern` stands for.

    Raises:
        UserError: nothing matches.
    """
    return [str(source) for source in _sources(pattern)]


def fingerprint(files: Inventory) -> str:
    """Returns a SHA-256 that names a source's content."""
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def inventory(pattern: str) -> Inventory:
    """Returns [name, bytes, SHA-256] of each file, or [name, rows, SHA-256] of a dataset.

    Raises:
        UserError: nothing matches, or a file cannot be read.
    """
    entries: Inventory = []
    for source in _sources(pattern):
        digest, size = hashlib.sha256(), 0
        if isinstance(source, Path):
            name = source.name
            for chunk in _chunks(source, decompress=False):
                digest.update(chunk)
                size += len(chunk)
        else:
            name = str(source)
            for size, row in enumerate(_read_hugging_face(source), 1):  # noqa: B007 - the last one is the size
                digest.update(repr(row).encode("utf-8", "backslashreplace"))
        entries.append([name, size, digest.hexdigest()])
    return entries


def differences(before: Inventory, now: Inventory) -> list[str]:
    """Returns a text for each file that is new, gone or another: size and beginning of its hash, then -> now."""

    def held(files: Inventory) -> dict[str, str]:
        seen: Counter[str] = Counter()
        named = {}
        for name, size, digest in files:
            seen[name] += 1
            named[f"{name} ({seen[name]})" if seen[name] > 1 else name] = f"{size:,} {digest[:8]}"
        return named

    old, new = held(before), held(now)
    changed = [name for name in old | new if old.get(name) != new.get(name)]
    return [f"{name}: {old.get(name, 'not there')} -> {new.get(name, 'gone')}" for name in changed]


def _sources(pattern: str) -> list[Path | _HuggingFace]:
    """Returns what a pattern stands for, each file once."""
    found: dict[Path | _HuggingFace, None] = {}
    # A file whose own name has a comma is meant as it is.
    for part in [pattern] if Path(pattern).exists() else pattern.split(","):
        found |= dict.fromkeys(_match(part.strip()))
    return list(found)


def _match(part: str) -> list[Path | _HuggingFace]:
    if part.startswith("hf:"):
        name, _, split = part[3:].partition(":")
        if not name:
            raise UserError(f"{part!r} names no dataset; legal: hf:NAME or hf:NAME:SPLIT")
        return [_HuggingFace(name, split or "train")]
    if not part:
        raise UserError(f"the input is empty; legal: {_LEGAL_PATTERNS}")
    if Path(part).is_dir():
        files = sorted(path for path in Path(part).rglob("*") if path.is_file() and _kind(path) is not None)
    elif Path(part).exists():
        files = [Path(part)]
    else:
        files = sorted(path for path in map(Path, glob.glob(part, recursive=True)) if path.is_file())
    if not files:
        raise UserError(f"{part!r} matches no file to read; legal: {_LEGAL_PATTERNS}")
    for path in files:
        if _kind(path) is None:
            raise UserError(f"{path}: suffix {path.suffix!r} is unknown; legal: {_LEGAL}")
    return list(files)


def _kind(path: Path) -> str | None:
    """Returns the suffix that says how to read a file; None: no legal one."""
    compressed = path.suffix in COMPRESSED_SUFFIXES
    suffix = Path(path.stem).suffix if compressed else path.suffix
    legal = TEXT_SUFFIXES + (ROW_SUFFIXES[:-1] if compressed else ROW_SUFFIXES)
    return suffix if suffix in legal else None


def _extra(name: str, why: str) -> Any:  # noqa: ANN401 - a module
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"{why} needs the {name} package: pip install 'rootstock[data]'") from None


def _chunks(path: Path, decompress: bool = True) -> Iterator[bytes]:
    """Yields the bytes of a file, decompressed, in parts."""
    compression = path.suffix if decompress else ""
    zstandard = _extra("zstandard", str(path)) if compression == ".zst" else None
    damage: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error)
    if zstandard is not None:
        damage += (zstandard.ZstdError,)
    try:
        with path.open("rb") as raw:
            if zstandard is not None:
                yield from _zst_chunks(raw, zstandard.ZstdDecompressor())
                return
            with gzip.open(raw) if compression == ".gz" else raw as file:
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk
    except damage as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _zst_chunks(raw: IO[bytes], decompressor: Any) -> Iterator[bytes]:  # noqa: ANN401 - a type of an extra
    """Yields what a file of one or several frames holds; the library's own reader takes a cut-off frame for a whole."""
    stream = None
    while data := raw.read(_CHUNK_BYTES):
        while data:
            stream = stream or decompressor.decompressobj()
            yield stream.decompress(data)
            data = stream.unused_data
            stream = None if stream.eof else stream
    if stream is not None:
        raise EOFError("the file ends in the middle of the compressed data")


def _read_text(path: Path, faults: _Faults) -> Iterator[str]:
    data = b"".join(_chunks(path))
    if not data.strip():
        faults.found("empty file", f"{path} is empty")
        return
    try:
        yield data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        faults.found("not UTF-8", _not_utf8(path, error.start, data[error.start]))


def _not_utf8(path: Path, offset: int, byte: int) -> str:
    return f"{path} is not UTF-8: byte 0x{byte:02x} at offset {offset}"


def _lines(path: Path, faults: _Faults) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, line with its line feed) of the lines that are UTF-8."""
    offset = 0
    for number, (line, size) in enumerate(_split_lines(_chunks(path)), 1):
        if size > LONGEST_LINE_BYTES:
            legal = f"at most {LONGEST_LINE_BYTES:,}; a longer document is a file of its own"
            faults.found("too long", f"{path}:{number}: a line of {size:,} bytes; legal: {legal}")
            offset += size
            continue
        try:
            text = line.decode("utf-8")
            yield number, text.removeprefix("\ufeff") if number == 1 else text
        except UnicodeDecodeError as error:
            faults.found("not UTF-8", _not_utf8(path, offset + error.start, line[error.start]))
        offset += size


def _split_lines(chunks: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
    """Yields (line, its bytes); of a line that is too long only the length, so that it takes no memory."""
    parts: list[bytes] = []
    size = 0
    for chunk in chunks:
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            yield b"".join([*parts, line, b"\n"]), size + len(line) + 1
            parts, size = [], 0
        parts.append(rest)
        size += len(rest)
        if size > LONGEST_LINE_BYTES:
            parts = []
    if size:
        yield b"".join(parts), size


def _read_source(source: Path | _HuggingFace, faults: _Faults) -> Iterator[tuple[str, Row]]:
    """Yields (place, row): the place is what an error about the row names."""
    rows: Iterator[tuple[str, Row]]
    if isinstance(source, _HuggingFace):
        rows = ((f"{source}: row {number}", row) for number, row in enumerate(_read_hugging_face(source), 1))
    elif _kind(source) == ".parquet":
        rows = _read_parquet(source)
    elif _kind(source) in (".csv", ".tsv"):
        rows = _read_csv(source, "\t" if _kind(source) == ".tsv" else ",", faults)
    else:
        rows = _read_json_lines(source, faults)
    before, empty = faults.report.total(), True
    for item in rows:
        empty = False
        yield item
    if empty and faults.report.total() == before:
        faults.found("empty file", f"{source} is empty: it holds no rows")


def _read_json_lines(path: Path, faults: _Faults) -> Iterator[tuple[str, Row]]:
    for number, line in _lines(path, faults):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
            if "\\ud" in line.lower():
                json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            faults.found("not Unicode", f"{place}: a \\ud... escape without its other half is no character")
            continue
        except (ValueError, RecursionError) as error:
            faults.found("broken JSON", f"{place}: broken JSON: {error}; legal: one JSON object a line")
            continue
        if isinstance(row, dict):
            yield place, row
        else:
            faults.found("broken JSON", f"{place}: a JSON {type(row).__name__}; legal: one JSON object a line")


def _read_csv(path: Path, delimiter: str, faults: _Faults) -> Iterator[tuple[str, Row]]:
    # The module refuses fields above 128 KiB unless told otherwise, and only a process-wide limit can be set.
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader((line for _, line in _lines(path, faults)), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        try:
            values = next(reader, None)
        except csv.Error as error:
            faults.found("broken CSV", f"{path}:{reader.line_num}: broken CSV: {error}")
            continue
        if values is None:
            return
        if header is None:
            header = values
        elif values and len(values) != len(header):
            message = f"{path}:{reader.line_num}: {len(values)} columns; the header has {len(header)}: {header}"
            faults.found("broken CSV", message)
        elif values:
            yield f"{path}:{reader.line_num}", dict(zip(header, values, strict=True))


def _read_parquet(path: Path) -> Iterator[tuple[str, Row]]:
    parquet = _extra("pyarrow.parquet", str(path))
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", row
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
        raise UserError(f"{path} cannot be read after row {number}: {_first_line(error)}") from None


def _read_hugging_face(source: _HuggingFace) -> Iterator[Row]:
    datasets = _extra("datasets", str(source))
    try:
        rows = datasets.load_dataset(source.name, split=source.split)
    except Exception as error:  # the library and what it calls raise errors of many kinds
        raise UserError(f"{source} cannot be loaded: {type(error).__name__}: {_first_line(error)}") from None
    yield from rows


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
