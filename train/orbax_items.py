"""How Orbax writes and reads what a checkpoint holds: groups of arrays, uncompressed, and the manifest as JSON."""

import math
from typing import Any

import jax
import orbax.checkpoint as ocp

GROUPS = ("params", "opt_state")
_LEAST_BYTES = 64e6  # read at once


class Arrays(ocp.PyTreeCheckpointHandler):
    """Orbax's own, with a bound on what is read at once, of which memory holds a second copy."""

    def __init__(self, concurrent_bytes: float | None = None) -> None:
        """Bounds reading by a number of bytes; None: by Orbax's default of 96 GB."""
        # Compression saves 8 % of float32 weights and halves the speed.
        concurrent: Any = concurrent_bytes and concurrent_bytes / 1e9
        super().__init__(use_compression=False, restore_concurrent_gb=concurrent)
        self._bounded = concurrent_bytes is not None

    def restore(self, directory: Any, args: Any) -> Any:  # noqa: ANN401 - as Orbax has it
        """Reads a tenth of the arrays at once, or the largest: Orbax refuses one beyond its bound."""
        if self._bounded:
            return super().restore(directory, args=args)
        sizes = [
            leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
            for leaf in jax.tree.leaves(args.item)
        ]
        return Arrays(max(1.01 * max(sizes), 0.1 * sum(sizes), _LEAST_BYTES)).restore(directory, args)


def registry() -> ocp.handlers.DefaultCheckpointHandlerRegistry:
    """Returns which handler saves and restores which item of a checkpoint."""
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    handler = Arrays()
    for group in GROUPS:
        registry.add(group, ocp.args.PyTreeSave, handler)
        registry.add(group, ocp.args.PyTreeRestore, handler)
    registry.add("manifest", ocp.args.JsonSave)
    registry.add("manifest", ocp.args.JsonRestore)
    return registry
