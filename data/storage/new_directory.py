"""Directories that appear only when they are complete, so that a command that failed can simply run again."""

import contextlib
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from configs.errors import UserError
from data.storage.files import copy_tree, delete_tree, exists
from data.storage.paths import is_remote

# In a bucket: the lock of the command that makes the directory. If it was killed, what it left is deleted.
_UNFINISHED = ".partial"
_LAST = "manifest.json"
_TERMINATED = 128 + signal.SIGTERM


@contextlib.contextmanager
def new_directory(path: Path, in_place: bool = False) -> Iterator[Path]:
    """Yields a temporary directory that becomes `path` when the block ends, or is removed if it raises.

    SIGTERM ends the process with exit code 143 after that, where nothing else handles it.

    Args:
        path: the directory. In a bucket, which cannot rename, the temporary directory is on this machine and is
            uploaded, a manifest.json last.
        in_place: in a bucket, yield `path` itself: checkpoints are written differently there.

    Raises:
        UserError: `path` exists and is not an empty directory, or cannot be written.
    """
    with _exit_on_sigterm():
        if not is_remote(path):
            with _renamed(path) as directory:
                yield directory
        elif in_place:
            with _claimed(path):
                yield path
        else:
            with _claimed(path), tempfile.TemporaryDirectory(prefix="rootstock-") as scratch:
                yield Path(scratch)
                copy_tree(Path(scratch), path, _LAST)


@contextlib.contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Makes SIGTERM raise SystemExit instead of ending the process at once, which would leave half a directory."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is unfinished is being removed
        raise SystemExit(_TERMINATED)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    check_new(path)
    target = resolved(path)
    # Next to it, because a rename is atomic only within one file system.
    temporary = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    try:
        yield temporary
        try:
            os.replace(temporary, target)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[None]:
    """A context in which only this process makes the directory `path` of a bucket."""
    from data.storage.lease import Held, lease

    check_new(path)
    lock = path / _UNFINISHED
    lost: list[str] = []
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lease(lock, lost.append))
        except Held as held:
            raise UserError(f"{path} is being made by another command ({held})") from None
        _delete_files(path)
        try:
            yield
        except BaseException:
            _delete_files(path)
            lock.unlink()
            raise
        if lost:
            raise UserError(f"{lost[0]}; expected a directory that no other command writes to")
        lock.unlink()


def _delete_files(path: Path) -> None:
    """Deletes what is in a directory of a bucket, except for the lock."""
    for found in list(path.iterdir()):
        if found.is_dir():
            delete_tree(found)
        elif found.name != _UNFINISHED:
            found.unlink()


def check_new(path: Path) -> None:
    """Raises UserError if `path` exists and cannot be replaced: not an empty directory, or in use as one.

    What a killed command left in a bucket can be replaced.
    """
    if not exists(path) or (is_remote(path) and _is_unfinished(path)):
        return
    if not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path} exists and is not empty; expected a new directory")
    if not is_remote(path) and (os.path.samefile(path, os.curdir) or os.path.ismount(path)):
        kind = "a mount point" if os.path.ismount(path) else "the current directory"
        raise UserError(f"{path} is {kind}, which cannot be replaced; expected a new directory")


def resolved(path: Path) -> Path:
    """Returns the path that links in a path lead to: only that one can be replaced by a rename."""
    return path if is_remote(path) else Path(os.path.realpath(path))


def _is_unfinished(path: Path) -> bool:
    """Returns whether a directory of a bucket has the lock of a command that makes it, or that was killed."""
    return (path / _UNFINISHED).is_file()
