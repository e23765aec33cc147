"""Writes rows as CSV, JSONL or Parquet, a part at a time, such that a later process goes on after the last part.

Beside the output there is `OUTPUT.progress` until it is complete. A CSV or JSONL file of this machine grows with each
part. A Parquet file and an object in a bucket cannot grow: their parts are files in `OUTPUT.parts`, joined at the end.
"""

import base64
import contextlib
import csv
import dataclasses
import datetime
import io
import json
import os
import tempfile
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from configs.errors import UserError, one_line
from data.columns import Row, is_missing
from data.sources import CHUNK_BYTES, import_optional
from data.storage.files import copy_file, delete_tree, file_sizes, write_atomically
from data.storage.paths import is_remote
from data.strict_json import finite

FORMATS = (".csv", ".jsonl", ".parquet")


@dataclasses.dataclass
class RowWriter:
    """Writes the rows of one output; `open_writer` makes one.

    Attributes:
        path: the output.
        columns: of all rows; a row may lack some.
        identity: what the rows are made of; an output is continued only with the same.
        rows: number of rows written so far, by earlier processes too.
        size: bytes of the output that these rows fill, or of its parts.
    """

    path: Path
    columns: tuple[str, ...]
    identity: str
    rows: int = 0
    size: int = 0

    @property
    def _progress(self) -> Path:
        return self.path.with_name(f"{self.path.name}.progress")

    @property
    def _parts(self) -> Path:
        return self.path.with_name(f"{self.path.name}.parts")

    @property
    def _format(self) -> str:
        return self.path.suffix.lower()

    @property
    def _grows(self) -> bool:
        return self._format != ".parquet" and not is_remote(self.path)

    def write(self, rows: Sequence[Row]) -> None:
        """Writes the next rows, which are on disk or in the bucket when this returns.

        Raises:
            UserError: a row has a value that the format cannot hold.
        """
        data = _ENCODERS[self._format](rows, self.columns, self.rows == 0)
        if self._grows:
            with self.path.open("r+b" if self.rows else "wb") as file:
                file.seek(self.size)
                file.write(data)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
        else:
            self._parts.mkdir(parents=True, exist_ok=True)
            (self._parts / f"{self.rows:012d}{self.path.suffix}").write_bytes(data)
        self.size += len(data)
        self.rows += len(rows)
        self._save()

    def finish(self) -> None:
        """Makes the output complete; there may be no rows."""
        if not self.rows:
            self.write([])
        if not self._grows:
            with _replaced(self.path) as file:
                _JOINERS[self._format](sorted(self._parts.iterdir()), file)
            delete_tree(self._parts)
        self._progress.unlink(missing_ok=True)

    def _save(self) -> None:
        state = {"identity": self.identity, "columns": list(self.columns), "rows": self.rows, "size": self.size}
        write_atomically(self._progress, json.dumps(state))

    def resume(self) -> bool:
        """Reads how far an earlier process came and deletes what it wrote beyond; returns whether there was one.

        An output that was deleted is begun again.

        Raises:
            UserError: it wrote other rows, or a part of them is gone.
        """
        if not self._progress.exists():
            return False
        state = json.loads(self._progress.read_text())
        if state["identity"] != self.identity:
            raise UserError(
                f"--output={self.path} was begun with another run, other rows or other options; give the same ones to "
                "go on, or --overwrite to begin anew"
            )
        if not (self.path.exists() if self._grows else file_sizes(self._parts)):
            return False
        self.columns, self.rows, self.size = tuple(state["columns"]), state["rows"], state["size"]
        if self._found() < self.size:
            raise UserError(
                f"--output={self.path} lacks rows that an interrupted process wrote; restore them, or give --overwrite "
                "to begin anew"
            )
        return True

    def _found(self) -> int:
        """Returns the bytes of the output, or of the parts of its first `rows`; deletes later parts."""
        if self._grows:
            return self.path.stat().st_size
        sizes = file_sizes(self._parts)
        for name in [name for name in sizes if int(Path(name).stem) >= self.rows]:
            (self._parts / name).unlink()
            del sizes[name]
        return sum(sizes.values())

    def clear(self) -> None:
        """Deletes the output and what an earlier process left of it."""
        for path in (self.path, self._progress):
            path.unlink(missing_ok=True)
        if self._parts.is_dir():
            delete_tree(self._parts)


