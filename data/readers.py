"""Reads documents and rows from text, JSONL, CSV, Parquet and Hugging Face datasets.

An error in a file ends the reading with one line that names the file and the row; with `strict=False` the row is
skipped and counted instead.
"""

import csv
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from configs.errors import UserError, one_line
from data.class_names import features_in, with_class_names
from data.columns import DEFAULT_RULES, MissingValue, Row, find, text_of
from data.lines import EMPTY, BadInput, Part, read_all_lines, read_chunks, read_lines, read_text
from data.sources import (
    ROW_SUFFIXES,
    TEXT_SUFFIXES,
    HuggingFaceDataset,
    import_optional,
    load_dataset,
    match_sources,
    suffix_of,
)
from data.storage.paths import is_remote


def read_documents(
    pattern: str, text_field: str = "text", strict: bool = True, skipped: Counter[str] | None = None
) -> Iterator[str]:
    """Yields documents, uncleaned, in the same order every time.

    Args:
        pattern: a file, a glob (`**` too), a directory, several of these separated by commas, or a dataset
            "hf:NAME", "hf:NAME:SPLIT" or "hf:NAME:CONFIG:SPLIT". A .txt, .md or .rst file is one document; .jsonl,
            .json (one object per line, or an array of objects), .csv, .tsv (without quotes) and .parquet files and
            datasets have one document per row. Of a directory, hidden files and what the Hub puts beside the rows of
            a dataset are not read.
        text_field: the column that contains the text of a row (see `data.columns.column` and `text_of`).
        strict: raise at the first error; otherwise skip the row or file.
        skipped: counts the skipped rows and files by kind of error.

    Raises:
        UserError: nothing matches, a suffix is unknown, a header is invalid or, if strict, a file or row is bad:
            empty, not UTF-8, invalid JSON or CSV, a line of more than 8 MiB, a missing field, a value that is missing
            or is not text.
    """
    bad = BadInput(strict, Counter() if skipped is None else skipped)
    for source in match_sources(pattern):
        yield from read_part(source, None, text_field, bad)


def read_part(source: Path | HuggingFaceDataset, part: Part | None, text_field: str, bad: BadInput) -> Iterator[str]:
    """Yields the documents of one source, or of a part of it; see `read_documents`.

    Raises:
        UserError: see `read_documents`; messages name the line or row of the whole source.
    """
    if not isinstance(source, HuggingFaceDataset) and suffix_of(source) in TEXT_SUFFIXES:
        yield from read_text(source, bad)
        return
    for place, row in _read_source(source, bad, part=part, field=text_field):
        found = find(row, text_field)
        if not found:
            fields = ", ".join(map(str, row))
            bad.add("missing field", f"{place}: field {text_field!r} is missing; the row has: {fields}")
            continue
        try:
            yield text_of(found[0], repr(text_field), DEFAULT_RULES.uncleaned)
        except MissingValue as error:
            remedy = "fill it in, or skip such rows with --nostrict (in a config: config.data.strict=False)"
            bad.add("missing value", f"{place}: {error.found}; expected text: {remedy}")
        except UserError as error:
            bad.add("not text", f"{place}: {error}")


def read_rows(pattern: str, strict: bool = True, skipped: Counter[str] | None = None) -> Iterator[Row]:
    """Yields rows as dicts, in the same order every time; see `read_documents` for arguments and errors.

    Values are strings in .csv and .tsv, and keep their types elsewhere; a class that is stored as a number and has a
    name is its name.
    """
    return (row for _, row in read_placed_rows(pattern, strict, skipped))


def read_placed_rows(
    pattern: str, strict: bool = True, skipped: Counter[str] | None = None, class_names: bool = True
) -> Iterator[tuple[str, Row]]:
    """Yields (place, row); the place is the file and the number of the row in it, e.g. "a.jsonl: row 7".

    Args:
        pattern: see `read_documents`, also for errors.
        strict: see `read_documents`.
        skipped: see `read_documents`.
        class_names: read a class that a dataset stores as a number as its name.
    """
    bad = BadInput(strict, Counter())
    for source in match_sources(pattern):
        _check_has_rows(source)
        yield from _numbered_rows(source, bad, class_names)
    if skipped is not None:
        skipped.update(bad.skipped)


def read_rows_or_errors(pattern: str) -> Iterator[tuple[str, Row | None, str]]:
    """Yields (place, row, "") of each row and ("", None, message) of each row that cannot be read, in order.

    Args:
        pattern: see `read_documents`.

    Raises:
        UserError: nothing matches, a suffix is unknown, a header is invalid, or a file cannot be read.
    """
    bad = BadInput(False, Counter(), keeps_messages=True)
    for source in match_sources(pattern):
        _check_has_rows(source)
        for place, row in _numbered_rows(source, bad):
            yield from (("", None, message) for message in bad.taken())
            yield place, row, ""
        yield from (("", None, message) for message in bad.taken())


