"""Pre-training as a function: settings and text or a token store -> a run directory."""

import shutil
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from configs.errors import UserError
from data.loader import Rows
from data.packing import PackedRows
from data.prepare import DataChanged, StoreOptions, prepare, skipped_rows
from data.store import is_store, open_store, read_manifest
from data.tokenizer import Tokenizer, load_tokenizer
from model.config import ModelConfig
from model.flops import training_flops_per_token
from model.heads import Objective, language_model, parameter_count
from model.sharding import MESH_AXES
from train.console import say, say_skipped, step_progress
from train.distributed.mesh import apply_xla_flags, check_batch, make_mesh
from train.distributed.processes import is_process_zero, run_on_process_zero
from train.evaluation.scoring import language_model_evaluator
from train.job import Evaluate, Job
from train.loop import fit
from train.run.lock import claim
from train.run.parameters import load_merged_params
from train.run.record import RunRecord, lineage_entry, read_record, with_execution
from train.run.record import start as start_run
from train.run.results import NAME, add_results, training_summary
from train.settings import Settings, complete_model, from_config
from train.trees import boxed_params


def pretrain(
    config: dict[str, Any], workdir: Path, parent: Path | None = None, accept_changed_data: bool = False
) -> None:
    """Pre-trains as `config` says; see the command.

    Raises:
        UserError: a fault in the config, the data, the mesh or the checkpoint.
    """
    settings = from_config(config)
    apply_xla_flags(settings)
    mesh = make_mesh(settings.mesh)
    check_batch(settings, mesh)
    with claim(workdir):
        store = token_store(settings, workdir, parent, accept_changed_data)
        tokenizer = load_tokenizer(store)
        model, lineage = _architecture(settings, tokenizer, parent)
        train = open_store(store, "train")
        rows = PackedRows(train, settings.sequence_length)
        objective = objective_of(settings, model)
        files = read_manifest(store).get("files", [])
        record = RunRecord("pretrain", model, config, {}, train.fingerprint, lineage, files)
        start_run(workdir, record, tokenizer, accept_changed_data)
        count = parameter_count(boxed_params(objective))
        axes = ", ".join(f"{axis} {mesh.shape[axis]}" for axis in MESH_AXES)
        say(
            f"pretrain: {count:,} parameters, vocabulary {model.vocab_size:,}, {train.num_tokens:,} training tokens; "
            f"mesh {axes} ({jax.devices()[0].device_kind})"
        )
        with jax.set_mesh(mesh):
            evaluate = language_model_evaluator(
                objective,
                tokenizer.token_bytes(model.vocab_size),
                PackedRows(open_store(store, "validation"), settings.sequence_length),
                settings.batch_size,
                settings.evaluation.batches,
                mesh,
            )
            fit(job_of(settings, model, rows, parent, mesh, evaluate), settings, mesh, workdir)
        if is_process_zero():
            add_results(workdir / NAME, lambda held: held.update(training=training_summary(workdir)))
    say(f"pretrain: done; {workdir} holds the foundation model")


def objective_of(settings: Settings, model: ModelConfig) -> Objective:
    """Returns the `Objective` that a run trains."""
    loss = settings.loss
    return language_model(model, loss.z_loss, loss.chunk, loss.label_smoothing)


def job_of(
    settings: Settings, model: ModelConfig, rows: Rows, parent: Path | None, mesh: Mesh, evaluate: Evaluate
) -> Job:
    """Returns what the loop runs; `parent` is the run that its parameters come from."""
    return Job(
        title="pretrain",
        objective=objective_of(settings, model),
        rows=rows,
        evaluate=evaluate,
        graft=None if parent is None else lambda groups: load_merged_params(parent, model, mesh, groups),
        grafted=("backbone", "head"),
        flops_per_step=settings.batch_size
        * settings.sequence_length
        * training_flops_per_token(model, settings.sequence_length),
    )


def token_store(settings: Settings, workdir: Path, parent: Path | None, accept_changed_data: bool = False) -> Path:
    """Returns the store at `config.data.path`, or one made in `workdir` of the text there, made once.

    With `accept_changed_data` it is made anew where the text changed, by the tokenizer that the run has.

    Raises:
        UserError: there is no text, a fault in it, or it changed.
    """
    return Path(run_on_process_zero(lambda: _store(settings, workdir, parent, accept_changed_data)))


def _store(settings: Settings, workdir: Path, parent: Path | None, accept_changed_data: bool) -> str:
    """Returns the token store at `config.data.path`, or the one made inside the run of the text there."""
    data = settings.data
    if data.path and is_store(Path(data.path)):
        return data.path
    if not data.path:
        raise UserError(
            "config.data.path is empty; legal: a token store (rootstock prepare), a file, a glob or hf:NAME"
        )
    if not data.validation_fraction:
        raise UserError("config.data.validation_fraction is 0; legal: above 0, pretrain evaluates on what it holds out")
    options = StoreOptions(
        tokenizer=str(parent / "tokenizer") if parent else settings.tokenizer,
        text_field=data.text_field,
        validation_fraction=data.validation_fraction,
        validation_split=data.validation_split,
        seed=settings.seed,
        strict=data.strict,
    )

    def made(tokenizer: Tokenizer | None) -> dict[str, Any]:
        with step_progress() as progress:
            return prepare(data.path, workdir / "store", options, tokenizer, progress)

    begun = (workdir / "run.json").exists()
    try:
        # A store that a kill kept from being made anew is made by the run's tokenizer too.
        manifest = made(load_tokenizer(workdir / "tokenizer") if begun else None)
    except DataChanged as error:
        if not accept_changed_data or not begun:
            raise UserError(f"{error}, or --accept_changed_data") from None
        shutil.rmtree(workdir / "store")
        manifest = made(load_tokenizer(workdir / "tokenizer"))
    say_skipped("pretrain", skipped_rows(manifest))
    return str(workdir / "store")


def _architecture(
    settings: Settings, tokenizer: Tokenizer, parent: Path | None
) -> tuple[ModelConfig, list[dict[str, str]]]:
    """Returns (the model, its lineage): the config's own, or the parent run's, which must have the same tokenizer."""
    if parent is not None:
        record = read_record(parent)
        theirs = load_tokenizer(parent / "tokenizer")
        if theirs.sha256 != tokenizer.sha256:
            raise UserError(
                f"{settings.data.path} was tokenized with a vocabulary of {tokenizer.vocab_size} tokens that is not "
                f"that of {parent} ({theirs.vocab_size} tokens): run prepare --tokenizer={parent}/tokenizer"
            )
        return with_execution(record.model, settings.model), lineage_entry(parent, record)
    return complete_model(settings, tokenizer.vocab_size), []
