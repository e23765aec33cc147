"""Writes and reads `metrics.jsonl`, and gives what is written to the trackers of the run."""

import contextlib
import dataclasses
import errno
import json
import math
from collections.abc import Iterator
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
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= resumed_step]
            write_atomically(path, "".join(line + "\n" for line in kept))
        trackers = tuple(open_trackers(workdir, mirror.local, settings))
        for tracker in trackers:
            stack.callback(tracker.close)
        with _disk_full_as_user_error(path), path.open("a", buffering=1) as file:
            yield _FileWriter(file, trackers, mirror)


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


def read_records(workdir: Path) -> list[Record]:
    """Returns the records of a run's `metrics.jsonl` in order, without truncated lines."""
    path = workdir / _NAME
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if _step_of(line) < math.inf]


def _step_of(line: str | bytes) -> float:
    """Returns the step of a line, or infinity if the line is invalid: a kill can truncate the last line."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf
    return step if isinstance(step, int) else math.inf
