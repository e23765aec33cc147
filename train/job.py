"""What a stage (pre-training, fine-tuning) hands to the training loop, and the state that training starts from."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from data.loader import Rows
from model.heads import Objective
from model.transformer import Params
from train.console import say
from train.settings import Settings
from train.step import Program, TrainState

Evaluate = Callable[[Params], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Job:
    """The inputs of the training loop that depend on the stage.

    Attributes:
        title: prefix of every message.
        objective: the model with its head.
        rows: the training rows.
        evaluate: parameters -> metrics on held-out rows, among them "loss".
        load_initial: names of parameter groups -> these groups of another run; None: random initialization.
        initial_groups: the groups to load when training starts.
        flops_per_step: model FLOPs of one step, for MFU.
        better: metric -> "higher" or "lower"; `evaluate` adds the metrics that it computes. Lower losses are better.
        earlier_lengths: ((step, num_steps), ...): up to that step the run had that length (`train.run.length`).
    """

    title: str
    objective: Objective
    rows: Rows
    evaluate: Evaluate
    load_initial: Callable[[tuple[str, ...]], Params] | None
    initial_groups: tuple[str, ...]
    flops_per_step: float
    better: dict[str, str] = dataclasses.field(default_factory=dict)
    earlier_lengths: tuple[tuple[int, int], ...] = ()


def first_state(job: Job, settings: Settings, program: Program, restored: TrainState | None) -> TrainState:
    """Returns the state that training starts from.

    Args:
        job: what is trained.
        settings: the config.
        program: the compiled functions of both.
        restored: the trained groups and optimizer state of the run's newest checkpoint; None: there is none.
    """
    # Where the state comes from, first match wins:
    # 1. this run's own newest checkpoint: resume
    # 2. another run's parameters (--init_from): fine-tuning or continued pre-training
    # 3. random initialization
    if restored is not None:
        return restored._replace(frozen=_frozen_groups(job, settings, program))
    state = _random_state(settings, program)
    return state if job.load_initial is None else _load_into(state, job, program)


def _random_state(settings: Settings, program: Program) -> TrainState:
    return program.initialize(jax.random.key_data(jax.random.key(settings.seed)))


def _load_into(state: TrainState, job: Job, program: Program) -> TrainState:
    """Returns a random state with the job's initial groups replaced by another run's."""
    assert job.load_initial is not None
    loaded = job.load_initial(job.initial_groups)
    new = [
        f"{group} ({len(jax.tree.leaves(tree))} leaves)" for group, tree in state.params.items() if group not in loaded
    ]
    # Of the loaded arrays where there are any: quantized ones have fewer elements than weights.
    held = {group: loaded.get(group, tree) for group, tree in state.frozen.items()}
    trained, frozen = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (state.params, held))
    say(
        f"{job.title}: loaded {len(jax.tree.leaves(loaded))} leaves; new: {', '.join(new) or 'none'}; "
        f"{trained:,} of {trained + frozen:,} parameters are trained ({trained / (trained + frozen):.2%})"
    )
    params = state.params | {group: tree for group, tree in loaded.items() if group in state.params}
    # A copy: the step donates both.
    average = jax.tree.map(jnp.copy, params) if state.average else {}
    return state._replace(params=params, frozen=state.frozen | _as_frozen(job, program, loaded), average=average)


def _frozen_groups(job: Job, settings: Settings, program: Program) -> Params:
    """Returns the groups that are not trained and that checkpoints therefore do not contain."""
    if not program.state.frozen:
        return {}
    if job.load_initial is None:
        return _random_state(settings, program).frozen
    return _as_frozen(job, program, job.load_initial(tuple(program.state.frozen)))


def _as_frozen(job: Job, program: Program, groups: Params) -> Params:
    """Returns those of the groups that are not trained, in the compute dtype and sharding of the step."""
    frozen = program.state.frozen
    shardings = jax.tree.map(lambda leaf: leaf.sharding, frozen)

    def cast(groups: Params) -> Params:
        return {group: tree for group, tree in job.objective.cast(groups).items() if group in frozen}

    return jax.jit(cast, out_shardings={g: shardings[g] for g in groups if g in frozen})(groups) if frozen else {}
