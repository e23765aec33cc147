"""Writes to an object of a bucket that happen only if nobody else wrote to it meanwhile."""

import datetime
import functools
from typing import TYPE_CHECKING, NamedTuple

from data.storage.remote import RemotePath

if TYPE_CHECKING:
    from google.cloud import storage


class Version(NamedTuple):
    """One version of an object.

    Attributes:
        data: its content.
        tag: identifies the version: the generation (gs) or the ETag, a hash of the content (s3).
        written: when it was written, by the clock of the bucket.
    """

    data: bytes
    tag: str
    written: datetime.datetime


def read_version(path: RemotePath) -> Version | None:
    """Returns the current version of an object, or None if there is none."""
    files = path.filesystem
    try:
        # In this order a write in between makes the data newer than the tag, and a conditional write fails.
        info = files.info(path.key)
        tag, written = info.get("generation") or info.get("ETag"), info.get("LastModified") or info.get("mtime")
        return Version(files.cat_file(path.key), str(tag), written)
    except FileNotFoundError:
        return None


def write_if(path: RemotePath, data: bytes, before: Version | None) -> Version | None:
    """Writes an object if its version is `before` (None: if it does not exist); returns the new version, or None.

    On s3 the versions of an object are told apart by their content, so `data` must be new each time.
    """
    write = _write_gs if path.parts[1] == "gs" else _write_s3
    try:
        write(path, data, before)
    except _Conflict:
        pass
    # Also after a conflict: a client that repeats a request whose answer was lost conflicts with its own write.
    found = read_version(path)
    return found if found is not None and found.data == data else None


class _Conflict(Exception):
    """The object has another version."""


def _write_s3(path: RemotePath, data: bytes, before: Version | None) -> None:
    condition = {"IfNoneMatch": "*"} if before is None else {"IfMatch": before.tag}
    try:
        path.filesystem.pipe_file(path.key, data, **condition)
    except FileExistsError:
        raise _Conflict from None
    # The key does not exist any more.
    except FileNotFoundError:
        if before is None:
            raise
        raise _Conflict from None
    except OSError as error:
        if "pre-condition" not in str(error):
            raise
        raise _Conflict from None


def _write_gs(path: RemotePath, data: bytes, before: Version | None) -> None:
    # gcsfs can create an object only if it does not exist, but not replace a given version.
    from google.api_core.exceptions import PreconditionFailed

    bucket, _, name = path.key.partition("/")
    blob = _gs_client().bucket(bucket).blob(name)
    try:
        blob.upload_from_string(data, if_generation_match=0 if before is None else int(before.tag))
    except PreconditionFailed:
        raise _Conflict from None


@functools.cache
def _gs_client() -> "storage.Client":
    from google.cloud import storage

    return storage.Client()
