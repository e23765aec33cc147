"""The device mesh of a run: building it from `config.mesh` and checking what it must divide."""

import contextlib
import dataclasses
import itertools
import math
import os

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from configs.errors import UserError
from model.dtypes import platform_of
from model.sharding import ACTIVATION_RULES, MESH_AXES, AnyMesh, parameter_shardings
from model.transformer import Params
from train.settings import MeshSettings, Settings


def mesh_sizes(settings: MeshSettings, num_devices: int) -> dict[str, int]:
    """Returns {axis: devices} in the order of `MESH_AXES`, -1 filled in.

    Raises:
        UserError: a size is invalid, or the product is not the number of devices; names the nearest sizes that fit.
    """
    sizes = dataclasses.asdict(settings)
    errors = [
        f"config.mesh.{axis}={size} must be -1 or at least 1" for axis, size in sizes.items() if size < -1 or not size
    ]
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        errors.append(f"config.mesh has -1 for {' and '.join(open_axes)}; only one axis may be -1")
    if errors:
        raise UserError("; ".join(errors))
    fixed = math.prod(size for size in sizes.values() if size > 0)
    if open_axes and num_devices % fixed == 0:
        sizes[open_axes[0]] = num_devices // fixed
    if math.prod(sizes.values()) != num_devices:
        found = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
        raise UserError(
            f"config.mesh ({found}) does not fit {num_devices} device(s): the product of its axes must "
            f"{'divide' if open_axes else 'equal'} {num_devices}; use {_nearest_mesh(sizes, num_devices)}"
        )
    return {axis: sizes[axis] for axis in MESH_AXES}


def _nearest_mesh(sizes: dict[str, int], num_devices: int) -> str:
    """Returns the changes of one axis that make the product fit, or a mesh that always fits."""
    fitting = []
    for axis, size in sizes.items():
        others = math.prod(s for a, s in sizes.items() if a != axis and s > 0)
        if size != -1 and num_devices % others == 0 and num_devices // others != size:
            fitting.append(f"config.mesh.{axis}={num_devices // others}")
    return " or ".join(fitting) or f"config.mesh.fsdp={num_devices} and 1 at every other axis"


