"""The directory in which a store is made: it outlives a killed command, and only one command writes to it at a time.

For the store DIR/NAME it is DIR/.NAME.partial. On this machine the store is made in it and renamed; in a bucket, which
cannot rename, the store's files are written where they will be, the manifest last.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from configs.errors import UserError
from data.preparation.unit_files import done_jobs
from data.storage.errors import file_errors
from data.storage.files import delete_temporary_files, delete_tree, file_sizes, write_atomically
from data.storage.new_directory import check_new, resolved
from data.storage.paths import is_remote
from data.store import is_store

_REQUEST, _LOCK = "request.json", ".lock"


class Workspace(NamedTuple):
    """Where a store is made.

    Attributes:
        folder: what stages leave for each other.
        store: the directory of the store that is being made.
    """

    folder: Path
    store: Path


def folder_of(output: Path) -> Path:
    """Returns the directory in which the store `output` is made."""
    output = resolved(output)
    return output.parent / f".{output.name}.partial"


@contextlib.contextmanager
def workspace(output: Path, request: dict[str, Any], shared: bool) -> Iterator[Workspace]:
    """Yields where to make `output`, with what an earlier command of the same request finished there.

    If the block ends with a complete store there, it becomes `output`, and the rest is deleted. If the block raises,
    finished units are kept for the next command; if there is only one unit, everything is deleted.

    Args:
        output: directory of the store.
        request: what is made, as JSON; what was begun for another request is deleted.
        shared: other commands work in the same place at the same time.

    Raises:
        UserError: `output` exists and is not empty, cannot be written, another command makes it, or (shared) something
            else was begun there.
    """
    folder = folder_of(output)
    remote = is_remote(output)
    space = Workspace(folder, output if remote else folder / "store")
    if not (remote and (folder / _REQUEST).is_file()):
        check_new(output)
    remedy = "; run the same command again once it can be: finished units are kept"
    with file_errors(str(output), remedy), _without_leftovers(folder, remote), _lock(output, folder, shared):
        _begin(space, request, shared)
        try:
            yield space
        except BaseException:
            if not shared and len(done_jobs(folder, "read")) < 2:
                _delete(space)
            raise
        if is_store(space.store) and not remote:
            delete_temporary_files(space.store)
            try:
                os.replace(space.store, resolved(output))
            except OSError as error:
                raise UserError(f"{output} cannot be written: {error.strerror}") from None
            shutil.rmtree(folder)
        elif is_store(space.store):
            _delete_stages(folder)


@contextlib.contextmanager
def _without_leftovers(folder: Path, remote: bool) -> Iterator[None]:
    """A context after which a lock that is all that is left in a bucket is deleted."""
    try:
        yield
    finally:
        if remote and set(file_sizes(folder)) == {_LOCK}:
            (folder / _LOCK).unlink(missing_ok=True)


def _delete_stages(folder: Path) -> None:
    """Deletes what stages left in a directory of a bucket, the request last."""
    for name in sorted(set(file_sizes(folder)) - {_LOCK}, key=lambda name: name == _REQUEST):
        (folder / name).unlink(missing_ok=True)


def _begin(space: Workspace, request: dict[str, Any], shared: bool) -> None:
    """Writes the request, or compares it with the one that was begun."""
    path = space.folder / _REQUEST
    text = json.dumps(request, indent=1, sort_keys=True)
    if path.is_file():
        if path.read_text(encoding="utf-8") == text:
            return
        if shared:
            raise UserError(
                f"{space.folder} was begun with other text or options; delete it, or give the same to every part"
            )
    if not shared:
        _delete(space, keep_lock=True)
    space.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)


def _delete(space: Workspace, keep_lock: bool = False) -> None:
    """Deletes everything that was made."""
    if is_remote(space.folder):
        if (space.folder / _REQUEST).is_file() and space.store.exists():
            delete_tree(space.store)
        _delete_stages(space.folder)
    elif keep_lock:
        for path in space.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != _LOCK:
                path.unlink()
    else:
        shutil.rmtree(space.folder, ignore_errors=True)


@contextlib.contextmanager
def _lock(output: Path, folder: Path, shared: bool) -> Iterator[None]:
    """A context in which no other command works on `output`, or (shared) only others that share it."""
    if not is_remote(output):
        with _locked_file(output, folder, shared):
            yield
        return
    if shared:
        yield
        return
    from data.storage.lease import Held, lease

    lost: list[str] = []
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lease(folder / _LOCK, lost.append))
        except Held as held:
            raise UserError(f"{output} is being made by another command ({held})") from None
        yield
        if lost:
            raise UserError(f"{lost[0]}; expected a directory that no other command writes to")


def _locked_file(output: Path, folder: Path, shared: bool) -> IO[bytes]:
    """Returns the lock of a directory on this machine, held until the file is closed."""
    try:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                file = (folder / _LOCK).open("ab")
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                # The command that held the lock before may have deleted the file.
                if os.fstat(file.fileno()).st_ino == (folder / _LOCK).stat().st_ino:
                    return file
                file.close()
    except BlockingIOError:
        raise UserError(f"{output} is being made by another command") from None
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror}") from None
