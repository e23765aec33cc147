"""What a stage hands to the training loop, and the state that it begins with."""

import dataclasses
from collections.abc import Callable

import jax

from data.loader import Rows
from model.heads import Objective
from model.transformer import Params
from train.console import say
from train.settings import Settings
from train.step import Program, TrainState

Evaluate = Callable[[Params], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Job:
    """What a stage hands to the loop.

    Attributes:
        title: beside the progress bar.
        objective: the model with its head.
        rows: what to train on.
        evaluate: parameters -> figures with a "loss", on held-out rows.
        graft: names of groups of parameters -> these groups, read from another run; None: all are random.
        grafted: the groups that it reads.
        flops_per_step: model FLOPs of one step, for MFU.
    """

    title: str
    objective: Objective
    rows: Rows
    evaluate: Evaluate
    graft: Callable[[tuple[str, ...]], Params] | None
    grafted: tuple[str, ...]
    flops_per_step: float


def first_state(job: Job, settings: Settings, program: Program, restored: TrainState | None) -> TrainState:
    """Returns the state to go on from: own checkpoint > another run's parameters > random.

    Args:
        job: what is trained.
        settings: the config.
        program: of both.
        restored: what the run's checkpoint held, which is what trains; None: there is none.
    """
    frozen = tuple(program.state.frozen)
    if restored is not None and not frozen:
        return restored
    if restored is not None and job.graft is not None:
        return restored._replace(frozen=_as_frozen(job, program, job.graft(frozen)))
    state = program.initialise(jax.random.key_data(jax.random.key(settings.seed)))
    if restored is not None:
        return restored._replace(frozen=state.frozen)
    if job.graft is None:
        return state
    grafted = job.graft(job.grafted)
    new = [
        f"{group} ({len(jax.tree.leaves(tree))} leaves)" for group, tree in state.params.items() if group not in grafted
    ]
    trained, kept = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (state.params, state.frozen))
    say(
        f"{job.title}: loaded {len(jax.tree.leaves(grafted))} leaves; new: {', '.join(new) or 'none'}; "
        f"{trained:,} of {trained + kept:,} parameters train ({trained / (trained + kept):.2%})"
    )
    params = state.params | {group: tree for group, tree in grafted.items() if group in state.params}
    return state._replace(params=params, frozen=state.frozen | _as_frozen(job, program, grafted))


def _as_frozen(job: Job, program: Program, groups: Params) -> Params:
    """Returns the groups that do not train, as the step reads them."""
    frozen = program.state.frozen
    shardings = jax.tree.map(lambda leaf: leaf.sharding, frozen)

    def cast(groups: Params) -> Params:
        return {group: tree for group, tree in job.objective.cast(groups).items() if group in frozen}

    return jax.jit(cast, out_shardings={g: shardings[g] for g in groups if g in frozen})(groups) if frozen else {}
