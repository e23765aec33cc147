"""How Orbax writes and reads what a checkpoint holds: groups of arrays, uncompressed, and the manifest as JSON."""

import math
import os
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import tensorstore as ts

GROUPS = ("params", "opt_state")
_LEAST_BYTES = 64e6  # read at once
_AT_ONCE = 0.25  # of what is read: fewer leave the disk idle, and each byte of it is a second copy in memory


class _ReadDirectly(ocp.type_handlers.ArrayHandler):
    """Orbax's own, reading past the page cache: a copy less, for what is read once. Orbax cannot write so."""

    async def deserialize(self, infos: Any, args: Any = None) -> Any:  # noqa: ANN401 - as Orbax has it
        for info in infos:
            info.ts_context = ts.Context({"file_io_mode": {"mode": "direct"}}, info.ts_context)
        return await super().deserialize(infos, args)


def _can_pass_cache(directory: Path) -> bool:
    """Returns whether a local file system is known to read past the page cache; network file systems often do not."""
    try:
        os.close(os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_DIRECT))
    except (OSError, AttributeError):
        return False
    return True


class Arrays(ocp.PyTreeCheckpointHandler):
    """Orbax's own: a file a leaf, its bytes as they are, or OCDBT's of many processes; bounds what is read at once."""

    def __init__(self, direct: bool, concurrent_bytes: float | None = None) -> None:
        """Reads past the page cache or through it; bounds reading by bytes, or by Orbax's default of 96 GB."""
        concurrent: Any = concurrent_bytes and concurrent_bytes / 1e9
        # OCDBT copies each leaf into a file of many. Without it, a pod's devices write a file a leaf and device.
        ocdbt = jax.process_count() > 1
        handler = _ReadDirectly() if direct else ocp.type_handlers.ArrayHandler()
        super().__init__(
            # Compression saves 8 % of float32 weights and halves the speed.
            use_compression=False,
            use_ocdbt=ocdbt,
            restore_concurrent_gb=concurrent,
            type_handler_registry=ocp.type_handlers.create_type_handler_registry((jax.Array, handler)),
        )
        self._direct, self._ocdbt, self._bounded = direct, ocdbt, concurrent_bytes is not None

    def finalize(self, directory: Any) -> None:  # noqa: ANN401 - as Orbax has it
        """Merges the processes' OCDBT files; Orbax warns where there are none."""
        if self._ocdbt:
            super().finalize(directory)

    def restore(self, directory: Any, args: Any) -> Any:  # noqa: ANN401 - as Orbax has it
        """Reads a quarter of the arrays at once, or the largest: Orbax refuses one beyond its bound."""
        if self._bounded:
            return super().restore(directory, args=args)
        sizes = [
            leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
            for leaf in jax.tree.leaves(args.item)
        ]
        bound = max(1.01 * max(sizes), _AT_ONCE * sum(sizes), _LEAST_BYTES)
        return Arrays(self._direct, bound).restore(directory, args)


def registry(directory: Path, once: bool) -> ocp.handlers.DefaultCheckpointHandlerRegistry:
    """Returns which handler saves and restores which item of a run's checkpoints.

    Args:
        directory: of the run.
        once: what is read is not read again soon, so that the page cache has no use for it.
    """
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    handler = Arrays(once and _can_pass_cache(directory))
    for group in GROUPS:
        registry.add(group, ocp.args.PyTreeSave, handler)
        registry.add(group, ocp.args.PyTreeRestore, handler)
    registry.add("manifest", ocp.args.JsonSave)
    registry.add("manifest", ocp.args.JsonRestore)
    return registry
