"""Published peak rates and memory of accelerator chips, with the source of every figure."""

import dataclasses

import jax

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator chip, as published by its maker.

    Attributes:
        kind: prefix of JAX's `device_kind`.
        flops: dense matrix FLOP/s in bfloat16 (V100: float16).
        hbm_bytes: memory of the chip.
        hbm_bandwidth: bytes per second between chip and memory.
        link_bandwidth: bytes per second sent by the chip over all its fast links (ICI, NVLink), one way.
        network_bandwidth: bytes per second sent by the chip over the data-center network, one way; 0 if not published.
        group: number of chips that the fast links connect: one GPU machine; 0: a whole TPU slice.
        devices: JAX devices per chip.
        source: where the figures were published.
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
# Google publishes the bandwidth of the links as the sum of both directions; a chip sends half of it.
CHIPS: dict[str, Chip] = {
    "v4": Chip(
        *("TPU v4", 275e12, 32 * _GIB, 1200e9, 300e9, 0, 0, 1),
        f"{_TPU_DOCS}v4; links: arXiv:2304.01433, table 4 (6 x 50 GB/s)",
    ),
    "v5e": Chip(
        *("TPU v5 lite", 197e12, 16 * _GIB, 819e9, 200e9, 3.125e9, 0, 1),
        f"{_TPU_DOCS}v5e; network: 6.4 Tbit/s per pod of 256",
    ),
    "v5p": Chip("TPU v5", 459e12, 95 * _GIB, 2765e9, 600e9, 6.25e9, 0, 1, f"{_TPU_DOCS}v5p"),
    "v6e": Chip(
        *("TPU v6 lite", 918e12, 32 * _GIB, 1638e9, 400e9, 12.5e9, 0, 1),
        f"{_TPU_DOCS}v6e; network: 25.6 Tbit/s per pod of 256",
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


def attached_family() -> str | None:
    """Returns the key of the attached chip in `CHIPS`, or None if it is not there (a CPU)."""
    kind = jax.local_devices()[0].device_kind
    # "TPU v5" is also a prefix of "TPU v5 lite": the longest matching name is the chip's.
    matching = [family for family, chip in CHIPS.items() if kind.startswith(chip.kind)]
    return max(matching, key=lambda family: len(CHIPS[family].kind), default=None)


def peak_flops() -> float | None:
    """Returns the peak FLOP/s of all devices together, or None if the chip is not in `CHIPS` (a CPU)."""
    family = attached_family()
    return CHIPS[family].flops / CHIPS[family].devices * jax.device_count() if family else None
