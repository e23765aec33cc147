"""A lock in a bucket: an object that its owner renews, and that another may take over when it is not renewed.

Time is measured by the clock of the bucket, because those of two hosts may differ by minutes.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from data.storage.conditional import Version, read_version, write_if
from data.storage.remote import RemotePath, remote

LEASE_SECONDS = 60.0
_RENEWALS = 3  # per lease
# The marks of the leases that this process holds.
_held: set[str] = set()


class Held(Exception):
    """Another process holds the lease; the message says which, and until when."""


@dataclasses.dataclass(frozen=True)
class _Owner:
    """The content of a lock.

    Attributes:
        mark: unique to each lease; "" in a lock that was released.
        host: the name of the owner's host.
        pid: its process.
        pids: what the process number counts in: the boot of the machine and the namespace of a container.
        renewed: the number of renewals.
    """

    mark: str
    host: str
    pid: int
    pids: str
    renewed: int = 0

    def to_bytes(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()


def _pids() -> str:
    """Returns what identifies the process numbers of this machine or container; "" if that is not known."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _read(version: Version) -> _Owner:
    """Returns the owner of a lock; a lock that cannot be read counts as that of an unknown owner."""
    try:
        return _Owner(**json.loads(version.data))
    except (ValueError, TypeError):
        return _Owner("?", "an unknown host", 0, "")


@contextlib.contextmanager
def lease(lock: Path, on_lost: Callable[[str], None], seconds: float = LEASE_SECONDS) -> Iterator[str]:
    """Yields the content of the lock's "mark" field while this process holds the lock.

    Args:
        lock: the object.
        on_lost: called from another thread with the reason if another process took the lock over.
        seconds: without a renewal, until another may take it over.

    Raises:
        Held: another process holds it.
    """
    path = remote(lock)
    owner = _Owner(uuid.uuid4().hex, socket.gethostname(), os.getpid(), _pids())
    # Before it is written: another thread would take it for that of a dead process.
    _held.add(owner.mark)
    done = threading.Event()
    try:
        version = _take(path, owner, seconds)
        renewing = threading.Thread(target=_renew, args=(path, owner, version, seconds, done, on_lost), daemon=True)
        renewing.start()
        try:
            yield owner.mark
        finally:
            done.set()
            renewing.join()
            _release(path, owner)
    finally:
        _held.discard(owner.mark)


def _release(path: RemotePath, owner: _Owner) -> None:
    """Makes a lock free; it is not deleted, because a deletion cannot be made conditional everywhere."""
    # If the bucket cannot be reached any more, the lock expires.
    with contextlib.suppress(Exception):
        now = read_version(path)
        if now is not None and _read(now).mark == owner.mark:
            write_if(path, dataclasses.replace(owner, mark="", renewed=-1).to_bytes(), now)


def mark_of(lock: Path) -> str:
    """Returns the mark of the process that holds a lock, or "" if none does."""
    version = read_version(remote(lock))
    return "" if version is None else _read(version).mark


def _take(path: RemotePath, owner: _Owner, seconds: float) -> Version:
    """Writes the lock if nobody holds it; if two processes try, one of them raises Held."""
    before = read_version(path)
    if before is not None:
        _check_free(path, before, seconds)
    taken = write_if(path, owner.to_bytes(), before)
    if taken is None:
        now = read_version(path)
        raise Held(_describe(_read(now)) if now is not None else "another process")
    return taken


def _describe(owner: _Owner) -> str:
    return f"host {owner.host}, pid {owner.pid}"


def _check_free(path: RemotePath, version: Version, seconds: float) -> None:
    owner = _read(version)
    if not owner.mark or _is_dead(owner):
        return
    probe = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    probe.write_bytes(b"")
    age = (probe.filesystem.modified(probe.key) - version.written).total_seconds()
    probe.unlink()
    if age < seconds:
        raise Held(
            f"{_describe(owner)}, which renewed its lock {max(age, 0):.0f} s ago; if it is gone, its lock ends in "
            f"{seconds - age:.0f} s"
        )


def _is_dead(owner: _Owner) -> bool:
    """Returns whether a process of this machine held the lock and is gone, so that there is no need to wait."""
    if not owner.pids or owner.pids != _pids() or owner.host != socket.gethostname():
        return False
    if owner.pid == os.getpid():
        return owner.mark not in _held
    return not Path(f"/proc/{owner.pid}").exists()


def _renew(
    path: RemotePath,
    owner: _Owner,
    version: Version,
    seconds: float,
    done: threading.Event,
    on_lost: Callable[[str], None],
) -> None:
    """Renews a lock until `done`; what goes wrong with the network is tried again at the next renewal."""
    for number in itertools.count(1):
        if done.wait(seconds / _RENEWALS):
            return
        try:
            renewed = write_if(path, dataclasses.replace(owner, renewed=number).to_bytes(), version)
            now = renewed or read_version(path)
        except Exception:  # the clients raise errors of many types
            continue
        if now is None or _read(now).mark != owner.mark:
            other = "was deleted" if now is None else f"was taken over by {_describe(_read(now))}"
            on_lost(f"{path}: the lock of this run {other}")
            return
        version = now
