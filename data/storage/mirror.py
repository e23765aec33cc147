"""Files that grow while a run writes to a bucket: they are appended to on this machine and uploaded whole."""

import contextlib
import dataclasses
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from data.storage.files import copy_file, files_below
from data.storage.paths import is_remote

UPLOAD_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Mirror:
    """A directory on this machine and the one whose copy it is; the same one if that is on this machine too.

    Attributes:
        local: where files are written.
        target: where they are read.
    """

    local: Path
    target: Path
    _sent: dict[Path, tuple[int, int]] = dataclasses.field(default_factory=dict)
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def publish(self) -> None:
        """Uploads every file that changed since it was uploaded; nothing to do on this machine."""
        if self.local == self.target:
            return
        with self._lock:
            for file in files_below(self.local):
                status = file.stat()
                found = (status.st_size, status.st_mtime_ns)
                if self._sent.get(file) != found:
                    copy_file(file, self.target / str(file.relative_to(self.local)))
                    self._sent[file] = found


@contextlib.contextmanager
def mirrored(directory: Path, name: str) -> Iterator[Mirror]:
    """Yields a `Mirror` of a directory: the directory itself or, for a bucket, a temporary one.

    A temporary one is uploaded each minute if it changed, and at the end.

    Args:
        directory: where the files will be read.
        name: a file in it that will be changed, so it is downloaded first.
    """
    if not is_remote(directory):
        yield Mirror(directory, directory)
        return
    with tempfile.TemporaryDirectory(prefix="rootstock-") as scratch, contextlib.ExitStack() as stack:
        mirror = Mirror(Path(scratch), directory)
        if (directory / name).is_file():
            copy_file(directory / name, mirror.local / name)
        done = threading.Event()
        thread = threading.Thread(target=_upload, args=(mirror, done), daemon=True)
        thread.start()
        stack.callback(thread.join)
        stack.callback(done.set)
        try:
            yield mirror
        except BaseException:
            # The error of the block is the one to report.
            with contextlib.suppress(Exception):
                mirror.publish()
            raise
        mirror.publish()


def _upload(mirror: Mirror, done: threading.Event) -> None:
    while not done.wait(UPLOAD_SECONDS):
        # What cannot be uploaded now may be in a minute; `publish` at the next checkpoint raises otherwise.
        with contextlib.suppress(Exception):
            mirror.publish()
