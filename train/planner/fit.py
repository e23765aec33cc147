"""Finds the cheapest changes with which a config fits a topology's memory; compiles what it recommends.

Remat, loss chunk, microbatches and mesh do not change what is trained, so all of their combinations come before the
first one that also stores moments in a smaller form. Batch and model stay as they are.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax

from configs.errors import UserError
from model.adapt import adapt
from model.transformer import REMAT_POLICIES
from train.distributed.mesh import check_batch, layouts, mesh_sizes
from train.planner.estimate import estimate
from train.planner.pricing import Plan, abstract_mesh, make_plan, roofline, usable_bytes
from train.planner.topology import Topology
from train.planner.trace import Trace, splits_experts, trace
from train.settings import MeshSettings, Settings, planned_model
from train.step import make_program, objective_of

# Tokens of a row whose logits exist at once.
_CHUNK = 256
# Of the estimate: a candidate must be smaller by this much than every cheaper one to be worth compiling.
_LEAST_SAVING = 0.02
# (first moment, second moment), from the most bytes to the fewest; docs/planning.md has their measured effect on the
# loss. Muon's matrices have no second moment, so only the first of each pair is used there.
_MOMENTS = (("bfloat16", "float32"), ("float32", "factored"), ("int8", "factored"))

Progress = Callable[[str, int, int | None], None]
# {(remat policy, whether experts are split): cost per token}
Traces = dict[tuple[str, bool], Trace]


class Choice(NamedTuple):
    """One set of changes to the config.

    Attributes:
        settings: the changed config.
        flags: the changes as command-line flags; empty: the config as it is.
        lossy: the changes that also change what is trained.
        cost: sort key, the estimated seconds per step first.
        estimated_bytes: estimated peak memory per chip.
    """

    settings: Settings
    flags: tuple[str, ...]
    lossy: tuple[str, ...]
    cost: tuple[float, ...]
    estimated_bytes: float


class Tried(NamedTuple):
    """A choice and its compiled plan."""

    choice: Choice
    plan: Plan


def fit(
    settings: Settings, topology: Topology, devices: list[jax.Device], note: str, progress: Progress
) -> list[Tried]:
    """Returns what was compiled, in order; the last one fits, or none does.

    The config itself comes first. Then, for each way to store moments, the choices are sorted by their estimated time;
    those that save no memory over a cheaper one are left out. The compiler decides from where the estimate starts: it
    goes to more expensive choices until one fits, or to cheaper ones until one does not fit.

    Args:
        settings: the config.
        topology: the topology.
        devices: devices for the compiler.
        note: why there are no devices.
        progress: called with (stage, done, total).

    Raises:
        UserError: there is no compiler for the topology, or no mesh of it divides the model and the batch.
    """
    if not devices:
        raise UserError(f"--fit compiles what it recommends; {note}")
    tried: list[Tried] = []

    def fits(choice: Choice) -> bool:
        progress("plan: compiling", len(tried), None)
        tried.append(Tried(choice, make_plan(choice.settings, topology, devices, note)))
        return tried[-1].plan.fits

    invalid = None
    try:
        if fits(Choice(settings, (), (), (), 0.0)):
            return tried
    except UserError as error:
        # Its mesh is not one of this topology; the search finds those that are.
        invalid = error
    # Moments do not change what is computed per token.
    traces: Traces = {}
    for moments in _ways_to_store(settings):
        candidates = _frontier(_choices(settings, topology, moments, traces, progress))
        found = _cheapest(candidates, fits, usable_bytes(topology))
        if found is not None:
            # Last, even if cheaper ones were tried after it.
            return sorted(tried, key=lambda one: one.choice is found)
    if invalid is not None and not tried:
        raise invalid
    return tried


def nearest(tried: Sequence[Tried]) -> Tried:
    """Returns the choice with the least memory."""
    return min(tried, key=lambda one: one.plan.peak_bytes_per_chip)


def _cheapest(candidates: list[Choice], fits: Callable[[Choice], bool], room: float) -> Choice | None:
    """Returns the first of `candidates`, cheapest first and each smaller than the one before, that fits; or None."""
    if not candidates:
        return None
    last = len(candidates) - 1
    index = next((i for i, choice in enumerate(candidates) if choice.estimated_bytes <= room), last)
    if fits(candidates[index]):
        while index and fits(candidates[index - 1]):
            index -= 1
        return candidates[index]
    return next((choice for choice in candidates[index + 1 :] if fits(choice)), None)


def _frontier(choices: Iterator[Choice]) -> list[Choice]:
    """Returns the choices that need less memory than every cheaper one, cheapest first."""
    kept: list[Choice] = []
    for choice in sorted(choices, key=lambda choice: choice.cost):
        if not kept or choice.estimated_bytes < (1 - _LEAST_SAVING) * kept[-1].estimated_bytes:
            kept.append(choice)
    return kept


def _ways_to_store(settings: Settings) -> Iterator[dict[str, str]]:
    """Yields changes of `config.optimizer`: none, and then those that make the moments smaller."""
    yield {}
    given = settings.optimizer
    seen: set[tuple[str, str]] = {(given.first_moment, given.second_moment)}
    for first, second in _MOMENTS:
        pair = (first, given.second_moment if given.name == "muon" else second)
        if pair not in seen and (given.first_moment, given.second_moment) == ("float32", "float32"):
            seen.add(pair)
            names = ("first_moment", "second_moment")
            yield {name: form for name, form in zip(names, pair, strict=True) if form != "float32"}


def _choices(
    settings: Settings, topology: Topology, moments: dict[str, str], traces: Traces, progress: Progress
) -> Iterator[Choice]:
    """Yields every choice of mesh, remat, loss chunk and microbatches that divides the model and the batch."""
    settings = dataclasses.replace(settings, optimizer=dataclasses.replace(settings.optimizer, **moments))  # type: ignore[arg-type]
    remats = [policy for policy in REMAT_POLICIES if topology.torus or policy != "offload"]
    models = {remat: planned_model(_with(settings, remat=remat)) for remat in remats}
    experts = settings.model["num_experts"] > 0
    meshes = [mesh for mesh in layouts(topology.devices, experts) if mesh.slice == topology.slices]
    for number, mesh in enumerate(meshes):
        progress("plan: laying out", number, len(meshes))
        laid_out = dataclasses.replace(settings, mesh=mesh, microbatches=1)
        sizes = abstract_mesh(laid_out, topology.devices)
        try:
            objective = adapt(objective_of(laid_out, models["none"]), laid_out.adapt)
            state = make_program(objective, laid_out, sizes).state
        except UserError:
            continue
        for remat, chunk, parts in itertools.product(remats, _chunks(settings), _microbatches(settings)):
            changed = _with(laid_out, remat=remat, chunk=chunk, microbatches=parts)
            try:
                check_batch(changed, sizes)
            except UserError:
                continue
            model, axes = models[remat], dict(sizes.shape)
            key = remat, splits_experts(model, axes)
            if key not in traces:
                traces[key] = trace(settings, model, key[1])
            work = estimate(changed, model, traces[key], state, axes, topology.chip)
            flops = settings.batch_size * settings.sequence_length * traces[key].flops
            seconds = roofline(topology, flops, work.traffic, work.link_bytes, work.network_bytes)
            flags = tuple(_flags(settings, changed, topology))
            # Offloading comes last, because its transfers to host memory are not counted.
            cost = (remat == "offload", float(f"{max(seconds.values()):.3g}"), seconds["memory"] + seconds["network"])
            lossy = tuple(f"--config.optimizer.{name}={value}" for name, value in moments.items())
            peak = sum(work.buffers.values()) * topology.chip.devices
            yield Choice(changed, (*flags, *lossy), lossy, (*cost, len(flags), peak), peak)


def _chunks(settings: Settings) -> list[int]:
    """Returns the config's loss chunk, and a small one if that computes more logits at a time."""
    given, length = settings.loss.chunk, settings.sequence_length
    smaller = (given or length) > _CHUNK and length % _CHUNK == 0
    return [given, *([_CHUNK] if smaller else [])]


