"""Plans a config on a topology: memory, time and cost, from the compiled step if a compiler is available."""

import dataclasses
import math
from typing import NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from configs.errors import UserError
from model.adapt import adapt
from model.config import ModelConfig
from model.flops import active_parameters
from model.heads import parameter_count
from model.ring import is_ring
from model.sharding import ACTIVATION_RULES, MESH_AXES, AnyMesh
from train.distributed.mesh import check_batch, make_mesh, mesh_sizes
from train.planner.compiled import Compiled, compile_step
from train.planner.estimate import Work, estimate, layer_keys
from train.planner.hlo import Collective, by_kind
from train.planner.topology import Topology
from train.planner.trace import splits_experts, trace
from train.settings import Settings, planned_model
from train.step import Program, make_program, objective_of
from train.trees import boxed_params

_STATE = ("parameters", "frozen parameters", "averaged parameters", "optimizer state")
_USABLE = 0.94  # fraction of a GPU's memory; the runtime uses the rest


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a config needs on a topology; times are per step, bytes per chip.

    Attributes:
        topology: name of the topology.
        chips: number of chips.
        mesh: devices per axis.
        parameters: number of parameters, without those of an adapter.
        active_parameters: those that a token uses; fewer only in a model with experts.
        tokens_per_step: tokens in the global batch.
        context_attention: "ring" or "all_gather" over the `context` axis; "" without that axis.
        gathered_key_bytes: keys and values of a layer that an all-gather over that axis takes per device.
        buffers: {name: bytes}: state, gradients, activations.
        state_bytes_per_chip: parameters, frozen or not, and optimizer.
        peak_bytes_per_chip: reported by XLA, or estimated.
        hbm_bytes_per_chip: memory of the chip.
        fits: whether the step fits in the chip's memory.
        compiled: whether XLA compiled the step.
        refused: whether XLA ran out of memory; then, and without a compiler, the figures are estimates.
        note: why the step was not compiled.
        compile_seconds: compilation time including tracing; 0 for estimates.
        model_flops_per_step: forward and backward FLOPs without recomputation; attention within its causal window.
        compute_seconds: all FLOPs, recomputation included, at the chip's bfloat16 peak.
        memory_seconds: traffic at the memory's bandwidth.
        network_seconds: collectives at the links' bandwidth, none of it hidden behind compute.
        collectives: {kind: {"count", "bytes"}}, sent by each device per step.
        step_seconds: the longest of the three, or derived from `--tflops`.
        bound_by: which one: "compute", "memory", "network", or "--tflops".
        mfu: model FLOPs over peak FLOPs in `step_seconds`; an upper bound unless `--tflops` is given.
        tokens_per_second: throughput of the whole topology.
        tokens: training tokens of the budget.
        chip_hours: chip-hours of the budget.
        usd: cost of the budget; None without a price.
    """

    topology: str
    chips: int
    mesh: dict[str, int]
    parameters: int
    active_parameters: int
    tokens_per_step: int
    context_attention: str
    gathered_key_bytes: float
    buffers: dict[str, float]
    state_bytes_per_chip: float
    peak_bytes_per_chip: float
    hbm_bytes_per_chip: float
    fits: bool
    compiled: bool
    refused: bool
    note: str
    compile_seconds: float
    model_flops_per_step: float
    compute_seconds: float
    memory_seconds: float
    network_seconds: float
    collectives: dict[str, dict[str, float]]
    step_seconds: float
    bound_by: str
    mfu: float
    tokens_per_second: float
    tokens: float
    chip_hours: float
    usd: float | None


@dataclasses.dataclass(frozen=True)
class Budget:
    """Tokens (0: the config's), dollars per chip-hour (0: unknown), achieved TFLOP/s per chip (0: roofline)."""

    tokens: float = 0.0
    price: float = 0.0
    tflops: float = 0.0


def make_plan(settings: Settings, topology: Topology, devices: list[jax.Device], note: str) -> Plan:
    """Returns the `Plan` of a config, for its own number of steps and without a price.

    Args:
        settings: the config.
        topology: the topology.
        devices: its devices for the compiler; empty for an estimate.
        note: why there are no devices.

    Raises:
        UserError: the mesh does not fit the topology, the model or the batch; all errors are listed.
    """
    model = planned_model(settings)
    mesh: AnyMesh = make_mesh(settings.mesh, devices) if devices else abstract_mesh(settings, topology.devices)
    program = _program(settings, _on_chips(model, topology), mesh)
    traced = trace(settings, model, split_experts=splits_experts(model, dict(mesh.shape)))
    tokens_per_step = settings.batch_size * settings.sequence_length
    work = estimate(settings, model, traced, program.state, dict(mesh.shape), topology.chip)
    compiled = None
    if isinstance(mesh, Mesh):
        compiled = compile_step(program, mesh)
    demand = _demand(topology, work, compiled, tokens_per_step * traced.flops)
    plain = trace(settings, dataclasses.replace(model, remat="none"))
    model_flops, chip = tokens_per_step * plain.flops, topology.chip
    bound_by = max(demand.seconds, key=lambda name: demand.seconds[name])
    # Counted without the adaptation: a quantized array has fewer elements than the weights that it stands for.
    parameters = parameter_count(boxed_params(objective_of(settings, model)))
    gathered = layer_keys(settings, model, dict(mesh.shape))
    step_seconds = demand.seconds[bound_by]
    return Plan(
        topology=topology.name,
        chips=topology.chips,
        mesh=dict(mesh.shape),
        parameters=parameters,
        active_parameters=active_parameters(model, parameters),
        tokens_per_step=tokens_per_step,
        context_attention=_context_attention(model, gathered) if mesh.shape["context"] > 1 else "",
        gathered_key_bytes=gathered if mesh.shape["context"] > 1 else 0.0,
        buffers=demand.buffers,
        state_bytes_per_chip=sum(demand.buffers.get(name, 0.0) for name in _STATE),
        peak_bytes_per_chip=demand.peak,
        hbm_bytes_per_chip=chip.hbm_bytes,
        fits=demand.fits,
        compiled=compiled is not None,
        refused=compiled is not None and not compiled.fits,
        note=note,
        compile_seconds=compiled.seconds if compiled else 0.0,
        model_flops_per_step=model_flops,
        compute_seconds=demand.seconds["compute"],
        memory_seconds=demand.seconds["memory"],
        network_seconds=demand.seconds["network"],
        collectives=demand.collectives,
        step_seconds=step_seconds,
        bound_by=bound_by,
        mfu=model_flops / (topology.chips * chip.flops * step_seconds),
        tokens_per_second=tokens_per_step / step_seconds,
        tokens=float(settings.num_steps * tokens_per_step),
        chip_hours=settings.num_steps * step_seconds * topology.chips / 3600,
        usd=None,
    )


def _context_attention(model: ModelConfig, gathered: float) -> str:
    return "ring" if is_ring(model, gathered) else "all_gather"


def priced(plan: Plan, topology: Topology, budget: Budget) -> Plan:
    """Returns the plan with its time and cost for a budget."""
    step_seconds, bound_by, mfu = plan.step_seconds, plan.bound_by, plan.mfu
    if budget.tflops:
        # The usual convention: 6 FLOPs per parameter and token, without attention (arXiv:2001.08361, section 2.1).
        achieved = budget.tflops * 1e12
        step_seconds = 6 * plan.active_parameters * plan.tokens_per_step / (plan.chips * achieved)
        bound_by, mfu = "--tflops", achieved / topology.chip.flops
    tokens = budget.tokens or plan.tokens
    chip_hours = tokens / plan.tokens_per_step * step_seconds * plan.chips / 3600
    return dataclasses.replace(
        plan,
        step_seconds=step_seconds,
        bound_by=bound_by,
        mfu=mfu,
        tokens_per_second=plan.tokens_per_step / step_seconds,
        tokens=tokens,
        chip_hours=chip_hours,
        usd=chip_hours * budget.price if budget.price else None,
    )


def abstract_mesh(settings: Settings, num_devices: int) -> AbstractMesh:
    """Returns the mesh of a config as an `AbstractMesh`, which needs no devices."""
    sizes = mesh_sizes(settings.mesh, num_devices)
    return AbstractMesh(tuple(sizes.values()), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def usable_bytes(topology: Topology) -> float:
    """Returns the bytes of a chip that a program can use; a TPU's compiler itself rejects larger programs."""
    return topology.chip.hbm_bytes * (1.0 if topology.torus else _USABLE)


def roofline(topology: Topology, flops: float, traffic: float, link: float, network: float) -> dict[str, float]:
    """Returns the seconds per step that each resource needs at full utilization.

    Args:
        topology: the topology.
        flops: FLOPs executed by all chips.
        traffic: bytes to and from one device's memory.
        link: bytes that one device sends over fast links.
        network: bytes that one device sends over the data-center network; not counted if its bandwidth is unknown.
    """
    chip = topology.chip
    outside = network * chip.devices / chip.network_bandwidth if chip.network_bandwidth else 0.0
    return {
        "compute": flops / (topology.chips * chip.flops),
        "memory": traffic * chip.devices / chip.hbm_bandwidth,
        "network": link * chip.devices / chip.link_bandwidth + outside,
    }


def _on_chips(model: ModelConfig, topology: Topology) -> ModelConfig:
    """Returns the model as it is planned for chips that are not attached: in their dtype, for a GPU without cuDNN.

    Raises:
        UserError: its attention backend does not run on these chips.
    """
    allowed = ("auto", "xla", "splash" if topology.torus else "cudnn")
    if model.attention not in allowed:
        raise UserError(
            f"config.model.attention={model.attention!r}; expected one of {', '.join(allowed)} on {topology.name}"
        )
    # What "auto" is on every chip: a frozen base is kept in it, and its shapes are found out on this machine.
    dtype = "bfloat16" if model.compute_dtype == "auto" else model.compute_dtype
    attention = model.attention if topology.torus else "xla"
    return dataclasses.replace(model, attention=attention, compute_dtype=dtype)


def _program(settings: Settings, model: ModelConfig, mesh: AnyMesh) -> Program:
    errors = []
    program = None
    try:
        check_batch(settings, mesh)
    except UserError as error:
        errors.append(str(error))
    try:
        program = make_program(adapt(objective_of(settings, model), settings.adapt), settings, mesh)
    except UserError as error:
        errors.append(str(error))
    if program is None or errors:
        raise UserError("; ".join(errors))
    return program


class _Demand(NamedTuple):
    """What a step needs on one chip: bytes, seconds per resource, bytes sent by its devices."""

    buffers: dict[str, float]
    peak: float
    fits: bool
    seconds: dict[str, float]
    collectives: dict[str, dict[str, float]]


def _demand(topology: Topology, work: Work, compiled: Compiled | None, flops: float) -> _Demand:
    chip = topology.chip
    buffers = {name: size * chip.devices for name, size in work.buffers.items()}
    peak = (compiled.peak_bytes * chip.devices if compiled else 0.0) or sum(buffers.values())
    room = usable_bytes(topology)
    if compiled and compiled.fits:
        # For a GPU, attention is compiled without the flash kernel, whose traffic is much lower.
        traffic = compiled.traffic if topology.torus else work.traffic
        seconds = roofline(topology, flops, traffic, *_sent(compiled.collectives, topology))
        # State and gradients follow from shapes; the rest of the compiler's peak is activations and temporaries.
        known = {name: buffers[name] for name in (*_STATE, "gradients") if name in buffers}
        buffers = known | {"activations and temporaries": max(peak - sum(known.values()), 0.0)}
        return _Demand(buffers, peak, peak <= room, seconds, by_kind(compiled.collectives))
    seconds = roofline(topology, flops, work.traffic, work.link_bytes, work.network_bytes)
    sent = {kind: {"count": count, "bytes": size} for kind, (count, size) in sorted(work.collectives.items())}
    return _Demand(buffers, peak, peak <= room and compiled is None, seconds, sent)


def _sent(collectives: tuple[Collective, ...], topology: Topology) -> tuple[float, float]:
    """Returns the bytes that a device sends per step (over fast links, over the data-center network)."""
    inside = topology.chip.group or topology.devices // topology.slices
    link = network = 0.0
    for one in collectives:
        homes = [device // inside for device in one.group]
        if one.host:
            network += one.bytes
        elif len(set(homes)) == 1:
            link += one.bytes
        else:
            # The devices of one machine split what leaves it, and redistribute it inside.
            network += one.bytes / homes.count(homes[0])
            link += one.bytes
    return link, network


def advice(plan: Plan, settings: Settings, topology: Topology) -> str:
    """Returns a one-line error for a plan that does not fit: the three largest buffers and what to change."""
    room = usable_bytes(topology)
    largest = sorted(plan.buffers.items(), key=lambda item: -item[1])[:3]
    shown = ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in largest)
    change = []
    if largest[0][0] in (*_STATE, "gradients") or plan.state_bytes_per_chip > room:
        # Also where the state alone would fit, what the step adds does not.
        need = max(2, math.ceil(plan.state_bytes_per_chip / (0.7 * room)))
        axes = f"config.mesh.{'expert, ' if settings.model['num_experts'] else ''}fsdp or tensor"
        change.append(f"split the state over {need} times as many chips ({axes})")
    rows = settings.batch_size // settings.microbatches
    ways = math.prod(plan.mesh[axis] for axis in ACTIVATION_RULES["batch"])
    if settings.model["remat"] not in ("full", "offload"):
        change.append("--config.model.remat=full")
    if rows > ways:
        change.append(f"--config.microbatches={settings.batch_size // ways}")
    if not settings.loss.chunk:
        change.append("--config.loss.chunk=256")
    return (
        f"{plan.peak_bytes_per_chip / 1e9:.1f} GB per chip do not fit in the usable {room / 1e9:.1f} GB "
        f"of {plan.topology}; "
        f"largest: {shown}; change: {', or '.join(change or ['a larger topology'])}; or use --search to find a layout"
    )