def _numbered_rows(
    source: Path | HuggingFaceDataset, bad: BadInput, class_names: bool = True
) -> Iterator[tuple[str, Row]]:
    """Yields (place, row); rows that cannot be read count, so that the number is that of the user's file."""
    before = bad.skipped.total()
    for number, (_, row) in enumerate(_read_source(source, bad, class_names), 1):
        yield f"{source}: row {number + bad.skipped.total() - before}", row


def _check_has_rows(source: Path | HuggingFaceDataset) -> None:
    if not isinstance(source, HuggingFaceDataset) and suffix_of(source) in TEXT_SUFFIXES:
        raise UserError(f"{source} has no rows; expected {' '.join(ROW_SUFFIXES)}, or hf:NAME")


def _read_source(
    source: Path | HuggingFaceDataset,
    bad: BadInput,
    class_names: bool = True,
    part: Part | None = None,
    field: str | None = None,
) -> Iterator[tuple[str, Row]]:
    """Yields (place, row), where the place (file and line, or row number) is named in errors about the row.

    With a `field`, of a .parquet file no more than the columns that contain it are read.
    """
    rows: Iterator[tuple[str, Row]]
    if isinstance(source, HuggingFaceDataset):
        rows = _read_dataset(source, class_names, part)
    elif suffix_of(source) == ".parquet":
        rows = _read_parquet(source, class_names, part, field)
    elif suffix_of(source) in (".csv", ".tsv"):
        rows = _read_csv(source, bad)
    elif part is None and is_json_array(source):
        rows = _read_json_array(source, bad)
    else:
        rows = _read_json_lines(source, bad, part)
    before, empty = bad.skipped.total(), True
    for item in rows:
        empty = False
        yield item
    # A source of more than one part has content.
    if part is None and empty and bad.skipped.total() == before:
        bad.add(EMPTY, f"{source} is empty: it has no rows")


def _read_json_lines(path: Path, bad: BadInput, part: Part | None) -> Iterator[tuple[str, Row]]:
    array = " or an array of objects" if suffix_of(path) == ".json" else ""
    for number, line in read_lines(path, bad, part):
        if line.strip():
            place, expected = f"{path}:{number}", f"expected one JSON object per line{array}"
            for row in _json_rows(line, place, expected, bad):
                if isinstance(row, dict):
                    yield place, row
                else:
                    bad.add("broken JSON", f"{place}: a JSON {type(row).__name__}; {expected}")


def is_json_array(path: Path) -> bool:
    """Returns whether a file is a .json file whose content begins as an array; others have one value per line."""
    if suffix_of(path) != ".json":
        return False
    beginning = next(read_chunks(path), b"").removeprefix(b"\xef\xbb\xbf").lstrip()
    return beginning.startswith(b"[")


def _read_json_array(path: Path, bad: BadInput) -> Iterator[tuple[str, Row]]:
    for text in read_text(path, bad):
        for rows in _json_rows(text, str(path), "expected an array of JSON objects", bad):
            for number, row in enumerate(rows, 1):
                place = f"{path}: row {number}"
                if isinstance(row, dict):
                    yield place, row
                else:
                    bad.add("broken JSON", f"{place}: a JSON {type(row).__name__}; expected a JSON object")


def _json_rows(text: str, place: str, expected: str, bad: BadInput) -> Iterator[Any]:
    """Yields the JSON value of a text, or nothing if it is not valid."""
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        bad.add("not Unicode", f"{place}: a \\ud... escape without its other half is not a character")
    except (ValueError, RecursionError) as error:
        bad.add("broken JSON", f"{place}: broken JSON: {error}; {expected}")
    else:
        yield value


