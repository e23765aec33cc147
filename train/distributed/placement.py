"""Placement of batches and arrays on a mesh: which rows each process reads, and transfers to and from devices."""

import functools
import math
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from model.sharding import ACTIVATION_RULES, BATCH_SPEC, AnyMesh


def replicate(arrays: tuple[np.ndarray, ...], mesh: Mesh) -> tuple[jax.Array, ...]:
    """Returns the arrays replicated on every device of the mesh; all processes must pass the same arrays."""
    return tuple(jax.make_array_from_callback(a.shape, replicated(mesh), a.__getitem__) for a in arrays)


def to_host(x: jax.Array, mesh: Mesh) -> np.ndarray:
    """Returns as a NumPy array an array that may be sharded over several processes."""
    return np.asarray(jax.device_put(x, replicated(mesh)))


def replicated(mesh: AnyMesh) -> NamedSharding:
    """Returns the sharding of an array that is replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
    """Returns the sharding of a (rows, length) batch."""
    return NamedSharding(mesh, BATCH_SPEC)


def batch_places(mesh: Mesh, batch_size: int, devices: Iterable[jax.Device]) -> np.ndarray:
    """Returns the sorted indices of the rows of a global batch of which `devices` hold at least a part.

    Hosts that share a context or tensor axis hold parts of the same rows and therefore read the same rows.
    """
    return np.arange(batch_size).reshape(row_parts(mesh), -1)[_held_parts(mesh, tuple(devices))].ravel()


def local_places(mesh: Mesh, batch_size: int) -> np.ndarray | None:
    """Returns the rows of a global batch that this process reads (see `batch_places`); None: all rows."""
    return None if jax.process_count() == 1 else batch_places(mesh, batch_size, jax.local_devices())


def put_batch(batch: Any, mesh: Mesh) -> Any:  # noqa: ANN401 - a tree of arrays
    """Returns a batch as global arrays on the mesh; this process passes the rows at its `local_places`."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    held = _held_parts(mesh, tuple(jax.local_devices()))

    def put(x_BT: np.ndarray) -> jax.Array:
        size = len(x_BT) // len(held)

        def shard(index: Any) -> np.ndarray:  # noqa: ANN401 - JAX's type allows None
            first = held.index((index[0].start or 0) // size) * size
            return x_BT[first : first + size, *index[1:]]

        return jax.make_array_from_callback((size * row_parts(mesh), *x_BT.shape[1:]), sharding, shard)

    return jax.tree.map(put, batch)


def row_parts(mesh: Mesh) -> int:
    """Returns the number of equal parts into which the mesh splits the rows of a batch."""
    return math.prod(mesh.shape[axis] for axis in ACTIVATION_RULES["batch"])


@functools.lru_cache(maxsize=8)
def _held_parts(mesh: Mesh, devices: tuple[jax.Device, ...]) -> list[int]:
    """Returns the sorted indices of the parts of which `devices` hold at least a part."""
    indices = batch_sharding(mesh).devices_indices_map((row_parts(mesh), mesh.shape["context"]))
    return sorted({indices[device][0].start or 0 for device in devices})
