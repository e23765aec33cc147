"""Optax optimizers and schedules; logical axes decide which parameters get weight decay and which get Muon."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from configs.errors import UserError
from model.sharding import is_partitioned
from model.transformer import Params
from train.moments import store_moments
from train.schedule import decay_steps
from train.settings import OptimizerSettings


def make_schedule(
    settings: OptimizerSettings, peak: float, num_steps: int, earlier: Sequence[tuple[int, int]] = ()
) -> optax.Schedule:
    """Returns step -> learning rate: linear warm-up to `peak`, then constant, or cosine or linear decay, or both.

    "wsd" is constant and decays linearly in the last `decay_steps`. Schedules for which `schedule_errors` returns an
    error keep the values that earlier versions gave them: runs that exist resume with them.

    Args:
        settings: `config.optimizer`.
        peak: learning rate after the warm-up.
        num_steps: length of the run.
        earlier: ((step, length), ...), oldest first: up to that step the run had that length (`train.run.length`).
    """
    schedule = _schedule(settings, peak, num_steps)
    for until, length in reversed(earlier):
        schedule = _switch(_schedule(settings, peak, length), schedule, until)
    return schedule


def _switch(before: optax.Schedule, after: optax.Schedule, step: int) -> optax.Schedule:
    """Returns `before` up to `step` and then `after`, at the same steps; `optax.join_schedules` would count from 0."""
    return lambda count: jnp.where(count < step, before(count), after(count))


def _schedule(settings: OptimizerSettings, peak: float, num_steps: int) -> optax.Schedule:
    """Returns the schedule of a run whose length never changed."""
    warmup = min(settings.warmup_steps, num_steps)
    final = peak * settings.final_fraction
    rest = max(num_steps - warmup, 1)
    if settings.schedule == "cosine":
        after = [optax.cosine_decay_schedule(peak, rest, settings.final_fraction)]
        boundaries: list[int] = []
    elif settings.schedule == "linear":
        after, boundaries = [optax.linear_schedule(peak, final, rest)], []
    elif settings.schedule == "constant":
        after, boundaries = [optax.constant_schedule(peak)], []
    else:
        decay = decay_steps(settings, num_steps)
        after = [optax.constant_schedule(peak), optax.linear_schedule(peak, final, decay)]
        boundaries = [max(num_steps - decay, warmup)]
    if not warmup:
        return optax.join_schedules(after, boundaries)
    # The first step uses peak / warmup instead of 0, which would waste it.
    rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, *after], [warmup, *boundaries])


# The axis of a matrix that reads or writes the residual stream, and the axes along which matrices are stacked.
_STREAM_AXES = frozenset({"embed", "expert_embed"})
_STACKED_AXES = frozenset({"layers", "experts"})


def is_matrix(box: nn.Partitioned) -> bool:
    """Returns whether a parameter is a matrix, that is, it has the axis of the residual stream and another one.

    A bias or a norm's scale of that width, stacked over layers, is none.
    """
    return not _STREAM_AXES.isdisjoint(box.names) and not set(box.names) <= _STREAM_AXES | _STACKED_AXES


def make_optimizer(
    settings: OptimizerSettings, num_steps: int, boxed: Params, earlier: Sequence[tuple[int, int]] = ()
) -> optax.GradientTransformation:
    """Returns the optimizer: gradient clipping, then AdamW, or Muon for the matrices of layers and AdamW otherwise.

    Args:
        settings: `config.optimizer`.
        num_steps: length of the run and of its schedules.
        boxed: the (abstract) parameters in boxes that name their logical axes.
        earlier: see `make_schedule`.
    """
    matrices = jax.tree.map(is_matrix, boxed, is_leaf=is_partitioned)
    schedule = make_schedule(settings, settings.learning_rate, num_steps, earlier)
    first = jnp.dtype("bfloat16" if settings.first_moment == "bfloat16" else "float32")
    if settings.name == "adamw":
        main = optax.adamw(
            schedule,
            b1=settings.beta1,
            b2=settings.beta2,
            eps=settings.epsilon,
            mu_dtype=first,
            weight_decay=settings.weight_decay,
            mask=matrices,
        )
    else:
        main = optax.contrib.muon(
            make_schedule(settings, settings.muon_learning_rate, num_steps, earlier),
            ns_steps=settings.muon_iterations,
            # Almost-orthogonal scaling before the first iteration saves one of them (arXiv:2512.04632).
            preconditioning="aol",
            eps=settings.epsilon,
            mu_dtype=first,
            weight_decay=settings.weight_decay,
            adam_b1=settings.beta1,
            adam_b2=settings.beta2,
            adam_learning_rate=schedule,
            muon_weight_dimension_numbers=jax.tree.map(_muon_dimensions, boxed, is_leaf=is_partitioned),
        )
    parts = [optax.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm else []
    parts += [main] if settings.layer_decay == 1.0 else [main, _scale_by_layer(boxed, settings.layer_decay)]
    optimizer = optax.chain(*parts) if len(parts) > 1 else main
    return store_moments(optimizer, boxed, settings.first_moment, settings.second_moment)


def _scale_by_layer(boxed: Params, decay: float) -> optax.GradientTransformation:
    """Returns a transformation that gives each layer `decay` times the rate of the layer above it (arXiv:1801.06146).

    The last layer, the final norm and the head keep the full rate; the embedding counts as one layer below the first.
    """

    def layers(box: nn.Partitioned) -> int:
        return box.value.shape[0] if box.names[0] == "layers" else 0

    counts = {count for box in jax.tree.leaves(boxed, is_leaf=is_partitioned) if (count := layers(box))}
    depth = max(counts, default=0)
    if len(counts) > 1:
        raise UserError(
            f"config.optimizer.layer_decay={decay:g} is not supported where only some layers have experts; expected 1"
        )

    def factor(path: tuple[Any, ...], box: nn.Partitioned) -> float | np.ndarray:
        count = layers(box)
        if count:
            return decay ** np.arange(count, dtype=np.float32)[::-1].reshape(-1, *(1 for _ in box.value.shape[1:]))
        return decay**depth if any(part.key == "embedding" for part in path) else 1.0

    factors = jax.tree_util.tree_map_with_path(factor, boxed, is_leaf=is_partitioned)
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, factors))


def _muon_dimensions(box: nn.Partitioned) -> optax.contrib.MuonDimensionNumbers | None:
    """Returns the input and output axes of a stacked matrix, or None for a parameter that AdamW updates.

    Optax's default treats every 2-D leaf as a matrix, which is wrong when layers are stacked: a stacked norm is 2-D and
    a stacked kernel is not.
    """
    if not is_matrix(box):
        return None
    embed = next(i for i, name in enumerate(box.names) if name in _STREAM_AXES)
    others = tuple(i for i, name in enumerate(box.names) if name not in _STACKED_AXES and i != embed)
    if embed < min(others):
        return optax.contrib.MuonDimensionNumbers(reduction_axis=(embed,), output_axis=others)
    return optax.contrib.MuonDimensionNumbers(reduction_axis=others, output_axis=(embed,))
