"""The Orbax handlers of a checkpoint's items: two trees of uncompressed arrays, and the manifest as JSON."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import tensorstore as ts
from orbax.checkpoint.future import Future

from data.storage.paths import is_remote

ITEMS = ("params", "opt_state", "average")
MIN_CONCURRENT_BYTES = 64e6
# Of the bytes to read: a smaller fraction leaves the disk idle; each byte in flight is a second copy in memory.
_CONCURRENT_FRACTION = 0.25


class _ReadDirectly(ocp.type_handlers.ArrayHandler):
    """Orbax's array handler with direct I/O, one copy fewer for files that are read once. Orbax cannot write so."""

    async def deserialize(self, infos: Any, args: Any = None) -> Any:  # noqa: ANN401 - Orbax's signature
        for info in infos:
            info.ts_context = ts.Context({"file_io_mode": {"mode": "direct"}}, info.ts_context)
        return await super().deserialize(infos, args)


def _supports_direct_io(directory: Path) -> bool:
    """Returns whether the file system supports O_DIRECT; network file systems often do not."""
    try:
        os.close(os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_DIRECT))
    except (OSError, AttributeError):
        return False
    return True


class Writes:
    """The writes of a run's saves, in threads of Orbax. A failed save ends when the last of its writes has ended.

    Orbax raises the first error while the other items are still written. A restart in the same process, which removes
    the files of the failed save, would meet these writes.
    """

    def __init__(self) -> None:
        self._running: set[Future] = set()

    def joined(self, writes: Sequence[Future] | None) -> list["_Joined"]:
        """Returns an item's writes as futures for Orbax."""
        self._running.update(writes or ())
        return [_Joined(self, write) for write in writes or ()]

    def finish(self, write: Future, timeout: float | None) -> None:
        """Waits for a write and, if it fails, for all others; raises what it raised."""
        try:
            write.result(timeout)
        except Exception:
            for other in self._running - {write}:
                with contextlib.suppress(Exception):
                    other.result(timeout)
            self._running.clear()
            raise
        self._running.discard(write)


@dataclasses.dataclass(frozen=True)
class _Joined:
    """A future of Orbax: one of `writes`."""

    writes: Writes
    write: Future

    def result(self, timeout: float | None = None) -> None:
        self.writes.finish(self.write, timeout)

    def cancel(self) -> None:
        self.write.cancel()


class _Manifest(ocp.JsonCheckpointHandler):
    """Orbax's JSON handler, whose file belongs to `writes`."""

    def __init__(self, writes: Writes) -> None:
        super().__init__()
        self._writes = writes

    async def async_save(self, *args: object, **kwargs: object) -> list[_Joined]:
        return self._writes.joined(await super().async_save(*args, **kwargs))


class Arrays(ocp.PyTreeCheckpointHandler):
    """Orbax's PyTree handler: a file per leaf, uncompressed (OCDBT on several processes and buckets); bounds reads."""

    def __init__(
        self, direct: bool, writes: Writes, remote: bool = False, concurrent_bytes: float | None = None
    ) -> None:
        """Reads with direct I/O or through the page cache, at most `concurrent_bytes` at once (Orbax: 96 GB)."""
        concurrent: Any = concurrent_bytes and concurrent_bytes / 1e9
        # OCDBT copies every leaf into a shared file. Without it, a pod writes one file per leaf and device, and each
        # of them is a request to a bucket.
        ocdbt = jax.process_count() > 1 or remote
        handler = _ReadDirectly() if direct else ocp.type_handlers.ArrayHandler()
        super().__init__(
            # Compression saves 8 % of float32 weights and halves the speed.
            use_compression=False,
            use_ocdbt=ocdbt,
            restore_concurrent_gb=concurrent,
            type_handler_registry=ocp.type_handlers.create_type_handler_registry((jax.Array, handler)),
        )
        self._direct, self._remote, self._ocdbt = direct, remote, ocdbt
        self._bounded, self._writes = concurrent_bytes is not None, writes

    async def async_save(self, *args: object, **kwargs: object) -> list[_Joined]:
        """Starts to write a tree; see `Writes`."""
        return self._writes.joined(await super().async_save(*args, **kwargs))

    def finalize(self, directory: Any) -> None:  # noqa: ANN401 - Orbax's signature
        """Merges the OCDBT files of the processes; Orbax would warn if there are none."""
        if self._ocdbt:
            super().finalize(directory)

    def restore(self, directory: Any, args: Any) -> Any:  # noqa: ANN401 - Orbax's signature
        """Reads a quarter of the bytes at once, or the largest array: Orbax refuses an array above its bound."""
        if self._bounded:
            return super().restore(directory, args=args)
        sizes = [
            leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
            for leaf in jax.tree.leaves(args.item)
        ]
        bound = max(1.01 * max(sizes), _CONCURRENT_FRACTION * sum(sizes), MIN_CONCURRENT_BYTES)
        return Arrays(self._direct, self._writes, self._remote, bound).restore(directory, args)


def registry(directory: Path, once: bool) -> ocp.handlers.DefaultCheckpointHandlerRegistry:
    """Returns the handlers that save and restore the items of a run's checkpoints.

    Args:
        directory: of the run.
        once: the files will not be read again soon, so bypass the page cache.
    """
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    writes, remote = Writes(), is_remote(directory)
    handler = Arrays(once and not remote and _supports_direct_io(directory), writes, remote)
    manifest = _Manifest(writes)
    for item in ITEMS:
        registry.add(item, ocp.args.PyTreeSave, handler)
        registry.add(item, ocp.args.PyTreeRestore, handler)
    registry.add("manifest", ocp.args.JsonSave, manifest)
    registry.add("manifest", ocp.args.JsonRestore, manifest)
    return registry
