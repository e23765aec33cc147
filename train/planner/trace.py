"""Counts FLOPs and saved activations in the jaxpr, with scan lengths: XLA counts a loop's body once."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from flax import linen as nn
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters.partial_eval import dce_jaxpr
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from model.adapt import adapt
from model.attention import SCOPE
from model.config import ModelConfig
from model.flops import expert_forward_flops, visible_fraction
from model.sharding import MESH_AXES
from train.settings import Settings
from train.step import abstract_batch, objective_of, summed_gradients
from train.trees import boxed_params


@dataclasses.dataclass(frozen=True)
class Trace:
    """Cost of loss and gradient per token, summed over devices.

    Attributes:
        flops: FLOPs including recomputation by the remat policy. Attention counts only the (query, key) pairs in the
            causal window, as a flash kernel does.
        saved: bytes saved for the backward pass that are replicated over the tensor axis.
        saved_split: bytes saved for the backward pass that are sharded over the tensor axis: heads and MLP units.
    """

    flops: float
    saved: float
    saved_split: float


def trace(settings: Settings, model: ModelConfig, split_experts: bool = False) -> Trace:
    """Returns the `Trace` of a model; compute dtype "auto" means bfloat16.

    With `split_experts` the experts are split over the `expert` axis, which saves less and recomputes more: their
    backward pass repeats the forward pass, unless the remat policy makes it do so anyway.
    """
    flash = model.attention != "xla"
    # Kernels have no jaxpr to traverse.
    dtype = "bfloat16" if model.compute_dtype == "auto" else model.compute_dtype
    model = dataclasses.replace(model, attention="xla", compute_dtype=dtype)
    objective = adapt(objective_of(settings, model), settings.adapt)
    params = nn.meta.unbox(boxed_params(objective))
    trained = {group: params.pop(group) for group in objective.trained}
    T, rows = settings.sequence_length, 2 if split_experts else 1

    def traced(rows: int) -> Jaxpr:
        with _accelerators(rows):
            gradient = jax.make_jaxpr(lambda p, b, frozen: summed_gradients(objective, p, b, 1, frozen))
            found = gradient(trained, abstract_batch(rows, T), params).jaxpr
            # The backward rule of a product also has the gradient of its weight, which nothing reads if that is frozen.
            return dce_jaxpr(found, [True] * len(found.outvars))[0] if params else found

    jaxpr = traced(1)
    share = visible_fraction(model, T)
    flops = jaxpr_flops(jaxpr, lambda eqn: share if SCOPE in str(eqn.source_info.name_stack) else 1.0) / T
    if split_experts:
        jaxpr = traced(rows)
        flops += expert_forward_flops(model) if model.remat in ("none", "dots") else 0.0
    saved = {True: 0.0, False: 0.0}
    for leaf in _saved_by_layers(jaxpr, model.num_layers // len(model.period)):
        # A flash kernel saves no attention weights, (layer, row, kv head, head, T, T); host memory is not the chip's.
        unsaved = flash and leaf.ndim > 4 and leaf.shape[-2:] == (T, T)
        if not unsaved and "host" not in str(getattr(leaf, "memory_space", "")).lower():
            saved[_is_split(model, leaf.shape)] += leaf.size * leaf.dtype.itemsize / rows
    return Trace(flops, saved[False] / T, saved[True] / T)


def splits_experts(model: ModelConfig, mesh: dict[str, int]) -> bool:
    """Returns whether a mesh splits the model's experts over its `expert` axis."""
    return model.num_experts > 0 and mesh["expert"] > 1


def _accelerators(expert_shards: int) -> contextlib.AbstractContextManager[None]:
    """A context for tracing what accelerators compute: attention not in pieces, experts by `ragged_dot` on an axis."""
    sizes = dict.fromkeys(MESH_AXES, 1) | {"expert": expert_shards}
    types = (AxisType.Auto,) * len(sizes)
    device = AbstractDevice(device_kind="", num_cores=None, platform="tpu")
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=types, abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def _is_split(model: ModelConfig, shape: tuple[int, ...]) -> bool:
    """Returns whether an array that the layers save is split over the tensor axis: it has heads or MLP units."""
    whole = {(), (1,), (model.embed_dim,)}
    if model.num_experts:
        if len(shape) == 3:
            # Layers, rows of all experts, and the width of the residual stream or of an expert.
            return shape[2] == model.expert_width != model.embed_dim
        whole |= {(model.num_experts,), (model.experts_per_token,)}
    # After layer, row and token axes: a scalar, the residual stream, or what a router computes.
    return shape[3:] not in whole


def _saved_by_layers(jaxpr: Jaxpr, steps: int) -> list[Any]:
    """Returns the stacked arrays that the scan over layers saves for its backward pass."""
    forward = next(e for e in jaxpr.eqns if e.primitive.name == "scan" and e.params["length"] == steps)
    body = next(_inside(forward.params))
    # A carry has the same shape inside and outside; a stacked output has one more axis.
    avals: list[list[Any]] = [[v.aval for v in variables] for variables in (body.outvars, forward.outvars)]
    return [whole for part, whole in zip(*avals, strict=True) if whole.shape != part.shape]


def jaxpr_flops(jaxpr: Jaxpr, share: Callable[[Any], float] = lambda _: 1.0) -> float:
    """Returns 2 x multiply-adds of all matrix products of a jaxpr, times the lengths of the enclosing scans.

    Args:
        jaxpr: the jaxpr.
        share: equation -> fraction of its product that is counted.
    """
    total = 0.0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in ("dot_general", "ragged_dot_general"):
            total += share(eqn) * _product(eqn)
            continue
        inner = [jaxpr_flops(sub, share) for sub in _inside(eqn.params)]
        if name == "scan":
            total += eqn.params["length"] * sum(inner)
        else:
            total += max(inner, default=0.0) if name == "cond" else sum(inner)
    return total


def _product(eqn: Any) -> float:  # noqa: ANN401 - a jaxpr equation
    """Returns the FLOPs of a matrix product, or of one that multiplies each group of rows with its own matrix."""
    left, out = eqn.invars[0].aval, eqn.outvars[0].aval
    if eqn.primitive.name == "ragged_dot_general":
        # Each row times the matrix of its group, or the rows' outer products, summed per group.
        return 2.0 * left.size * out.shape[-1]
    (contracted, _), _ = eqn.params["dimension_numbers"]
    depth = math.prod(left.shape[axis] for axis in contracted)
    return 2.0 * out.size * depth


def _inside(params: dict[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item
