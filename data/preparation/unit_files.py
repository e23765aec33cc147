"""The files that stages leave for the stages after them, by the number of a unit.

A stage writes its data first and its .json last, each by a rename or as one object: a unit with that .json is done.
"""

import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.storage.files import file_sizes, local_copy, new_file
from data.storage.paths import is_remote

_RANGES_AT_ONCE = 256


def mark_path(folder: Path, stage: str, number: int) -> Path:
    """Returns the .json that says that a unit, or another job, of a stage is done."""
    return folder / f"{stage}-{number:06}.json"


def write_mark(folder: Path, stage: str, number: int, content: Any) -> None:  # noqa: ANN401 - a JSON value
    """Marks a job as done, with its results."""
    with new_file(mark_path(folder, stage, number)) as path:
        path.write_text(json.dumps(content), encoding="utf-8")


def read_mark(folder: Path, stage: str, number: int) -> Any:  # noqa: ANN401 - a JSON value
    """Returns the results of a job that is done."""
    return json.loads(mark_path(folder, stage, number).read_text(encoding="utf-8"))


def done_jobs(folder: Path, stage: str) -> set[int]:
    """Returns the numbers of the jobs of a stage that are done."""
    pattern = re.compile(rf"{re.escape(stage)}-([0-9]+)\.json")
    return {int(found[1]) for name in file_sizes(folder) if (found := pattern.fullmatch(name))}


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes the elements of an array and nothing else, for `read_array` and `read_ranges`."""
    with new_file(path) as temporary:
        # Unlike `tofile`, says why it fails.
        temporary.write_bytes(np.ascontiguousarray(array).data)


def read_array(path: Path, dtype: str) -> np.ndarray:
    """Returns all elements of a file."""
    return np.frombuffer(path.read_bytes(), dtype)


def read_ranges(folder: Path, dtype: str, ranges: list[tuple[str, int, int]]) -> list[np.ndarray]:
    """Returns the elements from start to stop of each (name of a file, start, stop)."""
    if not is_remote(folder):
        size = np.dtype(dtype).itemsize
        return [np.fromfile(folder / name, dtype, stop - start, offset=start * size) for name, start, stop in ranges]
    from data.storage.ranges import Ranges

    # An empty range of an object is not a request.
    wanted = [item for item in ranges if item[1] < item[2]]
    reader, found = Ranges(folder, dtype), []
    for first in range(0, len(wanted), _RANGES_AT_ONCE):
        found += reader.read(wanted[first : first + _RANGES_AT_ONCE])
    answers = iter(found)
    return [next(answers) if start < stop else np.empty(0, dtype) for _, start, stop in ranges]


class UnitFiles(NamedTuple):
    """What the first two stages know about the documents of a unit.

    Attributes:
        folder: where the stages write.
        number: of the unit.
    """

    folder: Path
    number: int

    @property
    def text_path(self) -> Path:
        """The UTF-8 of all documents, concatenated."""
        return self.folder / f"read-{self.number:06}.text"

    @property
    def arrays_path(self) -> Path:
        """The .npz of the arrays with an entry per document; see `reading.read_unit`."""
        return self.folder / f"read-{self.number:06}.npz"

    @property
    def places_path(self) -> Path:
        """uint8 per document: 0 if it is removed, else which split it is in; see `splitting`."""
        return self.folder / f"place-{self.number:06}.bin"

    def places(self) -> np.ndarray:
        """Returns the content of `places_path`."""
        return read_array(self.places_path, "uint8")

    def array(self, name: str) -> np.ndarray:
        """Returns an array with an entry per document."""
        with np.load(io.BytesIO(self.arrays_path.read_bytes()), allow_pickle=False) as arrays:
            return arrays[name]

    def results(self) -> dict[str, Any]:
        """Returns what the first stage counted in the unit."""
        return read_mark(self.folder, "read", self.number)

    def texts(self, rows: Iterable[int]) -> Iterator[str]:
        """Yields the texts of the documents with these numbers in the unit."""
        ends = self.array("ends").tolist()
        with local_copy(self.text_path) as copy, copy.open("rb") as file:
            for row in rows:
                file.seek(ends[row])
                yield file.read(ends[row + 1] - ends[row]).decode("utf-8")