def make_mesh(settings: MeshSettings, devices: list[jax.Device] | None = None) -> Mesh:
    """Returns a mesh of Auto axes over all devices, with -1 filled in.

    With several TPU slices, the `slice` axis spans the slow network between slices and the other axes span the fast
    links within each; elsewhere (GPUs, CPUs) the outermost axes span the hosts.

    Raises:
        UserError: see `mesh_sizes`; or `config.mesh.slice` is not a multiple of the number of slices.
    """
    devices = devices or jax.devices()
    sizes = mesh_sizes(settings, len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1 and sizes["slice"] % slices:
        raise UserError(
            f"config.mesh.slice={sizes['slice']} must be {slices}, the number of slices that the devices form"
        )
    shape = tuple(sizes.values())
    if slices > 1:
        inside = (shape[0] // slices, *shape[1:])
        array = mesh_utils.create_hybrid_device_mesh(
            inside, (slices, *(1 for _ in inside[1:])), devices, allow_split_physical_axes=True
        )
    else:
        array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(array, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def layouts(num_devices: int, experts: bool = False) -> list[MeshSettings]:
    """Returns every mesh of `num_devices` devices; those with an axis for experts only if the model has `experts`."""
    divisors = [n for n in range(1, num_devices + 1) if num_devices % n == 0]
    meshes = (dict(zip(MESH_AXES, sizes, strict=True)) for sizes in itertools.product(divisors, repeat=len(MESH_AXES)))
    return [
        MeshSettings(**mesh)
        for mesh in meshes
        if math.prod(mesh.values()) == num_devices and (experts or mesh["expert"] == 1)
    ]


def apply_xla_flags(settings: Settings) -> None:
    """Adds `config.xla_flags` to XLA_FLAGS; must run before JAX touches a device."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {settings.xla_flags}".strip()


def compiler_options(mesh: AnyMesh) -> dict[str, str]:
    """Returns XLA's options for a train step on `mesh`.

    On a CPU, XLA orders operations so that many of them can run at once. A train step's products use all cores anyway,
    and the other order needs less memory and time (docs/benchmarks.md).
    """
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"} if platform_of(mesh) == "cpu" else {}


def check_batch(settings: Settings, mesh: AnyMesh) -> None:
    """Raises UserError naming each size of the batch that the mesh does not divide, and the nearest that it does."""
    rows = settings.batch_size // settings.microbatches
    errors = [
        _indivisible(name, size, {a: mesh.shape[a] for a in axes})
        for name, size, axes in (
            ("config.batch_size / config.microbatches", rows, ACTIVATION_RULES["batch"]),
            ("config.sequence_length", settings.sequence_length, ACTIVATION_RULES["length"]),
        )
    ]
    halves = 2 * mesh.shape["context"]
    if mesh.shape["context"] > 1 and not errors[-1] and settings.sequence_length % halves:
        low, high = settings.sequence_length // halves * halves, -(-settings.sequence_length // halves) * halves
        near = f"{low} or {high}" if low else f"{high}"
        errors.append(
            f"config.sequence_length={settings.sequence_length} must be divisible by 2 x config.mesh.context = "
            f"{halves}, because each device has a front and a back part of a row; use {near}"
        )
    tokens, chunk = settings.sequence_length // mesh.shape["context"], settings.loss.chunk
    if 0 < chunk < tokens and tokens % chunk:
        errors.append(
            f"config.loss.chunk={chunk} must divide {tokens}, the tokens of a row on each device "
            "(config.sequence_length / config.mesh.context)"
        )
    if any(errors):
        raise UserError("; ".join(error for error in errors if error))


def check_host_memory(settings: Settings, mesh: Mesh) -> None:
    """Raises UserError if `config.model.remat` is "offload" and the devices have no pinned host memory."""
    kinds = sorted(memory.kind for memory in mesh.local_devices[0].addressable_memories())
    if settings.model["remat"] == "offload" and "pinned_host" not in kinds:
        raise UserError(
            f"config.model.remat='offload' needs pinned host memory, but the devices have only {kinds}; "
            "use 'full', 'dots' or 'none'"
        )


def _indivisible(name: str, size: int, axes: dict[str, int]) -> str:
    parts = math.prod(axes.values())
    if size % parts == 0:
        return ""
    product = " x ".join(f"config.mesh.{axis}" for axis, devices in axes.items() if devices > 1)
    low, high = size // parts * parts, -(-size // parts) * parts
    near = f"{low} or {high}" if low else f"{high}"
    return f"{name}={size} must be divisible by {product} = {parts}; use {near}"


def single_device_mesh() -> Mesh:
    """Returns a mesh of the first device only, for commands that do not train."""
    return make_mesh(MeshSettings(slice=1, data=1, expert=1, fsdp=1, tensor=1, context=1), jax.devices()[:1])


def spread_mesh(boxed: Params) -> Mesh:
    """Returns a mesh that shards rows and parameters over all devices, or the first device only if that is impossible.

    Raises:
        UserError: the parameters cannot be sharded, and there are several processes.
    """
    slices = len({getattr(device, "slice_index", 0) for device in jax.devices()})
    mesh = make_mesh(MeshSettings(slice=slices, data=1, expert=1, fsdp=-1, tensor=1, context=1))
    try:
        parameter_shardings(boxed, mesh)
    except UserError:
        if jax.process_count() > 1:
            raise
        return single_device_mesh()
    return mesh


def decoding_mesh(boxed: Params) -> Mesh:
    """Returns a mesh for generation: each step reads all parameters, so matrices are split over many devices.

    The data axis takes the remaining devices: they hold copies, for more texts at once.
    """
    count = jax.device_count()
    for tensor in (size for size in range(count, 0, -1) if count % size == 0):
        mesh = make_mesh(MeshSettings(slice=1, data=-1, expert=1, fsdp=1, tensor=tensor, context=1))
        with contextlib.suppress(UserError):
            parameter_shardings(boxed, mesh)
            return mesh
    return single_device_mesh()
