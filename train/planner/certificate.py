"""Checks that a training step gives the same numbers on every mesh: a shrunk config runs on several devices and on one.

The comparison is stricter than training: no parameter starts at zero, Adam's epsilon is so large that a wrong factor in
a gradient does not cancel, and the single device processes the batch without gradient accumulation. A layout with a
`context` axis trains twice, by a ring and by an all-gather, unless the config names one of them.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from data.packing import PackedRows
from data.store import store_from_documents
from model.config import model_config
from model.heads import Objective
from model.sharding import MESH_AXES
from model.transformer import Params
from train.distributed.mesh import make_mesh
from train.distributed.placement import put_batch
from train.settings import MeshSettings, Settings
from train.step import make_program, objective_of
from train.trees import leaf_paths

TOLERANCE = 1e-5
# Of a gradient: a term that is missing or counted twice is far above it, and rounding errors of six steps below.
GRADIENT_TOLERANCE = 1e-4
_STEPS = 3
_UNEVEN_STEPS = 3  # with experts: see `uneven_batches`
_MOST_DEVICES = 8  # over which the smaller model can be laid
_EXPERTS = 2 * _MOST_DEVICES  # two per device on the longest axis
_LENGTH = 32  # tokens per row
_HEAD_DIM = 4
# Adam normalizes gradients. With the usual epsilon a wrong factor would cancel, and rounding errors of gradients near
# zero would become full steps; with an epsilon larger than most gradients an update is nearly linear.
_EPSILON = 1e-2
_LEARNING_RATE = 0.01  # changes parameters by about one percent per step

Part = tuple[tuple[slice, ...], np.ndarray]


class Verdict(NamedTuple):
    """The largest relative differences between a layout and one device, over all steps.

    Attributes:
        layout: devices per mesh axis.
        loss: difference of the loss.
        grad_norm: difference of the gradient norm.
        params: difference of an initial or updated parameter: max |a - b| of a leaf over its max |a|, for all replicas.
        gradient: difference of the moving mean of a gradient, likewise; a leaf whose gradient is less than a hundredth
            of the largest one counts relative to that hundredth, because its own may be zero but for rounding.
        leaf: the parameter that differs most, at the first step out of tolerance if there is one. If that is step 1 and
            the gradient norm differs, it is the parameter with the largest difference of the gradient: clipping spreads
            a wrong gradient over all parameters, and Muon hides it in its own.
        mismatch: what is out of tolerance and at which step; empty if everything agrees.
    """

    layout: MeshSettings
    loss: float
    grad_norm: float
    params: float
    gradient: float
    leaf: str
    mismatch: str


class _Snapshot(NamedTuple):
    """The state after a step: metrics (1 before step 1) and each device's shards of parameters and first moments.

    After one step a first moment is the gradient times a factor that does not depend on the mesh.
    """

    loss: float
    grad_norm: float
    params: dict[str, list[Part]]
    moments: dict[str, list[Part]]


def layout_name(layout: MeshSettings) -> str:
    """Returns e.g. "data 2 x fsdp 4"."""
    return " x ".join(f"{axis} {size}" for axis, size in dataclasses.asdict(layout).items() if size > 1) or "one device"


def shrink(settings: Settings) -> Settings:
    """Returns the config at sizes that train in seconds on a CPU, with almost all options unchanged.

    Moments in 8 bits become float32: a rounding error far below any tolerance can move a code to the next one, which is
    a percent away. Lengths in tokens scale with the rows; heads keep their ratio to kv heads; scans over chunks, layers
    or microbatches remain scans; dense layers and layers with experts keep their pattern. Computation is float32 with
    XLA attention, which is available on every platform.
    """
    model, batch = settings.model, min(settings.microbatches, 2) * _MOST_DEVICES
    first, second = settings.optimizer.first_moment, settings.optimizer.second_moment
    scale = _LENGTH / max(model["context_length"], settings.sequence_length)
    head_dim = model["head_dim"] or model["embed_dim"] // model["num_heads"]
    # Half of a head that is rotated in part, so that pairs of columns remain.
    fraction, width = (1.0, _HEAD_DIM) if model["rope_fraction"] == 1.0 else (0.5, 2 * _HEAD_DIM)
    period = math.lcm(len(model["sliding_window"]), len(model["rope_layers"]))
    experts = _shrunk_experts(model)
    if experts:
        period = max(period, experts["dense_layers"] + model["expert_every"])
    shrunk = experts | {
        "vocab_size": 64,
        "embed_dim": 32,
        "num_layers": min(model["num_layers"], max(2, period)),
        "num_heads": _MOST_DEVICES * (model["num_heads"] // model["num_kv_heads"]),
        "num_kv_heads": _MOST_DEVICES,
        "head_dim": width,
        "mlp_dim": 64,
        "context_length": _LENGTH,
        "rope_original_context": max(round(model["rope_original_context"] * scale), 1),
        "rope_fraction": fraction,
        "rope_short_factors": model["rope_short_factors"][: _HEAD_DIM // 2],
        "rope_long_factors": model["rope_long_factors"][: _HEAD_DIM // 2],
        "query_scale": model["query_scale"] * (head_dim / width) ** 0.5,
        "sliding_window": tuple(window and max(round(window * scale), 2) for window in model["sliding_window"]),
        "compute_dtype": "float32",
        "attention": "xla",
    }
    return dataclasses.replace(
        settings,
        model=model | shrunk,
        batch_size=batch,
        sequence_length=_LENGTH,
        num_steps=_STEPS + (_UNEVEN_STEPS if experts else 0),
        microbatches=min(settings.microbatches, 2),
        loss=dataclasses.replace(settings.loss, chunk=settings.loss.chunk and _LENGTH // 4),
        optimizer=dataclasses.replace(
            settings.optimizer,
            learning_rate=_LEARNING_RATE,
            muon_learning_rate=_LEARNING_RATE,
            epsilon=_EPSILON,
            first_moment="float32" if first == "int8" else first,
            second_moment="float32" if second == "int8" else second,
            warmup_steps=min(settings.optimizer.warmup_steps, 1),
        ),
    )


def _shrunk_experts(model: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of experts at small sizes; {} in a model without experts."""
    if not model["num_experts"]:
        return {}
    return {
        "num_experts": _EXPERTS,
        "experts_per_token": min(model["experts_per_token"], _EXPERTS // 4),
        "expert_dim": min(model["expert_dim"], 16),
        "shared_expert_dim": min(model["shared_expert_dim"], 16),
        "dense_layers": min(model["dense_layers"], 1),
    }


def make_batches(settings: Settings) -> list[dict[str, np.ndarray]]:
    """Returns one batch per step, the last ones uneven for experts if the model has any."""
    batches = packed_batches(settings)
    return uneven_batches(batches) if settings.model["num_experts"] else batches


def uneven_batches(batches: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Returns the batches with the last three replaced by some that load experts as unevenly as possible.

    In the first, all tokens are the same and so choose the same experts; the second has two tokens, too few for every
    expert to get one; the third is padding.
    """
    usual = batches[:-_UNEVEN_STEPS]
    same, few, padding = ({key: x.copy() for key, x in batch.items()} for batch in batches[-_UNEVEN_STEPS:])
    same["tokens"][:], same["segment_ids"][:], same["weights"][:] = 7, 1, 1
    row_T = np.arange(len(same["tokens"][0]), dtype=np.int32)
    same["positions"][:] = row_T
    for batch, rows, tokens in ((few, 1, 2), (padding, 0, 0)):
        for key, value_T in (("segment_ids", row_T < tokens), ("weights", row_T < tokens), ("positions", row_T)):
            batch[key][:] = 0
            batch[key][:rows, :tokens] = value_T[:tokens]
    return [*usual, same, few, padding]


def packed_batches(settings: Settings) -> list[dict[str, np.ndarray]]:
    """Returns one batch per step: several documents per row, ragged padding, and weights of 0, 1/2 and 1."""
    rng = np.random.default_rng(settings.seed)
    count, T = settings.batch_size * settings.num_steps, settings.sequence_length
    lengths = rng.integers(2, T, 4 * count)
    store = store_from_documents([rng.integers(0, settings.model["vocab_size"], n).tolist() for n in lengths])
    rows = PackedRows(store, T).rows(np.arange(count))
    real = np.arange(T) < rng.integers(0, T + 1, count)[:, None]
    for key in ("segment_ids", "positions", "weights"):
        rows[key] *= real.astype(rows[key].dtype)
    rows["weights"] *= rng.choice(np.array([0, 0.5, 1], np.float32), rows["weights"].shape)
    return [{k: x[t :: settings.num_steps] for k, x in rows.items()} for t in range(settings.num_steps)]


def verdicts(settings: Settings, meshes: list[MeshSettings], devices: list[jax.Device]) -> Iterator[Verdict]:
    """Yields the `Verdict` of each mesh over all `devices`, against the first device alone.

    Args:
        settings: from `shrink`.
        meshes: from `layouts`.
        devices: as many as each mesh needs.
    """
    batches = make_batches(settings)
    alone = MeshSettings(**dict.fromkeys(MESH_AXES, 1))
    reference = _train(dataclasses.replace(settings, microbatches=1), alone, devices[:1], batches)
    for layout in meshes:
        named = settings.model["context_attention"]
        ways = ("ring", "all_gather") if layout.context > 1 and named == "auto" else (named,)
        yield _worst(
            [
                _compare(layout, reference, _train(_with_context_attention(settings, way), layout, devices, batches))
                for way in ways
            ]
        )


def _with_context_attention(settings: Settings, way: str) -> Settings:
    return dataclasses.replace(settings, model=settings.model | {"context_attention": way})


def _worst(found: list[Verdict]) -> Verdict:
    """Returns the largest differences of runs of one layout, and the leaf of the run that is furthest off."""
    first = max(found, key=lambda verdict: (verdict.mismatch != "", verdict.params))
    names = ("loss", "grad_norm", "params", "gradient")
    return first._replace(**{name: max(getattr(verdict, name) for verdict in found) for name in names})


def _train(
    settings: Settings, layout: MeshSettings, devices: list[jax.Device], batches: list[dict[str, np.ndarray]]
) -> list[_Snapshot]:
    """Returns a snapshot of the initial state and one after each step."""
    mesh = make_mesh(layout, devices)
    program = make_program(objective_with_noise(settings), settings, mesh)
    with jax.set_mesh(mesh):
        state = program.initialize(jax.random.key_data(jax.random.key(settings.seed)))
        snapshots = [_Snapshot(1.0, 1.0, _parts(leaf_paths(state.params)), {})]
        for batch in batches:
            state, metrics = program.step(state, put_batch(batch, mesh))
            loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
            # Undo gradient clipping.
            factor = max(norm / settings.optimizer.clip_norm, 1.0) if settings.optimizer.clip_norm else 1.0
            moments = _parts(_first_moments(state.opt_state), factor)
            snapshots.append(_Snapshot(loss, norm, _parts(leaf_paths(state.params)), moments))
    return snapshots


def objective_with_noise(settings: Settings) -> Objective:
    """Returns the config's objective with noise added to its initial parameters: zeros would hide errors."""
    objective = objective_of(settings, model_config(settings.model))

    def init(rng: jax.Array) -> Params:
        # NumPy constants: compiling JAX's random numbers would take most of the time.
        noise = np.random.default_rng(settings.seed)
        return jax.tree.map(lambda x: x + 0.1 * noise.standard_normal(x.shape).astype(np.float32), objective.init(rng))

    return objective._replace(init=init)


def _first_moments(opt_state: Any) -> dict[str, jax.Array]:  # noqa: ANN401 - Optax's trees
    """Returns {a parameter's path: the moving mean of its gradient}, which AdamW and Muon both call `mu`."""
    return {path.partition("/mu/")[2]: leaf for path, leaf in leaf_paths(opt_state).items() if "/mu/" in path}


def _parts(leaves: dict[str, jax.Array], factor: float = 1.0) -> dict[str, list[Part]]:
    # Copies, because the next step donates these buffers.
    return {
        path: [(shard.index, factor * np.array(shard.data)) for shard in leaf.addressable_shards]
        for path, leaf in leaves.items()
    }


def _compare(layout: MeshSettings, reference: list[_Snapshot], got: list[_Snapshot]) -> Verdict:
    losses = [_relative(a.loss, b.loss) for a, b in zip(reference, got, strict=True)]
    norms = [_relative(a.grad_norm, b.grad_norm) for a, b in zip(reference, got, strict=True)]
    leaves = [_worst_leaf(a.params, b.params) for a, b in zip(reference, got, strict=True)]
    gradients = [_worst_leaf(a.moments, b.moments, 1e-2) for a, b in zip(reference, got, strict=True)]
    params, leaf = max(leaves)
    mismatch = ""
    for step, (loss, norm, (difference, its_leaf), (gradient, wrong_leaf)) in enumerate(
        zip(losses, norms, leaves, gradients, strict=True)
    ):
        figures = {"the loss": loss, "the gradient's norm": norm, "a parameter": difference}
        wrong = [f"{name} by {figure:.1e}" for name, figure in figures.items() if figure > TOLERANCE]
        wrong += [f"a gradient by {gradient:.1e}"] if gradient > GRADIENT_TOLERANCE else []
        if wrong:
            mismatch, leaf = f"{', '.join(wrong)} {f'at step {step}' if step else 'before the first step'}", its_leaf
            if (step == 1 and norm > TOLERANCE) or difference <= TOLERANCE < gradient:
                leaf = wrong_leaf
            break
    return Verdict(layout, max(losses), max(norms), params, max(gradients)[0], leaf, mismatch)


def _worst_leaf(reference: dict[str, list[Part]], got: dict[str, list[Part]], floor: float = 0.0) -> tuple[float, str]:
    """Returns (the largest relative difference of a leaf, its path).

    Args:
        reference: the leaves of one device.
        got: their parts on each device of a mesh.
        floor: differences are relative to at least this part of the largest leaf.
    """
    worst = [(0.0, "")]
    largest = max((float(np.abs(whole).max()) for [(_, whole)] in reference.values()), default=0.0)
    for path, [(_, whole)] in reference.items():
        scale = max(float(np.abs(whole).max()), floor * largest)
        difference = max(_finite(float(np.abs(part - whole[index]).max())) for index, part in got[path])
        worst.append((difference / scale if scale else difference, path))
    return max(worst)


def _relative(reference: float, got: float) -> float:
    return _finite(abs(got - reference) / abs(reference)) if reference else _finite(abs(got))


def _finite(difference: float) -> float:
    return difference if math.isfinite(difference) else math.inf