def _unique_keys(pairs: list[tuple[str, object]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"{_repeated([key for key, _ in pairs])} occurs twice in an object")
    return row


def _repeated(names: Iterable[str]) -> str:
    """Returns the first name that occurs twice, quoted, or "" if there is none; an unnamed column is no name."""
    return next((repr(name) for name, count in Counter(names).items() if count > 1 and name), "")


def _read_csv(path: Path, bad: BadInput) -> Iterator[tuple[str, Row]]:
    """Yields the rows of a .csv file, with quotes as in RFC 4180, or of a .tsv file, in which quotes are text.

    Raises:
        UserError: the header is bad, strict or not: without it no row could be read.
    """
    tsv = suffix_of(path) == ".tsv"
    header: list[str] | None = None
    for place, values, problem in _csv_records(path, tsv):
        if header is None:
            if problem is not None:
                raise UserError(problem[1])
            header = _checked_columns(path, values)
        elif problem is not None:
            bad.add(*problem)
        elif values and len(values) != len(header):
            bad.add("broken CSV", f"{place}: {len(values)} columns; the header has {len(header)}: {header}")
        elif tsv and (quoted := next(filter(_is_quoted, values), None)):
            expected = "expected values without quotes around them: write the file without quoting, or as .csv"
            bad.add("broken CSV", f"{place}: {quoted[:60]!r} is quoted as in .csv; {expected}")
        elif values:
            yield place, dict(zip(header, values, strict=True))


def _csv_records(path: Path, tsv: bool) -> Iterator[tuple[str, list[str], tuple[str, str] | None]]:
    """Yields (place, values, (kind, message) of an error or None) of each row and the header; blank lines are rows too.

    A row whose lines have an error ends where it would end without it: a quoted value may contain line ends, so a line
    that was left out would join what is before and after it.
    """
    # The default limit of 128 KiB per field is too small, and the limit can be set only for the whole process.
    csv.field_size_limit(sys.maxsize)
    problems: list[tuple[str, str]] = []

    def lines() -> Iterator[str]:
        for _, line, problem in read_all_lines(path):
            if problem is not None:
                problems.append(problem)
            yield line

    # The reader takes no line before it is asked for the row that begins there.
    if tsv:
        reader = csv.reader(lines(), delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    else:
        reader = csv.reader(lines(), strict=True)
    while True:
        values: list[str] | None = []
        try:
            values = next(reader, None)
        except csv.Error as error:
            problems[:] = [("broken CSV", f"{path}:{reader.line_num}: broken CSV: {error}")]
        if values is None:
            return
        yield f"{path}:{reader.line_num}", values, problems[0] if problems else None
        problems.clear()


def _is_quoted(value: str) -> bool:
    """Returns whether a value has quotes around it and doubled quotes in it, which text hardly has."""
    inner = value[1:-1]
    return len(value) > 2 and value[0] == value[-1] == '"' and '""' in inner and '"' not in inner.replace('""', "")


def _checked_columns(path: Path, names: list[str]) -> list[str]:
    """Returns the names of the columns; raises UserError if one occurs twice, because a row could hold only one."""
    if repeated := _repeated(names):
        raise UserError(f"{path}: column {repeated} occurs twice in the header {names}; rename one")
    return names


def _read_parquet(path: Path, class_names: bool, part: Part | None, field: str | None) -> Iterator[tuple[str, Row]]:
    """Yields the rows of a .parquet file, with all columns or, if it has such, only those that contain `field`."""
    arrow, parquet = import_optional("pyarrow", str(path)), import_optional("pyarrow.parquet", str(path))
    number = part.first - 1 if part is not None else 0
    groups = range(part.start, part.stop) if part is not None else None
    try:
        with path.open("rb") as content, parquet.ParquetFile(content if is_remote(path) else path) as file:
            schema = file.schema_arrow
            names = _checked_columns(path, schema.names)
            features = features_in((schema.metadata or {}).get(b"huggingface", b"")) if class_names else {}
            wanted = [name for name in names if field is not None and f"{field}.".startswith(f"{name}.")]
            for batch in file.iter_batches(batch_size=1024, row_groups=groups, columns=wanted or None):
                for row in _rows_of(path, batch):
                    number += 1
                    yield f"{path}: row {number}", with_class_names(row, features)
    except (OSError, ValueError, arrow.ArrowException) as error:
        raise UserError(f"{path} cannot be read after row {number}: {one_line(error)}") from None


def _rows_of(path: Path, batch: Any) -> Iterator[Row]:  # noqa: ANN401 - a type of an extra
    """Returns the rows of a batch; raises UserError for a column with a value that Python cannot represent."""
    columns: dict[str, list[object]] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            columns[name] = column.to_pylist()
        # Such as a time after the year 9999 or in an unknown time zone: the library passes on errors of many types.
        except Exception as error:
            found = f"column {name!r} of type {column.type} cannot be read: {one_line(error)}"
            raise UserError(f"{path}: {found}; remove the column, or convert it to text") from None
    return (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


def _read_dataset(source: HuggingFaceDataset, class_names: bool, part: Part | None) -> Iterator[tuple[str, Row]]:
    rows, features = load_dataset(source, part and range(part.start, part.stop))
    for number, row in enumerate(rows, part.first if part is not None else 1):
        yield f"{source}: row {number}", with_class_names(row, features if class_names else {})
