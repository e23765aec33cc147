"""Predictions for the rows of files: read, answered and written in parts, in the order of the input."""

import dataclasses
import hashlib
import itertools
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

from configs.errors import UserError
from data.columns import MissingColumn, Row
from data.readers import read_rows_or_errors
from data.row_writers import check_format, open_writer
from data.sources import inventory
from train.console import console, progress
from train.files import check_not_read, check_output_file
from train.prediction.backends import ERROR, TRUNCATED
from train.prediction.document_scores import fingerprint
from train.prediction.task_model import TaskModel

_PART = re.compile(r"([1-9][0-9]*)/([1-9][0-9]*)")
# (row, "") of a row that was read; ({}, reason) of one that was not
_Read = tuple[Row, str]


@dataclasses.dataclass(frozen=True)
class FileOptions:
    """Which rows are predicted, and how they are written.

    Attributes:
        part: "i/n": only the i-th of n parts of the rows, which are consecutive; "": all rows.
        overwrite: replace an output that exists.
        prefix: of the names of the columns that are added.
    """

    part: str = ""
    overwrite: bool = False
    prefix: str = ""


@dataclasses.dataclass(frozen=True)
class Summary:
    """What `predict_file` did.

    Attributes:
        rows: number of rows in the output.
        resumed_at: number of rows that an earlier process had written.
        broken: number of rows without a prediction, of those written now.
        truncated: number of rows of which only the beginning was read, of those written now.
        reason: the reason of the first of these.
        seconds: of predicting and writing.
    """

    rows: int
    resumed_at: int
    broken: int
    truncated: int
    reason: str
    seconds: float


def predict_file(model: TaskModel, data: str, output: Path, options: FileOptions) -> Summary:
    """Writes the rows of `data` with their predictions to `output`.

    Raises:
        UserError: rows that cannot be read at all, a column that is missing or taken, an output that exists or is read,
            or a .csv file that could not hold lists of the model's classes.
    """
    check_format(output)
    check_output_file(output, "output")
    check_not_read(output, "output", data, "data")
    _check_separator(model, output)
    count, found = 0, dict[str, None]()
    for row, _ in _rows(data):
        count += 1
        found |= dict.fromkeys(row)
    if not count:
        raise UserError(f"--data={data} has no rows; expected at least one")
    first, last = _bounds(options.part, count)
    added = {name: f"{options.prefix}{name}" for name in model.columns}
    rows = itertools.islice(_rows(data), first, last)
    head = list(itertools.islice(rows, model.backend.rows_at_once))
    _check_columns(model, data, [row for row, reason in head if not reason])
    if taken := [name for name in added.values() if name in found]:
        raise UserError(
            f"--data={data} has a column {taken[0]!r}, the name of one that is added; rename it, or set "
            f"--prefix=NAME_ for the added ones"
        )
    identity = _identity(model, data, options)
    writer = open_writer(output, (*found, *added.values()), identity, options.overwrite)
    resumed_at, broken, truncated, reason, start = writer.rows, 0, 0, "", time.perf_counter()
    rest = itertools.islice(itertools.chain(head, rows), resumed_at, None)
    with progress("predict", last - first) as move:
        move(resumed_at)
        while part := list(itertools.islice(rest, model.backend.rows_at_once)):
            answered, cut = _answered(model, part, added, flat=output.suffix.lower() == ".csv")
            truncated += cut
            writer.write(answered)
            failed = [row[added[ERROR]] for row in answered if row[added[ERROR]] is not None]
            broken, reason = broken + len(failed), reason or next(iter(map(str, failed)), "")
            move(writer.rows, _pace(writer.rows - resumed_at, last - first - writer.rows, start))
    writer.finish()
    return Summary(writer.rows, resumed_at, broken, truncated, reason, time.perf_counter() - start)


def _check_separator(model: TaskModel, output: Path) -> None:
    """Raises UserError if a list of classes or tags in a .csv file could not be split again."""
    separator = model.task.list_separator
    # The readers split tags at any white space.
    names = [name for name in model.task.target_names if name.split(separator.strip() or None) != [name]]
    if output.suffix.lower() == ".csv" and names and {"set", "probabilities"} & set(model.columns):
        raise UserError(
            f"--output={output}: {names[0]!r} contains {separator!r}, which separates the items of a list in a .csv "
            "file; use --output=NAME.jsonl or NAME.parquet"
        )


def _rows(data: str) -> Iterator[_Read]:
    for _, row, reason in read_rows_or_errors(data):
        yield (row, "") if row is not None else ({}, reason)


def _bounds(part: str, count: int) -> tuple[int, int]:
    """Returns the first row of a part, counted from 0, and the one after its last."""
    if not part:
        return 0, count
    found = _PART.fullmatch(part)
    number, parts = map(int, found.groups()) if found else (2, 1)
    if number > parts:
        raise UserError(f"--part={part} must be I/N with I from 1 to N, e.g. 1/4 to 4/4 for four processes")
    return count * (number - 1) // parts, count * number // parts


def _check_columns(model: TaskModel, data: str, rows: list[Row]) -> None:
    """Raises UserError if all of the first rows lack a column that the run reads: it is an error of the user."""
    missing = None
    for row in rows:
        try:
            model.parse(row)
        except MissingColumn as error:
            missing = missing or error
            continue
        except UserError:
            pass
        return
    if missing is not None:
        raise UserError(
            f"--data={data} has no {missing.name!r}, which {model.directory} was trained to read; columns found: "
            f"{missing.found}; rename the column"
        )


def _identity(model: TaskModel, data: str, options: FileOptions) -> str:
    """Returns a hash of what the rows of an output are made of."""
    run = [str(model.directory.absolute()), fingerprint(model.directory)]
    answers = [dataclasses.asdict(model.options), model.settings.task.max_new_tokens]
    made_of = [run, answers, inventory(data), options.part, options.prefix]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()


def _answered(model: TaskModel, part: list[_Read], added: dict[str, str], flat: bool) -> tuple[list[Row], int]:
    """Returns (the rows with their answers, the number of truncated ones); `flat` for a file without lists."""
    answers = iter(model.answer_rows([row for row, reason in part if not reason]))
    rows: list[Row] = []
    truncated = 0
    for row, reason in part:
        answer = dict.fromkeys(model.columns) | {ERROR: reason} if reason else next(answers)
        truncated += bool(answer.pop(TRUNCATED, False))
        rows.append(row | {added[name]: _joined(model, v) if flat else v for name, v in answer.items()})
    return rows, truncated


def _joined(model: TaskModel, value: object) -> object:
    """Returns a list as the text that the readers split again."""
    if not isinstance(value, list):
        return value
    return model.task.list_separator.join("" if item is None else str(item) for item in value)


def _pace(done: int, left: int, start: float) -> str:
    """Returns rows per second and, where no bar shows it, the time that is left."""
    rate = done / max(time.perf_counter() - start, 1e-9)
    return f"{rate:,.0f} rows/s" + ("" if console.is_terminal else f", ETA {left / rate:,.0f} s")
