"""Estimates memory and traffic of a step without a compiler: ranks a search, and plans for GPUs without one.

B rows of one chip and microbatch, T tokens of a row on one chip, D embed, N heads, K kv heads, H head dim, F mlp.
Experts are taken to have an even load.
"""

import dataclasses
import math

import jax

from model.config import ModelConfig
from model.dispatch import ROUND
from model.ring import is_ring, key_bytes
from model.sharding import ACTIVATION_RULES, PARAMETER_RULES
from model.transformer import Params
from train.hardware import Chip
from train.planner.trace import Trace
from train.settings import Settings
from train.step import TrainState

_Sent = tuple[str, str, float, float]  # (mesh axis, kind, count, bytes sent) of collectives


@dataclasses.dataclass(frozen=True)
class Work:
    """Memory and traffic of one device in one step.

    Attributes:
        buffers: {name: bytes} at the peak; their sum is the peak.
        traffic: bytes read from and written to its memory.
        link_bytes: bytes sent over the fast links.
        network_bytes: bytes sent over the data-center network.
        collectives: {kind: (count, bytes)}.
    """

    buffers: dict[str, float]
    traffic: float
    link_bytes: float
    network_bytes: float
    collectives: dict[str, tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class _Shape:
    """One device: tokens per microbatch, bytes per element, and activations per token."""

    tokens: float
    itemsize: int
    saved: float  # bytes per token and all layers, saved for the backward pass
    working: float  # elements per token, live inside one layer


def estimate(
    settings: Settings, model: ModelConfig, traced: Trace, state: TrainState, mesh: dict[str, int], chip: Chip
) -> Work:
    """Returns the `Work` of a train step in bfloat16, with flash attention unless the config asks for "xla".

    Args:
        settings: the config.
        model: the model.
        traced: its `Trace`.
        state: abstract, with shardings.
        mesh: devices per axis.
        chip: the chip; its `group` says which devices the fast links connect.
    """
    shape = _shape(settings, model, traced, mesh)
    buffers = _buffers(settings, model, state, mesh, shape)
    sent = _parameter_collectives(settings, model, state, mesh, shape)
    sent += _activation_collectives(settings, model, mesh, shape)
    link = sum(total for axis, _, _, total in sent if not _leaves_by(axis, mesh, chip))
    network = sum(total / ways for axis, _, _, total in sent if (ways := _leaves_by(axis, mesh, chip)))
    collectives: dict[str, tuple[float, float]] = {}
    for _, kind, count, total in sent:
        before = collectives.get(kind, (0.0, 0.0))
        collectives[kind] = (before[0] + count, before[1] + total)
    traffic = _traffic(settings, model, state, mesh, shape, buffers)
    return Work(buffers, traffic, link, network, collectives)


def tree_bytes(tree: object) -> float:
    """Returns the bytes per device of an abstract tree with shardings."""
    leaves = jax.tree.leaves(tree)
    return float(sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves))


def _shape(settings: Settings, model: ModelConfig, traced: Trace, mesh: dict[str, int]) -> _Shape:
    D, NH, KH = model.embed_dim, model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    tensor = mesh["tensor"]
    heads = (NH + 2 * KH) / tensor
    # Norms, projections before and after rotation, attention's output, the MLP.
    working = 6 * D + 2 * heads + NH / tensor + _mlp_working(model, mesh)
    if model.attention == "xla":
        # The attention weights of every head, in float32 and in the compute dtype.
        working += 3 * model.num_heads / tensor * settings.sequence_length
    rows = settings.batch_size / settings.microbatches / math.prod(mesh[axis] for axis in ACTIVATION_RULES["batch"])
    itemsize = _itemsize(model)
    saved = traced.saved + traced.saved_split / tensor
    return _Shape(rows * settings.sequence_length / mesh["context"], itemsize, saved, working)


def _mlp_working(model: ModelConfig, mesh: dict[str, int]) -> float:
    """Returns the elements per token that are live inside the largest MLP, or inside the experts of a layer."""
    # Hidden units before and after the activation.
    per_unit = 2 * (2 if model.gated else 1) / mesh["tensor"]
    dense = per_unit * model.mlp_dim if model.expert_layers < model.num_layers else 0.0
    if not model.expert_layers:
        return dense
    # Each choice has a row of its own, before and after its expert; a round has room for more than an even load.
    split = mesh["expert"] > 1
    rows = model.experts_per_token * (ROUND if split else 1.0)
    experts = rows * (2 * model.embed_dim + per_unit * model.expert_width) + per_unit * model.shared_expert_dim
    # The tokens of all devices that share the experts, their gradients and the gradients of the output.
    gathered = 3 * mesh["expert"] * model.embed_dim if split else 0.0
    return max(dense, experts + gathered)


def _ways(mesh: dict[str, int]) -> int:
    """Returns the number of parts that dense weights are split into besides those of tensor parallelism."""
    return math.prod(mesh[axis] for axis in PARAMETER_RULES["embed"])