def check_format(path: Path) -> None:
    """Raises UserError if the name of an output does not end with one of `FORMATS`, or its library is missing."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(
            f"--output={path} ends with {path.suffix!r}; expected a name that ends with .csv, .jsonl or .parquet"
        )
    if path.suffix.lower() == ".parquet":
        import_optional("pyarrow.parquet", f"--output={path}")


def open_writer(path: Path, columns: tuple[str, ...], identity: str, overwrite: bool) -> RowWriter:
    """Returns a writer that goes on where an earlier process ended, or begins.

    Raises:
        UserError: the output exists and is complete, or was begun with another identity, unless `overwrite`.
    """
    writer = RowWriter(path, columns, identity)
    if overwrite:
        writer.clear()
    elif not writer.resume() and path.exists():
        raise UserError(f"--output={path} exists; expected a new name, or --overwrite to replace it")
    return writer


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """Yields the path of a local file, which then takes the place of `path` as a whole."""
    folder = None if is_remote(path) else path.parent
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=folder) as scratch:
        copy = Path(scratch) / path.name
        yield copy
        if is_remote(path):
            copy_file(copy, path)
        else:
            os.replace(copy, path)


def _csv(rows: Sequence[Row], columns: Sequence[str], first: bool) -> bytes:
    lines: list[str] = []
    # Before Python 3.13 the writer quotes a carriage return only if it is a part of the line end.
    writer = csv.writer(types.SimpleNamespace(write=lines.append), lineterminator="\r\n")
    if first:
        writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row.get(name)) for name in columns])
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines).encode("utf-8", "backslashreplace")


def _cell(value: object) -> str:
    if is_missing(value):
        return ""
    return value if isinstance(value, str) else _json(value)


def _jsonl(rows: Sequence[Row], columns: Sequence[str], first: bool) -> bytes:
    lines = [_json({name: row[name] for name in columns if name in row}) + "\n" for row in rows]
    return "".join(lines).encode("utf-8", "backslashreplace")


def _json(value: object) -> str:
    return json.dumps(finite(value), ensure_ascii=False, default=_as_text)


def _as_text(value: object) -> str:
    """Returns what JSON has no type for as text: dates as in ISO 8601, bytes as base64."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _parquet(rows: Sequence[Row], columns: Sequence[str], first: bool) -> bytes:
    pyarrow, parquet = _arrow()
    arrays = []
    for name in columns:
        try:
            arrays.append(pyarrow.array([row.get(name) for row in rows]))
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, OverflowError) as error:
            raise UserError(
                f"column {name!r} has values of several kinds, which .parquet cannot hold ({one_line(error)}); "
                "use --output=NAME.jsonl"
            ) from None
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(dict(zip(columns, arrays, strict=True))), file)
    return file.getvalue()


def _join_bytes(parts: Sequence[Path], target: Path) -> None:
    with target.open("wb") as file:
        for part in parts:
            with part.open("rb") as content:
                while chunk := content.read(CHUNK_BYTES):
                    file.write(chunk)


def _join_parquet(parts: Sequence[Path], target: Path) -> None:
    """Writes the rows of the parts; a type of a column is one that holds the values of all parts."""
    pyarrow, parquet = _arrow()

    def table(part: Path) -> Any:  # noqa: ANN401 - a type of an extra
        return parquet.read_table(io.BytesIO(part.read_bytes()))

    try:
        schema = pyarrow.unify_schemas([table(part).schema for part in parts], promote_options="permissive")
        with parquet.ParquetWriter(target, schema) as writer:
            for part in parts:
                writer.write_table(table(part).cast(schema))
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, pyarrow.ArrowNotImplementedError) as error:
        raise UserError(
            f"a column has values of several kinds, which .parquet cannot hold ({one_line(error)}); "
            "use --output=NAME.jsonl"
        ) from None


def _arrow() -> tuple[Any, Any]:
    return import_optional("pyarrow", ".parquet"), import_optional("pyarrow.parquet", ".parquet")


_Encoder = Callable[[Sequence[Row], Sequence[str], bool], bytes]
_ENCODERS: dict[str, _Encoder] = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
_JOINERS: dict[str, Callable[[Sequence[Path], Path], None]] = {
    ".csv": _join_bytes, ".jsonl": _join_bytes, ".parquet": _join_parquet,
}  # fmt: skip
