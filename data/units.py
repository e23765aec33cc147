"""Cuts an input into units that are read on their own: parts of large files, and small files together.

The cuts depend only on the input and the size of a unit, and a store does not depend on the cuts.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from data import sources
from data.lines import Part
from data.readers import is_json_array
from data.sources import HuggingFaceDataset, SourceEntry, compression_of, import_optional, suffix_of
from data.storage.paths import at

# Units of this size keep the start of a process cheap beside its work; more units than this only add files.
SMALLEST_UNIT_BYTES, LARGEST_UNIT_BYTES = 1 << 24, 1 << 29
_USUAL_UNITS = 4096


class Piece(NamedTuple):
    """A source, or a part of one.

    Attributes:
        source: a path, a URL, or "hf:NAME:CONFIG:SPLIT".
        part: which part; None: all of it.
    """

    source: str
    part: Part | None

    def open(self) -> Path | HuggingFaceDataset:
        """Returns the source to read."""
        return sources.parse_dataset(self.source) if self.source.startswith("hf:") else at(self.source)


Unit = tuple[Piece, ...]


@dataclasses.dataclass(frozen=True)
class Scan:
    """What reading a source once says about it.

    Attributes:
        entry: its name, size, checksum and time, for the manifest.
        pieces: (piece, bytes) in order; a piece is about as large as a unit, or the whole source.
    """

    entry: SourceEntry
    pieces: list[tuple[Piece, int]]

    def to_json(self) -> list[Any]:
        """Returns a value for `from_json`."""
        return [list(self.entry), [[*piece, size] for piece, size in self.pieces]]

    @staticmethod
    def from_json(value: list[Any]) -> "Scan":
        """Returns the scan that `to_json` wrote."""
        entry, pieces = value
        found = [(Piece(source, None if part is None else Part(*part)), size) for source, part, size in pieces]
        return Scan(SourceEntry(*entry), found)


class _Cuts:
    """Finds where a file of lines can be cut, while its chunks are hashed."""

    def __init__(self, unit_bytes: int) -> None:
        self.unit_bytes = unit_bytes
        self.starts = [(0, 1)]  # (byte, number of the line that begins there)
        self.offset, self.lines, self.blank = 0, 0, True

    def __call__(self, chunk: bytes) -> None:
        begin = 0
        while (target := self.starts[-1][0] + self.unit_bytes - self.offset) <= len(chunk):
            end = chunk.find(b"\n", max(target - 1, begin)) + 1
            if not end:
                break
            self.lines += chunk.count(b"\n", begin, end)
            self.starts.append((self.offset + end, self.lines + 1))
            begin = end
        self.lines += chunk.count(b"\n", begin)
        self.offset += len(chunk)
        self.blank = self.blank and chunk.isspace()

    def parts(self) -> list[Part]:
        """Returns the parts; none if the file is one unit, or blank, which is an error of the whole file."""
        starts = [start for start in self.starts if start[0] < self.offset]
        if self.blank or len(starts) < 2:
            return []
        stops = [start for start, _ in starts[1:]] + [self.offset]
        return [Part(start, stop, first) for (start, first), stop in zip(starts, stops, strict=True)]


class _RowCuts:
    """Finds the rows between which a dataset can be cut, while its rows are hashed."""

    def __init__(self, unit_bytes: int) -> None:
        self.unit_bytes, self.starts, self.rows, self.size = unit_bytes, [0], 0, 0

    def __call__(self, row: bytes) -> None:
        if self.size >= self.unit_bytes:
            self.starts.append(self.rows)
            self.size = 0
        self.rows += 1
        self.size += len(row)

    def parts(self) -> list[Part]:
        """Returns the parts; none if the dataset is one unit."""
        stops = [*self.starts[1:], self.rows]
        parts = [Part(start, stop, start + 1) for start, stop in zip(self.starts, stops, strict=True)]
        return parts if len(parts) > 1 else []


def scan_source(source: Path | HuggingFaceDataset, unit_bytes: int) -> Scan:
    """Returns the checksum of a source and where it is cut; reads it once.

    Files of JSON lines are cut at line ends, .parquet files between row groups and datasets between rows. A text file
    is one document, quotes in a .csv file may contain line ends, and a compressed file can only be read from its
    beginning: these are one piece each.

    Raises:
        UserError: the source cannot be read.
    """
    if isinstance(source, HuggingFaceDataset):
        rows = _RowCuts(unit_bytes)
        entry, parts = sources.hash_dataset(source, rows), rows.parts()
        return Scan(entry, _pieces(source, parts, unit_bytes * max(len(parts), 1)))
    # Taken before the content is read, so that a later write changes the time.
    status = sources.status_of(source)
    if _has_lines(source):
        cuts = _Cuts(unit_bytes)
        size, digest = sources.hash_file(source, cuts)
        pieces = _pieces(source, cuts.parts(), size)
    else:
        size, digest = sources.hash_file(source)
        pieces = _pieces(source, _row_groups(source, unit_bytes), size)
    return Scan(SourceEntry(source.name, size, digest, status.st_mtime_ns), pieces)


def _pieces(source: Path | HuggingFaceDataset, parts: list[Part], size: int) -> list[tuple[Piece, int]]:
    """Returns the pieces of a source of `size` bytes with their sizes; no parts: one piece."""
    name = str(source)
    return [(Piece(name, part), size // len(parts)) for part in parts] or [(Piece(name, None), size)]


def _has_lines(path: Path) -> bool:
    suffix = suffix_of(path)
    return not compression_of(path) and suffix in (".jsonl", ".json") and not is_json_array(path)


def _row_groups(path: Path, unit_bytes: int) -> list[Part]:
    """Returns parts of about `unit_bytes` of a .parquet file, and none for other files."""
    if suffix_of(path) != ".parquet":
        return []
    parquet = import_optional("pyarrow.parquet", str(path))
    try:
        with path.open("rb") as content, parquet.ParquetFile(content) as file:
            groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
            sizes = [(group.num_rows, group.total_byte_size) for group in groups]
    except (OSError, ValueError):
        return []  # reading it as a whole says what is wrong
    starts, first_rows, size, rows = [0], [1], 0, 0
    for number, (count, group_bytes) in enumerate(sizes):
        if size >= unit_bytes:
            starts.append(number)
            first_rows.append(rows + 1)
            size = 0
        size += group_bytes
        rows += count
    stops = [*starts[1:], len(sizes)]
    parts = [Part(*part) for part in zip(starts, stops, first_rows, strict=True)]
    return parts if len(parts) > 1 else []


def plan_units(scans: Iterable[Scan], unit_bytes: int) -> list[Unit]:
    """Returns the units of scanned sources, in order: pieces of `unit_bytes` together, or one larger piece."""
    units: list[Unit] = []
    pieces: list[Piece] = []
    total = 0
    for scan in scans:
        for piece, size in scan.pieces:
            if pieces and total + size > unit_bytes:
                units.append(tuple(pieces))
                pieces, total = [], 0
            pieces.append(piece)
            total += size
    return [*units, tuple(pieces)] if pieces else units


def usual_unit_bytes(input_bytes: int) -> int:
    """Returns the size of a unit for an input: 16 MiB; above 64 GiB more, for about 4,096 units up to 2 TiB."""
    return min(max(input_bytes // _USUAL_UNITS, SMALLEST_UNIT_BYTES), LARGEST_UNIT_BYTES)
