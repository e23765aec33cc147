"""`RemotePath`: a path of a bucket with the methods of `pathlib.Path`, on etils.epath and fsspec.

Imported only if a URL is used (`data.storage.paths.at`), because gcsfs takes seconds to import.
"""

import contextlib
import dataclasses
import datetime
import fnmatch
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import fsspec
import fsspec.config

# If TensorFlow is installed, etils would use it, which reads no s3://.
os.environ.setdefault("EPATH_USE_TF", "false")

from etils.epath.gpath import PosixGPath

# fsspec remembers the listing of a directory forever, so that files of other processes would never appear.
_NO_CACHE = {"use_listings_cache": False}
# botocore's default gives up after a few seconds of 429 or 503; gcsfs tries for half a minute.
_PATIENT = {"config_kwargs": {"retries": {"mode": "standard", "max_attempts": 9}}}
for _protocol, _options in (("gs", _NO_CACHE), ("gcs", _NO_CACHE), ("s3", _NO_CACHE | _PATIENT)):
    fsspec.config.conf[_protocol] = _options | fsspec.config.conf.get(_protocol, {})


@dataclasses.dataclass(frozen=True)
class Status:
    """The part of `os.stat_result` that an object has, and the names that etils gives to it."""

    st_size: int
    st_mtime_ns: int
    is_directory: bool

    @property
    def st_mtime(self) -> float:
        """Seconds since the epoch by the clock of the bucket; 0 for a directory."""
        return self.st_mtime_ns / 1e9

    @property
    def length(self) -> int:
        """See `st_size`."""
        return self.st_size

    @property
    def mtime(self) -> int:
        """See `st_mtime`."""
        return int(self.st_mtime)


class RemotePath(PosixGPath):
    """A path of a bucket."""

    @property
    def filesystem(self) -> fsspec.AbstractFileSystem:
        """The client of the bucket."""
        return fsspec.filesystem(self.parts[1])

    @property
    def key(self) -> str:
        """BUCKET/NAME."""
        return "/".join(self.parts[2:])

    def absolute(self) -> "RemotePath":
        """Returns this path: every path of a bucket is absolute."""
        return self

    def is_file(self) -> bool:
        """Returns whether this is an object."""
        try:
            return self.filesystem.info(self.key)["type"] == "file"
        except FileNotFoundError:
            return False

    def stat(self) -> Status:
        """Returns size and time of modification by the clock of the bucket."""
        info = self.filesystem.info(self.key)
        modified = info.get("LastModified") or info.get("mtime")
        time_ns = round(modified.timestamp() * 1e6) * 1000 if isinstance(modified, datetime.datetime) else 0
        return Status(info["size"], time_ns, info["type"] == "directory")

    def iterdir(self) -> Iterator["RemotePath"]:
        """Yields what is directly below this directory, without the empty object that a web console makes of it."""
        for name in self.filesystem.ls(self.key, detail=False):
            found = name.rstrip("/").rpartition("/")[2]
            if name.rstrip("/") != self.key:
                yield self / found

    def file_sizes(self) -> dict[str, int]:
        """Returns {name: bytes} of the objects directly below this directory."""
        try:
            found = self.filesystem.ls(self.key, detail=True)
        except FileNotFoundError:
            return {}
        return {entry["name"].rpartition("/")[2]: entry["size"] for entry in found if entry["type"] == "file"}

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        """Yields the objects and directories that a pattern matches, sorted; `**` matches any number of directories."""
        for key in sorted(self.filesystem.glob(f"{self.key}/{pattern}")):
            yield self._at_key(key)

    def matching_files(self) -> Iterator["RemotePath"]:
        """Yields the objects that this path, as a pattern, matches, sorted."""
        found = self.filesystem.glob(self.key, detail=True)
        yield from (self._at_key(key) for key in sorted(found) if found[key]["type"] == "file")

    def rglob(self, pattern: str) -> Iterator["RemotePath"]:
        """Yields the objects at any depth whose name matches a pattern, sorted."""
        for key in sorted(self.filesystem.find(self.key)):
            if fnmatch.fnmatchcase(key.rpartition("/")[2], pattern) and not key.endswith("/"):
                yield self._at_key(key)

    def _at_key(self, key: str) -> "RemotePath":
        return RemotePath(f"{self.parts[1]}://{key.rstrip('/')}")

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: a directory exists while an object does whose name begins with it."""
        if not exist_ok and self.exists():
            raise FileExistsError(f"{self} exists")

    def open(self, mode: str = "r", *, encoding: str | None = None, errors: str | None = None) -> IO[Any]:
        """Opens an object; appending, which gcsfs would answer by truncating, is refused."""
        if mode.startswith("a"):
            raise NotImplementedError(f"{self}: an object cannot be appended to")
        return super().open(mode, encoding=encoding, errors=errors)

    def read_bytes(self) -> bytes:
        """Returns the content of an object."""
        return self.filesystem.cat_file(self.key)

    def read_text(self, encoding: str | None = None) -> str:
        """Returns the content of an object of UTF-8 text."""
        return self.read_bytes().decode(encoding or "utf-8").replace("\r\n", "\n").replace("\r", "\n")

    def write_bytes(self, data: bytes) -> int:
        """Replaces an object, whole or not at all."""
        self.filesystem.pipe_file(self.key, bytes(data))
        return len(data)

    def write_text(self, data: str, encoding: str | None = None, errors: str | None = None) -> int:
        """Replaces an object, whole or not at all."""
        self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))
        return len(data)

    def unlink(self, missing_ok: bool = False) -> None:
        """Deletes an object."""
        # s3 does not say that there was none.
        if not missing_ok and not self.is_file():
            raise FileNotFoundError(str(self))
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.rm_file(self.key)

    def upload(self, source: Path) -> None:
        """Replaces an object by a local file."""
        self.filesystem.put_file(str(source), self.key)

    def download(self, target: Path) -> None:
        """Writes an object to a local file."""
        self.filesystem.get_file(self.key, str(target))

    def move_tree(self, target: "RemotePath") -> None:
        """Copies each object below this directory within the bucket, then deletes the originals."""
        for path in self.rglob("*"):
            copy = target / str(path.relative_to(self))
            self.filesystem.cp_file(path.key, copy.key)
        self.rmtree()


def remote(path: Path) -> RemotePath:
    """Returns a path that `data.storage.paths.at` made of a URL, with its type."""
    assert isinstance(path, RemotePath), path
    return path
