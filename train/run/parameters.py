"""Loads the parameters of a run onto a mesh."""

from pathlib import Path

from jax.sharding import Mesh

from configs.errors import UserError
from configs.schema import build
from model.adapt import Adaptation, adapt, merge
from model.config import ModelConfig
from model.heads import Objective, language_model
from model.transformer import Params
from train.checkpoint.manager import BEST_DIR, CHECKPOINTS_DIR
from train.checkpoint.restore import restore_params
from train.run.record import RunRecord, read_record
from train.settings import LossSettings
from train.tasks.task import task_from_record
from train.trees import abstract_params


def objective_of(record: RunRecord, model: ModelConfig, adapted: bool = True) -> Objective:
    """Returns the `Objective` that a run trained, run as `model` says; without `adapted` one in which all trains."""
    if record.stage == "pretrain":
        return language_model(model, chunk=record.config["loss"]["chunk"])
    loss = build(LossSettings, record.config["loss"], "config.loss")
    objective = task_from_record(record.task).objective(model, loss)
    return adapt(objective, adaptation_of(record)) if adapted else objective


def adaptation_of(record: RunRecord) -> Adaptation:
    """Returns which parameters a run trained."""
    return build(Adaptation, record.config["adapt"], "config.adapt")


def load_params(
    directory: Path,
    objective: Objective,
    mesh: Mesh,
    groups: tuple[str, ...] | None = None,
    frozen: Params | None = None,
) -> Params:
    """Returns a run's parameters, laid out on `mesh`: the best where it kept them, else the newest.

    Args:
        directory: of the run.
        objective: that it trained.
        mesh: where they go.
        groups: which to read; None: all.
        frozen: the groups that did not train, where a caller has them, such as those that several adapters share;
            None: they are read from the run that it was grafted from.

    Raises:
        UserError: see `checkpoint.restore_params`; or the run that holds the other groups is gone or another one.
    """
    record = read_record(directory)
    abstract = abstract_params(objective, mesh)
    groups = tuple(abstract) if groups is None else groups
    own = tuple(group for group in groups if group in objective.trained)
    other = tuple(group for group in groups if group not in own)
    params = restore_params(directory, abstract, mesh, own, checkpoint_dir_of(directory, record)) if own else {}
    if other:
        held = _of_foundation(directory, record, mesh, other) if frozen is None else frozen
        params |= {group: held[group] for group in other}
    return params


def checkpoint_dir_of(directory: Path, record: RunRecord) -> str:
    """Returns which of a run's checkpoints its parameters are read from: the best where it kept them."""
    return BEST_DIR if record.config["checkpoint"]["best"] and (directory / BEST_DIR).is_dir() else CHECKPOINTS_DIR


def _of_foundation(directory: Path, record: RunRecord, mesh: Mesh, groups: tuple[str, ...]) -> Params:
    """Returns groups of the run that a run was grafted from, and which it did not train."""
    parent = record.lineage[-1]
    path = Path(parent["directory"])
    if not (path / "run.json").is_file() or read_record(path).data_fingerprint != parent["data_fingerprint"]:
        raise UserError(
            f"{directory} holds only what it trained, and the foundation it was grafted onto, {path}, is gone or "
            "another run; legal: put it back, or use what `rootstock merge` made of both"
        )
    return load_merged_params(path, record.model, mesh, groups)


def load_merged_params(directory: Path, model: ModelConfig, mesh: Mesh, groups: tuple[str, ...]) -> Params:
    """Returns groups of a run's parameters, with its adapter, if it has one, added into the backbone.

    Raises:
        UserError: see `load_params`.
    """
    record = read_record(directory)
    objective = objective_of(record, model)
    if "adapter" not in objective.trained:
        return load_params(directory, objective, mesh, groups)
    params = load_params(directory, objective, mesh)
    merged = merge(params, adaptation_of(record))
    return {group: merged[group] for group in groups}
