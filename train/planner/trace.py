"""Counts FLOPs and saved activations in the jaxpr, with scan lengths: XLA counts a loop's body once."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
from flax import linen as nn
from jax.extend.core import ClosedJaxpr, Jaxpr

from model.attention import SCOPE
from model.config import ModelConfig
from model.flops import visible_fraction
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


def trace(settings: Settings, model: ModelConfig) -> Trace:
    """Returns the `Trace` of a model; compute dtype "auto" means bfloat16."""
    # Kernels have no jaxpr to traverse.
    dtype = "bfloat16" if model.compute_dtype == "auto" else model.compute_dtype
    model = dataclasses.replace(model, attention="xla", compute_dtype=dtype)
    objective = objective_of(settings, model)
    params = nn.meta.unbox(boxed_params(objective))
    T = settings.sequence_length
    jaxpr = jax.make_jaxpr(lambda p, b: summed_gradients(objective, p, b, 1))(params, abstract_batch(1, T)).jaxpr
    share = visible_fraction(model, T)
    flops = jaxpr_flops(jaxpr, lambda eqn: share if SCOPE in str(eqn.source_info.name_stack) else 1.0)
    saved = {True: 0.0, False: 0.0}
    for leaf in _saved_by_layers(jaxpr, model.num_layers // len(model.period)):
        # A flash kernel saves no attention weights; offloaded arrays are in host memory.
        if list(leaf.shape).count(T) < 2 and "host" not in str(getattr(leaf, "memory_space", "")).lower():
            # After layer, row and token axes: a scalar, the residual stream, or sharded heads and MLP units.
            split = leaf.shape[3:] not in ((), (1,), (model.embed_dim,))
            saved[split] += leaf.size * leaf.dtype.itemsize
    return Trace(flops / T, saved[False] / T, saved[True] / T)


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
        if name == "dot_general":
            total += share(eqn) * _product(eqn)
            continue
        inner = [jaxpr_flops(sub, share) for sub in _inside(eqn.params)]
        if name == "scan":
            total += eqn.params["length"] * sum(inner)
        else:
            total += max(inner, default=0.0) if name == "cond" else sum(inner)
    return total


def _product(eqn: Any) -> float:  # noqa: ANN401 - a jaxpr equation
    (contracted, _), _ = eqn.params["dimension_numbers"]
    depth = 1
    for axis in contracted:
        depth *= eqn.invars[0].aval.shape[axis]
    return 2.0 * eqn.outvars[0].aval.size * depth


def _inside(params: dict[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item