def _microbatches(settings: Settings) -> list[int]:
    """Returns the numbers of microbatches that divide the batch, from the config's on."""
    count = settings.batch_size
    return [parts for parts in range(settings.microbatches, count + 1) if count % parts == 0]


def _with(settings: Settings, remat: str, chunk: int | None = None, microbatches: int | None = None) -> Settings:
    return dataclasses.replace(
        settings,
        model=settings.model | {"remat": remat},
        loss=settings.loss if chunk is None else dataclasses.replace(settings.loss, chunk=chunk),
        microbatches=settings.microbatches if microbatches is None else microbatches,
    )


def _flags(before: Settings, after: Settings, topology: Topology) -> Iterator[str]:
    """Yields the flags that change `before` to `after`, moments aside; those of the mesh if it is another one."""
    if _sizes(before.mesh, topology) != _sizes(after.mesh, topology):
        yield from (f"--config.mesh.{axis}={size}" for axis, size in dataclasses.asdict(after.mesh).items())
    if before.model["remat"] != after.model["remat"]:
        yield f"--config.model.remat={after.model['remat']}"
    if before.loss.chunk != after.loss.chunk:
        yield f"--config.loss.chunk={after.loss.chunk}"
    if before.microbatches != after.microbatches:
        yield f"--config.microbatches={after.microbatches}"


def _sizes(mesh: MeshSettings, topology: Topology) -> dict[str, int]:
    """Returns {axis: devices}; {} for a mesh that this topology does not have."""
    try:
        return mesh_sizes(mesh, topology.devices)
    except UserError:
        return {}
