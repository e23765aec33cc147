"""Parses cloud names of topologies (v5e-16, h100-8) and creates their devices for the compilers, without hardware."""

import dataclasses
import difflib
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from configs.errors import UserError
from train.hardware import CHIPS, Chip

# Chips -> torus. Cloud names of v4, v5p and tpu7x count TensorCores, two per chip: v5p-8 has 4 chips.
_TORUS_2D: dict[int, tuple[int, ...]] = {
    1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16),
}  # fmt: skip
_TORUS_3D: dict[int, tuple[int, ...]] = {
    4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (4, 4, 8), 256: (4, 8, 8),
    512: (8, 8, 8), 1024: (8, 8, 16), 2048: (8, 16, 16), 4096: (16, 16, 16),
}  # fmt: skip
_TORI: dict[str, dict[int, tuple[int, ...]]] = {
    "v4": _TORUS_3D,
    "v5e": _TORUS_2D,
    "v5p": _TORUS_3D | {6144: (16, 16, 24)},
    "v6e": _TORUS_2D,
    "tpu7x": _TORUS_3D | {9216: (16, 24, 24)},
}
CORES_IN_NAME = {"v4": 2, "v5e": 1, "v5p": 2, "v6e": 1, "tpu7x": 2}
_ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "trillium": "v6e", "ironwood": "tpu7x", "7x": "tpu7x"}
_LARGEST_GPU_CLUSTER = 65_536


@dataclasses.dataclass(frozen=True)
class Topology:
    """A set of chips with their interconnect.

    Attributes:
        name: the requested name.
        chip: `CHIPS[family]`.
        family: key of `CHIPS`.
        torus: chips along each axis of a TPU slice; empty for GPUs.
        slices: TPU slices joined by the data-center network.
        chips: total number of chips.
    """

    name: str
    chip: Chip
    family: str
    torus: tuple[int, ...]
    slices: int
    chips: int

    @property
    def devices(self) -> int:
        """The number of JAX devices."""
        return self.chips * self.chip.devices


def parse_topology(name: str) -> Topology:
    """Returns the `Topology` of a name: `v5e-16`, `v5p:4x4x4`, `2xv5e-256` (two slices), `a100-64`, `v100`.

    Raises:
        UserError: the topology does not exist; the nearest names are listed.
    """
    match = re.fullmatch(r"(?:(\d+)x)?([a-z0-9]+?)(?:-(\d+)|[:=](\d+(?:x\d+)*))?", name.strip().lower())
    family = _ALIASES.get(match[2], match[2]) if match else ""
    if match is None or family not in CHIPS:
        families = [*CHIPS, *_ALIASES]
        close = difflib.get_close_matches(re.split("[-:=]", name.lower())[0], families, n=3, cutoff=0.4)
        near = [f"{_ALIASES.get(found, found)}-{_usual(_ALIASES.get(found, found))}" for found in close]
        raise UserError(_no_such(name, dict.fromkeys(near or (f"{known}-{_usual(known)}" for known in CHIPS))))
    slices = int(match[1] or 1)
    if slices < 1:
        raise UserError(_no_such(name, [name.partition("x")[2]]))
    if family not in _TORI:
        count = int(match[3] or 1)
        if match[4] or slices != 1 or not 1 <= count <= _LARGEST_GPU_CLUSTER:
            raise UserError(_no_such(name, [f"{family}-1", f"{family}-8", f"{family}-64"]))
        return Topology(name, CHIPS[family], family, (), 1, count)
    torus = _torus(family, match[3], match[4], name)
    return Topology(name, CHIPS[family], family, torus, slices, slices * math.prod(torus))


