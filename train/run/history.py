"""Writes and reads `metrics.jsonl`, and gives what is written to the trackers of the run."""

import contextlib
import dataclasses
import errno
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from configs.errors import UserError
from data.storage.files import write_atomically
from data.storage.mirror import Mirror, mirrored
from data.strict_json import finite
from train.run.trackers import Tracker, numbers, open_trackers
from train.settings import Settings

Record = dict[str, Any]
_NAME = "metrics.jsonl"
_ACCOUNTS = "goodput"
# How this program begins a line; a line is parsed only if someone needs the rest of it.
_START = re.compile(rb'\{"step": (\d+), "phase": "')


class Writer(Protocol):
    """A function that writes one record."""

    def __call__(self, record: Record) -> None:
        """Writes the record."""

    def publish(self) -> None:
        """Makes the records that were written readable where the run is, if that is a bucket."""


@dataclasses.dataclass(frozen=True)
class _Silent:
    """The writer of a process that does not write."""

    def __call__(self, record: Record) -> None:
        pass

    def publish(self) -> None:
        pass


@dataclasses.dataclass(frozen=True)
class _FileWriter:
    """Writes to `metrics.jsonl` and to the trackers."""

    file: TextIO
    trackers: tuple[Tracker, ...]
    mirror: Mirror

    def __call__(self, record: Record) -> None:
        self.file.write(json.dumps(finite(record)) + "\n")
        for tracker in self.trackers:
            tracker.log(record["step"], numbers(record))

    def publish(self) -> None:
        if self.mirror.local != self.mirror.target:
            for tracker in self.trackers:
                tracker.flush()
        self.mirror.publish()


@contextlib.contextmanager
def open_writer(workdir: Path, resumed_step: int, settings: Settings, writing: bool) -> Iterator[Writer]:
    """Yields a function that appends records to `metrics.jsonl`, one per line, and to the trackers of the config.

    Lines of steps after `resumed_step` are deleted first, because those steps will be repeated. Only one process is
    `writing`; the others get a function that does nothing. To a bucket, files are uploaded at `publish`, once a minute
    and at the end.

    Raises:
        UserError: the package of a tracker is not installed.
    """
    if not writing:
        yield _Silent()
        return
    with mirrored(workdir, _NAME) as mirror, contextlib.ExitStack() as stack:
        path = mirror.local / _NAME
        if path.exists():
            _delete_after(path, resumed_step)
        trackers = tuple(open_trackers(workdir, mirror.local, settings))
        for tracker in trackers:
            stack.callback(tracker.close)
        with _disk_full_as_user_error(path), path.open("a", buffering=1) as file:
            yield _FileWriter(file, trackers, mirror)


def _delete_after(path: Path, step: int) -> None:
    """Deletes the lines of later steps, and a truncated last line; rewrites the file only if there are any."""
    lines = path.read_bytes().splitlines()
    # The last line alone may be truncated, inside a nested object as well.
    kept = [line for line in lines[:-1] if _step_of(line) <= step]
    kept += [line for line in lines[-1:] if (last := _parsed(line)) is not None and last["step"] <= step]
    if len(kept) < len(lines) or not _ends_with_newline(path):
        write_atomically(path, "".join(line.decode("utf-8", "replace") + "\n" for line in kept))


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        return file.seek(0, 2) == 0 or (file.seek(-1, 2) >= 0 and file.read() == b"\n")


@contextlib.contextmanager
def _disk_full_as_user_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(
            f"{path} cannot be written ({error.strerror}); saved checkpoints are intact: free space, then run again"
        ) from None


def read_records(workdir: Path, *phases: str) -> list[Record]:
    """Returns the records of a run's `metrics.jsonl` in order, of these phases or of all, without truncated lines.

    A run of weeks has millions of lines. Of other phases they are not parsed.
    """
    found = [record for line in _lines(workdir, phases) if (record := _parsed(line)) is not None]
    return [record for record in found if not phases or record.get("phase") in phases]


def dtype_of_step(records: Sequence[Record], step: int) -> str | None:
    """Returns the dtype in which a run's products of this step were computed, if its version recorded it.

    Args:
        records: all records of the run, or its accounts, in order.
        step: counted from 1.
    """
    earlier = [record for record in records if record.get("compute_dtype") and record["step"] < step]
    return earlier[-1]["compute_dtype"] if earlier else None


def read_accounts(workdir: Path) -> list[Record]:
    """Returns the records of a run's wall time (phase "goodput"), and the last record that has a time."""
    accounts = read_records(workdir, _ACCOUNTS)
    lines = reversed(list(_lines(workdir, ())))
    last = next((record for line in lines if (record := _parsed(line)) is not None and "seconds" in record), None)
    return accounts if last is None or (accounts and last == accounts[-1]) else [*accounts, last]


def _lines(workdir: Path, phases: tuple[str, ...]) -> Iterator[bytes]:
    """Yields the lines that may be of one of the phases, without parsing them; without phases, all."""
    path = workdir / _NAME
    if not path.exists():
        return
    lines = path.read_bytes().splitlines()
    # Only a line that begins as this program begins it, with another phase, is certain to be of no interest.
    other = re.compile(rb'\{"step": \d+, "phase": "(?!(?:%s)")' % "|".join(phases).encode())
    yield from (line for line in lines if not phases or not other.match(line))


def _parsed(line: bytes) -> Record | None:
    """Returns the record of a line, or None if the line is invalid: a kill can truncate the last line."""
    try:
        record = json.loads(line)
        return record if isinstance(record["step"], int) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _step_of(line: bytes) -> float:
    """Returns the step of a line, or infinity if the line is invalid."""
    start = _START.match(line)
    if start is not None and line.endswith(b"}"):
        return int(start[1])
    record = _parsed(line)
    return math.inf if record is None else record["step"]
