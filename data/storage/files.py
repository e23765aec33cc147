"""Reading, writing, listing and copying files where they are: on this machine or in a bucket."""

import contextlib
import glob
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import UserError
from data.storage.paths import at, is_remote, is_url

if TYPE_CHECKING:
    from data.storage.remote import RemotePath


def _remote(path: Path) -> "RemotePath":
    from data.storage.remote import remote

    return remote(path)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replaces the contents of a file; after a crash the file has either the old or the new content, complete.

    Raises:
        OSError: the directory is missing, read-only or full; the old file is unchanged.
    """
    data = content.encode() if isinstance(content, str) else content
    if is_remote(path):
        path.write_bytes(data)
        return
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def exists(path: Path) -> bool:
    """Returns whether there is a file or directory; at what no file system accepts as a name, there is none.

    `pathlib` raises for a name that is too long, such as many file names separated by commas.
    """
    return path.exists() if is_remote(path) else os.path.exists(path)


def is_directory(path: Path) -> bool:
    """Returns whether there is a directory; see `exists`."""
    return path.is_dir() if is_remote(path) else os.path.isdir(path)


def is_file(path: Path) -> bool:
    """Returns whether there is a file; see `exists`."""
    return path.is_file() if is_remote(path) else os.path.isfile(path)


def check_directory(path: Path) -> None:
    """Checks that files can be made in an existing directory, or anywhere below a bucket, and deleted again.

    Raises:
        OSError: they cannot.
    """
    if not is_remote(path):
        with tempfile.TemporaryFile(dir=path):
            return
    probe = path / f".probe-{uuid.uuid4().hex}"
    probe.write_bytes(b"")
    probe.unlink()


def delete_tree(path: Path) -> None:
    """Deletes a directory and everything in it."""
    if is_remote(path):
        _remote(path).rmtree()
    else:
        shutil.rmtree(path)


def move_tree(source: Path, target: Path) -> None:
    """Renames a directory; in a bucket each object is copied, then deleted, so a crash may leave some in both."""
    if is_remote(source):
        _remote(source).move_tree(_remote(target))
    else:
        source.rename(target)


def files_below(directory: Path) -> list[Path]:
    """Returns the files at any depth below a directory, sorted; each directory once, whatever leads to it.

    Raises:
        OSError: a directory cannot be read.
    """
    if is_remote(directory):
        return list(directory.rglob("*"))
    found: list[Path] = []
    seen = {directory.resolve()}
    for folder, folders, names in os.walk(directory, onerror=_raise, followlinks=True):
        # A link may lead to a directory above it, or to one that is read anyway; so links come last.
        below = {path: path.resolve() for path in sorted(Path(folder, name) for name in folders)}
        folders.clear()
        for path in sorted(below, key=Path.is_symlink):
            if below[path] not in seen:
                seen.add(below[path])
                folders.append(path.name)
        found += [path for name in names if (path := Path(folder, name)).is_file()]
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def file_sizes(directory: Path) -> dict[str, int]:
    """Returns {name: bytes} of the files directly in a directory; of a missing one, {}. One listing in a bucket."""
    if is_remote(directory):
        return _remote(directory).file_sizes()
    try:
        with os.scandir(directory) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return {}


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path on this machine whose file becomes `path`, whole or not at all, when the block ends."""
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="rootstock-") as scratch:
            yield Path(scratch) / path.name
            _remote(path).upload(Path(scratch) / path.name)
        return
    temporary = _temporary(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def delete_temporary_files(directory: Path) -> None:
    """Deletes what processes that were killed in `new_file` or `write_atomically` left at any depth of a directory."""
    for path in list(directory.rglob(".*.tmp")):
        path.unlink()


def match_files(pattern: str) -> list[Path]:
    """Returns the files that a glob pattern matches, sorted; `**` matches any number of directories."""
    if is_url(pattern):
        return list(_remote(at(pattern)).matching_files())
    return sorted(path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file())


def copy_tree(source: Path, target: Path, last: str = "") -> None:
    """Copies the files of a directory between this machine and a bucket.

    Args:
        source: the directory.
        target: the directory to make.
        last: a name in `source` that is copied after all others, because it says that the directory is complete.
    """
    for path in sorted(files_below(source), key=lambda path: path == source / last):
        copy_file(path, target / str(path.relative_to(source)))


def copy_file(source: Path, target: Path) -> None:
    """Copies a file between this machine and a bucket, in parts if it is large."""
    if is_remote(target):
        _remote(target).upload(source)
    elif is_remote(source):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remote(source).download(target)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


@contextlib.contextmanager
def local_copy(path: Path, wanted: Callable[[Path], bool] = lambda _: True) -> Iterator[Path]:
    """Yields a file or directory on this machine for libraries that read nothing else; of a bucket, a temporary copy.

    Args:
        path: a file or directory.
        wanted: which files of a directory in a bucket to copy.

    Raises:
        UserError: what the block raises, with the name in the bucket instead of the copy's.
    """
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="rootstock-") as scratch:
        copy = Path(scratch) / path.name
        if path.is_dir():
            copy.mkdir()
            for file in files_below(path):
                if wanted(file):
                    copy_file(file, copy / str(file.relative_to(path)))
        elif path.exists():
            copy_file(path, copy)
        try:
            yield copy
        except UserError as error:
            raise type(error)(str(error).replace(str(copy), str(path))) from None