def _expert_bytes(state: TrainState) -> float:
    """Returns the bytes per device of the matrices of all experts."""
    experts = state.all_params["backbone"]["layers"].get("experts", {})
    return tree_bytes([experts[name] for name in ("gate", "up", "down") if name in experts])


def _buffers(
    settings: Settings, model: ModelConfig, state: TrainState, mesh: dict[str, int], shape: _Shape
) -> dict[str, float]:
    params = tree_bytes(state.params)
    layers = tree_bytes(state.params["backbone"]["layers"]) if "backbone" in state.params else 0.0
    gradients = params - layers + layers * shape.itemsize / 4
    if settings.microbatches > 1:
        gradients += params
    # A chunk is so many positions of a row on each device (`losses._split`).
    length = settings.sequence_length / mesh["context"]
    logits = (
        shape.tokens
        * min(settings.loss.chunk or length, length)
        / length
        * model.vocab_size
        / mesh["tensor"]
        * (4 + shape.itemsize)
    )
    experts = _expert_bytes(state)
    layer = (layers - experts) / model.num_layers * _ways(mesh) + experts / max(model.expert_layers, 1) * mesh["fsdp"]
    gathered = layer * shape.itemsize / 4 if _ways(mesh) > 1 else 0.0
    if "backbone" in state.frozen:
        # Quantized or not, a layer's matrices are whole, in the compute dtype, while it is computed.
        gathered = sum(_matrix_bytes(model, mesh, shape.itemsize)) / model.num_layers
    inside = shape.tokens * shape.working * shape.itemsize + 2 * gathered + _keys_of_others(model, mesh, shape)
    return {
        "parameters": params,
        **({"frozen parameters": tree_bytes(state.frozen)} if state.frozen else {}),
        "optimizer state": tree_bytes(state.opt_state),
        **({"averaged parameters": tree_bytes(state.average)} if state.average else {}),
        "gradients": gradients,
        f"activations saved (remat {model.remat})": shape.tokens * shape.saved,
        # The loss and a layer's backward pass do not overlap.
        "working memory of a layer": inside if inside >= logits else 0.0,
        "logits of a chunk": logits if logits > inside else 0.0,
    }


def layer_keys(settings: Settings, model: ModelConfig, mesh: dict[str, int]) -> float:
    """Returns the bytes of a layer's keys and values that a device would gather over the `context` axis."""
    rows = settings.batch_size / settings.microbatches / math.prod(mesh[axis] for axis in ACTIVATION_RULES["batch"])
    return key_bytes(model, rows * settings.sequence_length, mesh["tensor"], _itemsize(model))


def _itemsize(model: ModelConfig) -> int:
    return 4 if model.compute_dtype == "float32" else 2


def _keys_of_others(model: ModelConfig, mesh: dict[str, int], shape: _Shape) -> float:
    """Returns the bytes of other devices' keys and values in a layer's backward pass, with float32 gradients."""
    if mesh["context"] == 1:
        return 0.0
    own = key_bytes(model, shape.tokens, mesh["tensor"], shape.itemsize)
    # A ring has the block that it computes and the one that arrives.
    blocks = 2 if is_ring(model, own * mesh["context"]) else mesh["context"]
    return blocks * own * (1 + 4 / shape.itemsize)


def _passes(model: ModelConfig) -> int:
    """Returns the number of passes: forward, backward, and forward again if it is recomputed."""
    return 3 if model.remat in ("full", "offload") else 2


def _parameter_collectives(
    settings: Settings, model: ModelConfig, state: TrainState, mesh: dict[str, int], shape: _Shape
) -> list[_Sent]:
    """Returns the collectives that gather parameters and sum their gradients."""
    L, parts = model.num_layers, settings.microbatches
    matrices, experts = _matrix_bytes(model, mesh, shape.itemsize)
    tensors, own, sparse = (7, 3, model.expert_layers * parts) if model.gated else (6, 2, model.expert_layers * parts)
    ways, frozen = _ways(mesh), "backbone" in state.frozen
    found: list[_Sent] = []
    # Dense matrices are gathered over both axes, those of experts over fsdp.
    outer = "expert" if mesh["expert"] > 1 else "fsdp"
    gathers = ((outer, ways, tensors * L * parts, matrices), ("fsdp", mesh["fsdp"], own * sparse, experts))
    for axis, group, count, total in gathers:
        if group > 1 and count:
            # Once forward, once backward: recomputation uses the backward pass's copy.
            found.append((axis, "all-gather", 2 * count, 2 * parts * total * (group - 1) / group))
            if not frozen:
                found.append((axis, "reduce-scatter", count, parts * total * (group - 1) / group))
    # The gradients of a device's parameters: in the compute dtype those of the layers' matrices, in float32 the others.
    rest = tree_bytes(_outside_layers(state))
    gradients = rest + (0.0 if frozen else matrices / ways + experts / mesh["fsdp"])
    if ways > 1 and rest:
        found.append((outer, "all-gather", 2, 2 * rest * shape.itemsize / 4 * (ways - 1)))
        found.append((outer, "reduce-scatter", 1, rest * (ways - 1)))
    for axis in ("data", "slice", "context"):
        if mesh[axis] > 1:
            found.append((axis, "all-reduce", tensors, 2 * gradients * (mesh[axis] - 1) / mesh[axis]))
    return found