def _torus(family: str, count: str | None, shape: str | None, name: str) -> tuple[int, ...]:
    tori, cores = _TORI[family], CORES_IN_NAME[family]
    if shape:
        torus = tuple(int(n) for n in shape.split("x"))
        whole = len(torus) == len(tori[4]) and math.prod(torus) <= max(tori)
        # A host has 2 x 2 chips; above one chip only whole hosts are available.
        hosts = math.prod(torus) == 1 or (min(torus) >= 1 and torus[0] % 2 == 0 and torus[1] % 2 == 0)
        if whole and hosts:
            return torus
        counts = sorted(tori, key=lambda n: abs(math.log(n / max(math.prod(torus), 1))))[:3]
        close = [tori[n] for n in sorted(counts)]
        raise UserError(_no_such(name, [f"{family}:{'x'.join(map(str, t))}" for t in close]))
    chips = int(count or cores) / cores
    if chips in tori:
        return tori[int(chips)]
    close_counts = sorted(tori, key=lambda n: abs(math.log(n / max(chips, 0.5))))[:3]
    raise UserError(_no_such(name, [f"{family}-{n * cores}" for n in sorted(close_counts)]))


def _usual(family: str) -> int:
    return 16 * CORES_IN_NAME[family] if family in _TORI else 8


def _no_such(name: str, near: Any) -> str:  # noqa: ANN401 - names in order
    return f"--topology={name} does not exist; nearest: {', '.join(near)}"


def compiler_devices(topology: Topology) -> tuple[list[jax.Device], str]:
    """Returns (the topology's devices for ahead-of-time compilation, "") or ([], why there is no compiler)."""
    return _tpu_devices(topology) if topology.torus else _gpu_devices(topology)


def _tpu_devices(topology: Topology) -> tuple[list[jax.Device], str]:
    # Without these variables libtpu searches for TPU hardware, and its lock admits one process only.
    quiet = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}
    for key, value in (quiet | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_LOG_DIR": "disabled"}).items():
        os.environ.setdefault(key, value)
    options: dict[str, Any] = {}
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    if topology.family == "v4":
        options["chip_config_name"] = "megacore"
    if math.prod(topology.torus) == 1:
        options["chips_per_host_bounds"] = [1, 1, 1]
    layout = f"{topology.family}:{'x'.join(map(str, topology.torus))}"
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=layout, **options).devices, ""
    # Without libtpu, JAX raises one of several exception types.
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        return [], f"no TPU compiler (pip install -e '.[tpu]'): {reason[:120]}"


# What XLA's GPU compiler needs to know: compute capability, processors, L2 bytes, clock in GHz, FP32 lanes and bytes
# of shared memory per processor. Sources: CUDA programming guide, table of compute capabilities; data sheets.
_GPU_TARGETS: dict[str, tuple[tuple[int, int], int, int, float, int, int]] = {
    "a100": ((8, 0), 108, 40 * 2**20, 1.41, 64, 164 * 1024),
    "h100": ((9, 0), 132, 50 * 2**20, 1.98, 128, 228 * 1024),
    "h200": ((9, 0), 132, 50 * 2**20, 1.98, 128, 228 * 1024),
    "b200": ((10, 0), 148, 126 * 2**20, 1.965, 128, 228 * 1024),
}


def _gpu_devices(topology: Topology) -> tuple[list[jax.Device], str]:
    if topology.family not in _GPU_TARGETS:
        return [], f"XLA no longer supports {topology.family}"
    (major, minor), processors, l2, clock, lanes, shared = _GPU_TARGETS[topology.family]
    chip = topology.chip
    target = f"""gpu_device_info {{
      threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
      shared_memory_per_core: {shared} shared_memory_per_block_optin: {shared - 1024} threads_per_core_limit: 2048
      core_count: {processors} fpus_per_core: {lanes} clock_rate_ghz: {clock} l2_cache_size: {l2}
      block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
      memory_bandwidth: {int(chip.hbm_bandwidth)} device_memory_size: {chip.hbm_bytes}
      cuda_compute_capability {{ major: {major} minor: {minor} }}
      registers_per_core_limit: 65536 registers_per_block_limit: 65536 }}
      platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} runtime_version {{ major: 13 }}
      device_description_str: "{chip.kind}" """
    hosts = -(-topology.chips // chip.group)
    shape = f"1x{hosts}x{min(topology.chips, chip.group)}"
    try:
        found = topologies.get_topology_desc(
            platform="cuda", topology_name=topology.family, target_config=target, topology=shape
        ).devices
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        return [], f"no GPU compiler (pip install --no-deps jax-cuda13-plugin jax-cuda13-pjrt): {reason[:120]}"
    return found[: topology.chips], ""
