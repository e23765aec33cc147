"""Searches meshes, remat policies and batch sizes of a topology: ranks all by estimates, then compiles the best."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax

from configs.errors import UserError
from model.adapt import adapt
from model.transformer import REMAT_POLICIES
from train.distributed.mesh import check_batch, layouts
from train.planner.estimate import estimate
from train.planner.pricing import Plan, abstract_mesh, make_plan, roofline, usable_bytes
from train.planner.topology import Topology
from train.planner.trace import trace
from train.settings import Settings, planned_model
from train.step import make_program, objective_of

_ROWS = (1, 2, 4, 8, 16)  # rows per chip
_COMPILED = 4  # candidates to compile if one of them fits
_TRIED = 12  # candidates to compile at most

Progress = Callable[[str, int, int | None], None]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One layout of the config.

    Attributes:
        settings: the changed config.
        tokens_per_second: roofline throughput.
        idle: seconds per token that memory and network would take without overlap.
        peak_bytes: peak memory per chip.
        fits: whether it fits in the chip's memory.
        plan: the plan from the compiler; None if it was not compiled.
    """

    settings: Settings
    tokens_per_second: float
    idle: float
    peak_bytes: float
    fits: bool
    plan: Plan | None

    @property
    def flags(self) -> str:
        """The command-line flags that produce this config."""
        mesh = dataclasses.asdict(self.settings.mesh)
        flags = [f"--config.mesh.{axis}={size}" for axis, size in mesh.items()]
        flags += [f"--config.model.remat={self.settings.model['remat']}"]
        flags += [f"--config.batch_size={self.settings.batch_size}", "--config.microbatches=1"]
        return " ".join(flags)


def search(
    settings: Settings, topology: Topology, devices: list[jax.Device], note: str, progress: Progress
) -> list[Candidate]:
    """Returns all candidates: those that fit first, fastest first; the first one is the recommendation.

    Args:
        settings: the config; its mesh, remat, batch size and microbatches are replaced.
        topology: the topology.
        devices: devices for the compiler; empty: rank by estimates only.
        note: why there are no devices.
        progress: called with (stage, done, total).

    Raises:
        UserError: no mesh of the topology divides the model.
    """
    ranked = sorted(_candidates(settings, topology, progress), key=_rank)
    if not ranked:
        raise UserError(f"no mesh of {topology.name} divides this model and rows of {settings.sequence_length} tokens")
    best = 0.0
    for number, candidate in enumerate(ranked[:_TRIED] if devices else ()):
        if best >= candidate.tokens_per_second or (best and number >= _COMPILED):
            break
        progress("plan: compiling", number, None)
        plan = make_plan(candidate.settings, topology, devices, note)
        ranked[number] = dataclasses.replace(
            candidate,
            tokens_per_second=plan.tokens_per_second,
            peak_bytes=plan.peak_bytes_per_chip,
            fits=plan.fits,
            plan=plan,
        )
        best = max(best, plan.tokens_per_second if plan.fits else 0.0)
    # Compiled candidates come before estimated ones.
    return sorted(ranked, key=lambda c: (not c.fits, c.plan is None, -c.tokens_per_second if c.plan else 0.0))


def _rank(candidate: Candidate) -> tuple[Any, ...]:
    """Sort key: fitting first, then speed to three digits, then time for memory and network.

    Offloading comes last, because its transfers to host memory are not counted.
    """
    speed = float(f"{candidate.tokens_per_second:.3g}")
    offload = candidate.settings.model["remat"] == "offload"
    return not candidate.fits, offload, -speed, candidate.idle, candidate.peak_bytes, candidate.flags


def _candidates(settings: Settings, topology: Topology, progress: Progress) -> Iterator[Candidate]:
    remats = [policy for policy in REMAT_POLICIES if topology.torus or policy != "offload"]
    models = {remat: planned_model(_with_remat(settings, remat)) for remat in remats}
    experts = settings.model["num_experts"] > 0
    meshes = [mesh for mesh in layouts(topology.devices, experts) if mesh.slice == topology.slices]
    splits = {mesh.expert > 1 for mesh in meshes}
    traces = {(remat, split): trace(settings, models[remat], split) for remat in remats for split in splits}
    for number, mesh in enumerate(meshes):
        progress("plan: laying out", number, len(meshes))
        ways = mesh.slice * mesh.data * mesh.expert * mesh.fsdp
        laid_out = dataclasses.replace(settings, mesh=mesh, microbatches=1, batch_size=ways)
        sizes = abstract_mesh(laid_out, topology.devices)
        try:
            check_batch(laid_out, sizes)
            objective = adapt(objective_of(laid_out, models["none"]), laid_out.adapt)
            state = make_program(objective, laid_out, sizes).state
        except UserError:
            continue
        for remat, rows in itertools.product(remats, _ROWS):
            changed = dataclasses.replace(_with_remat(laid_out, remat), batch_size=ways * rows)
            traced = traces[remat, mesh.expert > 1]
            work = estimate(changed, models[remat], traced, state, dict(sizes.shape), topology.chip)
            tokens = changed.batch_size * changed.sequence_length
            sent = (work.link_bytes, work.network_bytes)
            seconds = roofline(topology, tokens * traced.flops, work.traffic, *sent)
            idle = (seconds["memory"] + seconds["network"]) / tokens
            peak = sum(work.buffers.values()) * topology.chip.devices
            fits = peak <= usable_bytes(topology)
            yield Candidate(changed, tokens / max(seconds.values()), idle, peak, fits, plan=None)


def _with_remat(settings: Settings, policy: str) -> Settings:
    return dataclasses.replace(settings, model=settings.model | {"remat": policy})
