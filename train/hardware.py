"""What a chip can do: a table with the source of every figure, and the measured peak of a device not in it."""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator chip as its maker publishes it.

    Attributes:
        kind: how JAX's `device_kind` begins.
        flops: dense matrix FLOP/s in bfloat16 (V100: float16).
        hbm_bytes: memory.
        hbm_bandwidth: bytes a second between chip and memory.
        link_bandwidth: bytes a second out of the chip over all its fast links (ICI, NVLink), one way.
        network_bandwidth: bytes a second out of the chip over the data-centre network, one way; 0 where not published.
        group: chips that the fast links join: a TPU slice (0: all of them) or one GPU machine.
        devices: JAX devices a chip.
        source: where the figures stand.
    """

    kind: str
    flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    group: int
    devices: int
    source: str


_TPU_DOCS = "docs.cloud.google.com/tpu/docs/"
# Google's pages give the links' bandwidth in both directions together; half of it leaves a chip.
CHIPS: dict[str, Chip] = {
    "v4": Chip(
        *("TPU v4", 275e12, 32 * _GIB, 1200e9, 300e9, 0, 0, 1),
        f"{_TPU_DOCS}v4; links: arXiv:2304.01433, table 4 (6 x 50 GB/s)",
    ),
    "v5e": Chip(
        *("TPU v5 lite", 197e12, 16 * _GIB, 819e9, 200e9, 3.125e9, 0, 1),
        f"{_TPU_DOCS}v5e; network: 6.4 Tbit/s a pod of 256",
    ),
    "v5p": Chip("TPU v5", 459e12, 95 * _GIB, 2765e9, 600e9, 6.25e9, 0, 1, f"{_TPU_DOCS}v5p"),
    "v6e": Chip(
        *("TPU v6 lite", 918e12, 32 * _GIB, 1638e9, 400e9, 12.5e9, 0, 1),
        f"{_TPU_DOCS}v6e; network: 25.6 Tbit/s a pod of 256",
    ),
    "tpu7x": Chip("TPU7x", 2307e12, 192 * _GIB, 7380e9, 600e9, 12.5e9, 0, 2, f"{_TPU_DOCS}tpu7x"),
    "v100": Chip(
        *("Tesla V100", 125e12, 32 * _GIB, 900e9, 150e9, 6.25e9, 8, 1),
        "NVIDIA V100 SXM2 data sheet; network: DGX-1, 4 x 100 Gbit/s for 8",
    ),
    "a100": Chip(
        *("NVIDIA A100", 312e12, 80 * _GIB, 2039e9, 300e9, 25e9, 8, 1),
        "NVIDIA A100 80GB SXM data sheet; network: DGX A100, 8 x 200 Gbit/s for 8",
    ),
    "h100": Chip(
        *("NVIDIA H100", 989e12, 80 * _GIB, 3350e9, 450e9, 50e9, 8, 1),
        "NVIDIA H100 SXM data sheet; network: DGX H100, 8 x 400 Gbit/s for 8",
    ),
    "h200": Chip(
        *("NVIDIA H200", 989e12, 141_000_000_000, 4800e9, 450e9, 50e9, 8, 1),
        "NVIDIA H200 SXM data sheet; network: DGX H200, 8 x 400 Gbit/s for 8",
    ),
    "b200": Chip(
        *("NVIDIA B200", 2250e12, 180_000_000_000, 8000e9, 900e9, 50e9, 8, 1),
        "NVIDIA DGX B200 data sheet: 8 of them, 8 x 400 Gbit/s",
    ),
}


@functools.cache
def peak_flops() -> float:
    """Returns FLOP/s of all devices together: from the table, or measured where a device is not in it (a CPU).

    Virtual devices of one CPU share its cores, so a CPU is measured once, whole.
    """
    device = jax.local_devices()[0]
    # "TPU v5" begins "TPU v5 lite" too: the longest name that fits is the chip's.
    fitting = [chip for chip in CHIPS.values() if device.device_kind.startswith(chip.kind)]
    if fitting:
        chip = max(fitting, key=lambda chip: len(chip.kind))
        return chip.flops / chip.devices * jax.device_count()
    share = jax.process_count() if device.platform == "cpu" else jax.device_count()
    return _measured_flops(device) * share


def _measured_flops(device: jax.Device, size: int = 1024, repeats: int = 5) -> float:
    seconds = []
    with jax.set_mesh(Mesh([device], ("alone",))):
        x = jnp.ones((size, size), jnp.float32)
        product = jax.jit(lambda x: x @ x)
        product(x).block_until_ready()
        for _ in range(repeats):
            start = time.perf_counter()
            product(x).block_until_ready()
            seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
