"""The device, its software, and the largest rates that it reaches: a matrix product and a copy."""

import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

from train.hardware import CHIPS, Chip, attached_family
from train.planner.topology import CORES_IN_NAME, Topology, parse_topology

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "jax-cuda13-plugin", "libtpu")


def attached_topology() -> Topology | None:
    """Returns the topology of the attached devices, or None if the chip is not in `CHIPS`."""
    family = attached_family()
    if family is None:
        return None
    chips = jax.device_count() // CHIPS[family].devices
    return parse_topology(f"{family}-{chips * CORES_IN_NAME.get(family, 1)}")


def attached_chip() -> Chip | None:
    """Returns the published figures of the attached chip, or None if it is not in `CHIPS`."""
    family = attached_family()
    return CHIPS[family] if family else None


def seconds_of(call: Callable[[], Any], repeats: int = 9) -> float:
    """Returns the median seconds of a call whose result is waited for, after one warm-up."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(width: int) -> dict[str, Any]:
    """Returns the device's name, versions, FLOP/s of bfloat16 and float32 products, and bytes/s of a copy."""
    device = jax.local_devices()[0]
    chip = attached_chip()
    return {
        "device": device.device_kind,
        "devices": jax.device_count(),
        "platform": device.client.platform_version.splitlines()[0],
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "python": platform.python_version(),
        "published_flops": chip.flops if chip else None,
        "published_bandwidth": chip.hbm_bandwidth if chip else None,
        "memory": (device.memory_stats() or {}).get("bytes_limit"),
        "bfloat16_flops": _product(width, jnp.bfloat16),
        "float32_flops": _product(width, jnp.float32),
        "copy_bandwidth": _copy(width),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


# Random data: zeros use less power and run faster than what a model multiplies.
def _product(width: int, dtype: Any) -> float:
    """Returns the FLOP/s of ten dependent products of (width, width) matrices."""
    a, b = (jax.random.normal(jax.random.key(seed), (width, width), dtype) / width**0.5 for seed in (0, 1))

    @jax.jit
    def products(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 10, lambda _, x: x @ b, a)

    return 10 * 2 * width**3 / seconds_of(lambda: products(a, b))


def _copy(width: int) -> float:
    """Returns bytes/s, read and written, of adding 1 to an array of 16 * width**2 float32 values."""
    x = jax.random.normal(jax.random.key(0), (16 * width, width), jnp.float32)
    add = jax.jit(lambda x: x + 1)
    return 2 * x.nbytes / seconds_of(lambda: add(x))
