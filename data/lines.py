"""Bytes of a file -> text and lines: decompression, UTF-8, line numbers; of a whole file or of a part of one."""

import dataclasses
import gzip
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from configs.errors import UserError
from data.sources import CHUNK_BYTES, compression_of, import_optional

# A longer row is taken for a file without line feeds; the whole Bible as one row is half as long.
LONGEST_LINE_BYTES = 1 << 23
EMPTY = "empty file"


class Part(NamedTuple):
    """A part of a file or dataset that is read on its own.

    Attributes:
        start: bytes of a file of lines, row groups of a .parquet file or rows of a dataset before the part.
        stop: where it ends; a part of a file of lines ends with a line.
        first: the number of its first line or row, counted from 1 in the whole file, for messages.
    """

    start: int
    stop: int
    first: int


@dataclasses.dataclass(frozen=True)
class BadInput:
    """Raises the first error in the input (strict), or counts the errors by kind and may keep their messages."""

    strict: bool
    skipped: Counter[str]
    keeps_messages: bool = False
    messages: list[str] = dataclasses.field(default_factory=list)

    def add(self, kind: str, message: str) -> None:
        """Raises or counts an error.

        Raises:
            UserError: errors are strict; has the message.
        """
        if self.strict:
            raise UserError(message)
        self.skipped[kind] += 1
        # A file without rows has no row that could be broken.
        if self.keeps_messages and kind != EMPTY:
            self.messages.append(message)

    def taken(self) -> list[str]:
        """Returns the messages since the last call."""
        messages, self.messages[:] = list(self.messages), []
        return messages


def read_chunks(path: Path, part: Part | None = None) -> Iterator[bytes]:
    """Yields the decompressed bytes of a file, or of a part of an uncompressed one, in chunks.

    Raises:
        UserError: the file cannot be read or decompressed.
    """
    compression = compression_of(path)
    zstandard = import_optional("zstandard", str(path)) if compression == ".zst" else None
    damage: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error)
    if zstandard is not None:
        damage += (zstandard.ZstdError,)
    try:
        with path.open("rb") as raw:
            if zstandard is not None:
                # By default it refuses the windows of `zstd --long=28` to 31.
                yield from _zst_chunks(raw, zstandard.ZstdDecompressor(max_window_size=1 << 31))
                return
            if part is not None:
                raw.seek(part.start)
                for at in range(part.start, part.stop, CHUNK_BYTES):
                    yield raw.read(min(CHUNK_BYTES, part.stop - at))
                return
            with gzip.open(raw) if compression == ".gz" else raw as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk
    except damage as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _zst_chunks(raw: IO[bytes], decompressor: Any) -> Iterator[bytes]:  # noqa: ANN401 - a type of an extra
    """Yields the content of one or more frames; unlike the library's reader, raises if the last frame is truncated."""
    stream = None
    while data := raw.read(CHUNK_BYTES):
        while data:
            stream = stream or decompressor.decompressobj()
            yield stream.decompress(data)
            data = stream.unused_data
            stream = None if stream.eof else stream
    if stream is not None:
        raise EOFError("the file ends in the middle of the compressed data")


def read_text(path: Path, bad: BadInput) -> Iterator[str]:
    """Yields the text of a file of UTF-8, or nothing if it is bad."""
    data = b"".join(read_chunks(path))
    if not data.strip():
        bad.add(EMPTY, f"{path} is empty")
        return
    try:
        yield data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        bad.add("not UTF-8", _not_utf8(path, error.start, data[error.start]))


def _not_utf8(path: Path, offset: int, byte: int) -> str:
    return f"{path} is not UTF-8: byte 0x{byte:02x} at offset {offset}"


def read_lines(path: Path, bad: BadInput, part: Part | None = None) -> Iterator[tuple[int, str]]:
    """Yields (number, line with its line feed) of each line that is valid UTF-8; numbers count from 1 in the file."""
    for number, line, problem in read_all_lines(path, part):
        if problem is None:
            yield number, line
        else:
            bad.add(*problem)


def read_all_lines(path: Path, part: Part | None = None) -> Iterator[tuple[int, str, tuple[str, str] | None]]:
    """Yields (number, line with its line feed, (kind, message) of its error or None) of each line.

    A line with an error has the quotes that decide where a row of a .csv file ends: one that is not UTF-8 is decoded
    with U+FFFD for what is not, and of one that is too long only a quote remains, or none if it has an even number.
    """
    offset, first = (part.start, part.first) if part is not None else (0, 1)
    for number, (line, size) in enumerate(_split_lines(read_chunks(path, part)), first):
        problem = None
        if size > LONGEST_LINE_BYTES:
            expected = f"at most {LONGEST_LINE_BYTES:,}; put a longer document into a text file of its own"
            problem = "too long", f"{path}:{number}: a line of {size:,} bytes; expected {expected}"
            text = _odd_quote(line).decode() + "\n"
        else:
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                problem = "not UTF-8", _not_utf8(path, offset + error.start, line[error.start])
                text = line.decode("utf-8", "replace")
        yield number, text.removeprefix("\ufeff") if number == 1 else text, problem
        offset += size


def _odd_quote(line: bytes) -> bytes:
    return b'"' * (line.count(b'"') % 2)


def _split_lines(chunks: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
    """Yields (line, number of bytes); most of a line that is too long is replaced by a quote or nothing to save memory.

    The number of its quotes remains odd or even.
    """
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
            parts = [_odd_quote(b"".join(parts))]
    if size:
        yield b"".join(parts), size
