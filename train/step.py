"""The train step, a pure function (state, batch) -> (state, metrics), and the sharding of its arrays.

Shape suffixes: M microbatches, B batch, T length.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import NamedSharding

from model.config import ModelConfig
from model.experts import RouterSums, balanced
from model.heads import Objective, RouterLosses, language_model
from model.losses import LossSums
from model.sharding import PARAMETER_RULES, AnyMesh, parameter_shardings, spec
from model.transformer import Batch, Params
from train.distributed.mesh import compiler_options
from train.distributed.placement import batch_sharding, replicated
from train.moments import axes_of, by_path
from train.optimizer import make_optimizer, make_schedule
from train.settings import Settings
from train.trees import boxed_params

Metrics = dict[str, jax.Array]

ROUTER_METRICS = ("expert_load_max", "expert_load_min", "router_entropy", "expert_rounds")


class TrainState(NamedTuple):
    """The input and output of a train step.

    Attributes:
        step: the number of steps done.
        params: the trained groups of parameters, float32.
        opt_state: the optimizer's state for `params`.
        frozen: the groups that are not trained, in the compute dtype; passed through.
        average: the exponential average of `params` (`config.optimizer.ema`); empty: there is none.
    """

    step: jax.Array
    params: Params
    opt_state: Any
    frozen: Params
    average: Params = {}  # noqa: RUF012 - a NamedTuple's default, which nothing changes

    @property
    def all_params(self) -> Params:
        """All groups of parameters, as the functions of an `Objective` take them."""
        return {**self.frozen, **self.params}

    @property
    def final_params(self) -> Params:
        """All groups of parameters to evaluate and to use after training: averaged where there is an average."""
        return {**self.frozen, **(self.average or self.params)}


def objective_of(settings: Settings, model: ModelConfig) -> Objective:
    """Returns the pre-training objective of a config; pre-training and every part of the planner use this one.

    Pre-training is causal: it refuses `config.task`. The planner uses the attention that `config.task.attention` names.
    """
    loss, model = settings.loss, dataclasses.replace(model, causal=settings.task.attention != "bidirectional")
    router = RouterLosses(loss.router_z_loss, loss.balance_loss)
    return language_model(model, loss.z_loss, loss.chunk, loss.label_smoothing, router)


def init_state(
    objective: Objective, optimizer: optax.GradientTransformation, rng: jax.Array, averages: bool = False
) -> TrainState:
    """Returns the random state before the first step, with unboxed parameters; `averages`: and with their average."""
    trained, frozen = split(objective, nn.meta.unbox(objective.init(rng)))
    average = jax.tree.map(jnp.copy, trained) if averages else {}
    return TrainState(jnp.zeros((), jnp.int32), trained, optimizer.init(trained), frozen, average)


def split(objective: Objective, params: Params) -> tuple[Params, Params]:
    """Returns (the groups that are trained, the frozen groups in the compute dtype)."""
    trained = {group: params[group] for group in objective.trained}
    if len(trained) == len(params):
        return trained, {}
    cast = objective.cast(params)
    return trained, {group: cast[group] for group in params if group not in trained}


def state_shardings(
    objective: Objective, optimizer: optax.GradientTransformation, mesh: AnyMesh, averages: bool = False
) -> TrainState:
    """Returns a `TrainState` of `NamedSharding`s; moments and averages have the sharding of their parameter."""
    boxed = boxed_params(objective)
    shardings = parameter_shardings(boxed, mesh)
    params = {group: shardings[group] for group in objective.trained}
    frozen = {group: shardings[group] for group in boxed if group not in params}
    trained = {group: boxed[group] for group in objective.trained}
    boxes = by_path(trained)

    # optax.tree.map_params fails on contrib.muon's partition, but a moment's path contains its parameter's path.
    def moment(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        axes = axes_of(path, boxes) if leaf.ndim else None
        return replicated(mesh) if axes is None else NamedSharding(mesh, spec(axes, PARAMETER_RULES))

    opt_state = jax.eval_shape(optimizer.init, nn.meta.unbox(trained))
    moments: Any = jax.tree_util.tree_map_with_path(moment, opt_state)
    step: Any = replicated(mesh)
    return TrainState(step, params, moments, frozen, params if averages else {})


class Program(NamedTuple):
    """The compiled functions of a run on one mesh; training, the planner and the certificate share them.

    Attributes:
        state: abstract `TrainState`: shapes, dtypes and shardings.
        initialize: key data -> random, sharded `TrainState`.
        step: (state, batch) -> (state, metrics); donates the state.
        batch: abstract, sharded batch.
    """

    state: TrainState
    initialize: Callable[[jax.Array], TrainState]
    step: jax.stages.Wrapped
    batch: Batch


def make_program(
    objective: Objective, settings: Settings, mesh: AnyMesh, earlier: Sequence[tuple[int, int]] = ()
) -> Program:
    """Returns the `Program` of a run; `earlier` lists the lengths that it had before (`make_schedule`).

    Raises:
        UserError: a mesh axis does not divide a parameter.
    """
    boxed = boxed_params(objective)
    trained = {group: boxed[group] for group in objective.trained}
    optimizer = make_optimizer(settings.optimizer, settings.num_steps, trained, earlier)
    schedule = make_schedule(settings.optimizer, settings.optimizer.learning_rate, settings.num_steps, earlier)
    ema = settings.optimizer.ema
    shardings = state_shardings(objective, optimizer, mesh, ema > 0)
    shapes = jax.eval_shape(lambda rng: init_state(objective, optimizer, rng, ema > 0), jax.random.key(0))

    def initialize(key_data: jax.Array) -> TrainState:
        return init_state(objective, optimizer, jax.random.wrap_key_data(key_data), ema > 0)

    return Program(
        state=jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings),
        initialize=jax.jit(initialize, out_shardings=shardings),
        step=jax.jit(
            make_train_step(
                objective,
                optimizer,
                schedule,
                StepOptions(
                    settings.microbatches, settings.faults.max_grad_norm, settings.optimizer.router_bias_rate, ema
                ),
            ),
            in_shardings=(shardings, batch_sharding(mesh)),
            out_shardings=(shardings, replicated(mesh)),
            donate_argnums=0,
            compiler_options=compiler_options(mesh),
        ),
        batch=abstract_batch(settings.batch_size, settings.sequence_length, batch_sharding(mesh)),
    )


def abstract_batch(rows: int, length: int, sharding: NamedSharding | None = None) -> Batch:
    """Returns the shapes and dtypes of a (rows, length) batch."""
    dtypes = dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), jnp.int32) | {"weights": jnp.float32}
    return {k: jax.ShapeDtypeStruct((rows, length), dtype, sharding=sharding) for k, dtype in dtypes.items()}  # type: ignore[misc]


class StepOptions(NamedTuple):
    """What a train step does besides computing a gradient and an update; the defaults do nothing.

    Attributes:
        microbatches: `config.microbatches`.
        max_grad_norm: `config.faults.max_grad_norm`.
        router_bias_rate: `config.optimizer.router_bias_rate`.
        ema: `config.optimizer.ema`.
    """

    microbatches: int = 1
    max_grad_norm: float = 0.0
    router_bias_rate: float = 0.0
    ema: float = 0.0


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    options: StepOptions = StepOptions(),  # noqa: B008 - immutable
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns train_step(state, batch) -> (state, metrics).

    Metrics: loss (nats per target), grad_norm (before clipping), learning_rate, targets (sum of weights), skipped (0
    or 1). A step is skipped if its loss or gradient is not finite or its `grad_norm` exceeds `max_grad_norm` (0: no
    limit); it then increments `state.step` and the schedule's count, and changes nothing else. A model with experts has
    the metrics of `router_metrics` as well, and the biases of its routers move by `router_bias_rate`
    (`experts.balanced`).
    """
    microbatches, max_grad_norm, router_bias_rate, ema = options

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Returns (the next state, the metrics of this step)."""
        grads, sums = summed_gradients(objective, state.params, batch, microbatches, state.frozen)
        # Avoids 0 / 0 in a batch without targets, whose gradient is then zero.
        weight = jnp.maximum(sums.weight, 1e-9)
        grads = jax.tree.map(lambda g: g / weight, grads)
        loss, grad_norm = sums.nll / weight, optax.tree.norm(grads)
        sound = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        if max_grad_norm:
            sound &= grad_norm <= max_grad_norm
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if sums.routers is not None and router_bias_rate:
            params = balanced(params, sums.routers.load_E, router_bias_rate)
        average = averaged(state.average, params, ema, state.step) if ema else state.average
        params, opt_state, average = _if_sound(
            sound, (params, opt_state, average), (state.params, state.opt_state, state.average)
        )
        metrics = {
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "targets": sums.weight,
            "skipped": 1.0 - sound,
        }
        if sums.routers is not None:
            metrics |= router_metrics(sums.routers, microbatches)
        return TrainState(state.step + 1, params, opt_state, state.frozen, average), metrics

    return train_step


def _if_sound(sound: jax.Array, new: Any, old: Any) -> Any:  # noqa: ANN401 - trees
    """Returns `new` if a step is sound, else `old` with the new count of the learning-rate schedule.

    So a schedule ends with the run, however many steps were skipped, and has the value that is logged.
    """

    def select(new: Any, old: Any) -> Any:  # noqa: ANN401 - an array, or the state of a schedule
        # The update reads the old values anyway: compiled for a TPU, this select needs no extra memory.
        return new if isinstance(new, optax.ScaleByScheduleState) else jnp.where(sound, new, old)

    return jax.tree.map(select, new, old, is_leaf=lambda part: isinstance(part, optax.ScaleByScheduleState))


def averaged(average: Params, params: Params, ema: float, step: jax.Array) -> Params:
    """Returns the exponential average of the parameters after step `step`, counted from 0.

    The factor is at most (1 + step) / (10 + step), so that the initial parameters, which are random or of another run,
    are forgotten in a short run as well (TensorFlow's `ExponentialMovingAverage` with `num_updates`).
    """
    factor = jnp.minimum(ema, (1.0 + step) / (10.0 + step))
    return optax.incremental_update(params, average, 1.0 - factor)


def router_metrics(sums: RouterSums, microbatches: int) -> Metrics:
    """Returns what each layer with experts did in a step; each value has one number per layer.

    expert_load_max, expert_load_min: tokens of the expert with the most and the fewest, over those of an even load.
    router_entropy: mean entropy of the router's distribution, in nats. expert_rounds: mean number of rounds per
    microbatch, of the device with the most (`model/dispatch.py`). A batch of padding has a load and an entropy of 0.
    """
    tokens_L = jnp.maximum(sums.tokens, 1.0)
    even_L = jnp.maximum(sums.load_E.mean(-1), 1e-9)
    loads = sums.load_E.max(-1) / even_L, sums.load_E.min(-1) / even_L
    values = (*loads, sums.entropy / tokens_L, sums.rounds_P.max(-1) / microbatches)
    return dict(zip(ROUTER_METRICS, values, strict=True))


def summed_gradients(
    objective: Objective, params: Params, batch: Batch, microbatches: int, frozen: Params | None = None
) -> tuple[Params, LossSums]:
    """Returns (the gradient of the summed objective with respect to `params`, the sums) over all microbatches.

    Sums, not means, are accumulated, so rows of unequal weight count the same as in one large batch.
    """

    def loss(params: Params, part: Batch) -> tuple[jax.Array, LossSums]:
        sums = objective.loss({**held, **params}, part)
        return sums.objective, sums

    held = frozen or {}
    whole = objective.cast({**held, **params})
    cast = {group: whole[group] for group in params}

    def gradient(part: Batch) -> tuple[Params, LossSums]:
        grads, sums = jax.grad(loss, has_aux=True)(cast, part)
        return jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params), sums

    if microbatches == 1:
        return gradient(batch)

    def body(total: tuple[Params, LossSums], part: Batch) -> tuple[tuple[Params, LossSums], None]:
        return jax.tree.map(jnp.add, total, gradient(part)), None

    parts_MBT = jax.tree.map(lambda x: _split_rows(x, microbatches), dict(batch))
    shapes = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], parts_MBT))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(body, zeros, parts_MBT)[0]


def _split_rows(x_BT: jax.Array, microbatches: int) -> jax.Array:
    """Returns x_MBT with every M-th row in the same microbatch, so that no row moves to another device."""
    return jnp.moveaxis(x_BT.reshape(-1, microbatches, *x_BT.shape[1:]), 1, 0)