def _activation_collectives(settings: Settings, model: ModelConfig, mesh: dict[str, int], shape: _Shape) -> list[_Sent]:
    """Returns the collectives of tokens for experts, of partial sums, and of keys and values."""
    passes, layers, sparse = _passes(model), model.num_layers * settings.microbatches, model.expert_layers
    stream = shape.tokens * model.embed_dim * shape.itemsize
    keys = key_bytes(model, shape.tokens, mesh["tensor"], shape.itemsize)
    found: list[_Sent] = []
    if mesh["expert"] > 1 and sparse:
        # Tokens, their experts and gates are sent; backward the output's gradient as well (`model/dispatch.py`).
        sparse *= settings.microbatches
        moved = sparse * stream * (mesh["expert"] - 1)
        found.append(("expert", "all-gather", 7 * sparse, 3 * moved))
        found.append(("expert", "reduce-scatter", 3 * sparse, 2 * moved))
    if mesh["tensor"] > 1:
        sums = 2 * passes * layers
        found.append(("tensor", "all-reduce", sums, 2 * sums * stream * (mesh["tensor"] - 1) / mesh["tensor"]))
    if mesh["context"] > 1:
        others, wide = mesh["context"] - 1, 4 / shape.itemsize
        if is_ring(model, keys * mesh["context"]):
            # Gradients follow their block in float32, and return home in one more step.
            count = (2 * passes * others + 2 * mesh["context"]) * layers
            sent = layers * keys * (passes * others + mesh["context"] * wide)
            found.append(("context", "collective-permute", count, sent))
        else:
            found.append(("context", "all-gather", 2 * passes * layers, passes * layers * keys * others))
            found.append(("context", "reduce-scatter", 2 * layers, layers * keys * others * wide))
    return found


def _outside_layers(state: TrainState) -> Params:
    """Returns the trained parameters besides the matrices of a backbone's layers: tables, heads, adapters."""
    backbone = {name: part for name, part in state.params.get("backbone", {}).items() if name != "layers"}
    return state.params | {"backbone": backbone}


def _matrix_bytes(model: ModelConfig, mesh: dict[str, int], itemsize: int) -> tuple[float, float]:
    """Returns the bytes of (the dense matrices of all layers, those of the experts that a device has) when gathered."""
    D, per_unit = model.embed_dim, model.embed_dim * (3 if model.gated else 2)
    attention = D * model.head_dim * (2 * model.num_heads + 2 * model.num_kv_heads)
    sparse = model.expert_layers
    dense = model.num_layers * attention + (model.num_layers - sparse) * per_unit * model.mlp_dim
    dense += sparse * per_unit * model.shared_expert_dim
    experts = sparse * model.num_experts / mesh["expert"] * per_unit * model.expert_width
    return dense * itemsize / mesh["tensor"], experts * itemsize / mesh["tensor"]


def _leaves_by(axis: str, mesh: dict[str, int], chip: Chip) -> int:
    """Returns how many chips of one machine split what an axis sends between machines; 0 if the axis stays inside.

    The last axes of the mesh are innermost.
    """
    if not chip.group:
        return int(axis == "slice")
    names = list(mesh)
    within = math.prod(mesh[name] for name in names[names.index(axis) + 1 :])
    return 0 if within * mesh[axis] <= chip.group else max(chip.group // within, 1)


def _traffic(
    settings: Settings,
    model: ModelConfig,
    state: TrainState,
    mesh: dict[str, int],
    shape: _Shape,
    buffers: dict[str, float],
) -> float:
    """Returns a lower bound: state read and written, weights once per pass, activations written and read."""
    state_parts = ("parameters", "averaged parameters", "optimizer state", "gradients")
    updated = 2 * sum(buffers.get(name, 0.0) for name in state_parts)
    experts = _expert_bytes(state)
    if state.frozen:
        weights = tree_bytes(state.all_params) * _ways(mesh)
    else:
        weights = ((buffers["parameters"] - experts) * _ways(mesh) + experts * mesh["fsdp"]) * shape.itemsize / 4
    parts = settings.microbatches
    passes = _passes(model) * parts
    layers = model.num_layers * shape.tokens * shape.working * shape.itemsize
    logits = shape.tokens * model.vocab_size / mesh["tensor"] * 4
    activations = (passes + parts) * layers + 2 * parts * shape.tokens * shape.saved
    return updated + 2 * passes * weights + activations + 3 * parts * logits
