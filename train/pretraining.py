"""Pre-training: a config and text or a token store -> a run directory."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from configs.errors import UserError
from data.loader import Rows
from data.packing import PackedRows
from data.prepare import DataChanged, StoreOptions, prepare, skipped_rows
from data.storage.files import delete_tree
from data.storage.paths import at
from data.store import is_store, open_store, read_manifest
from data.store_cache import cached_store
from data.tokenizer import Tokenizer, load_tokenizer
from model.config import ModelConfig
from model.flops import training_flops_per_token
from model.heads import parameter_count
from model.sharding import MESH_AXES
from model.transformer import Params
from train.console import say, say_skipped, step_progress, warn
from train.distributed.mesh import apply_xla_flags, check_batch, make_mesh
from train.distributed.processes import is_process_zero, run_on_process_zero
from train.evaluation.scoring import language_model_evaluator
from train.job import Evaluate, Job
from train.loop import fit
from train.run.length import earlier_lengths
from train.run.lock import claim
from train.run.new_run import PRETRAIN_UNUSED, check_new_run, overridden_fields
from train.run.record import Run, RunRecord, open_run
from train.run.record import start as start_run
from train.run.results import NAME, add_results, training_summary
from train.run.trackers import publish_results
from train.settings import Settings, complete_model, from_config
from train.step import objective_of
from train.trees import boxed_params

LoadGroups = Callable[[tuple[str, ...]], Params]


def pretrain(
    config: dict[str, Any], workdir: Path, parent: Path | None = None, accept_changed_data: bool = False
) -> None:
    """Trains a language model and writes checkpoints, metrics and results to `workdir`; resumes if it has a checkpoint.

    Args:
        config: the complete config.
        workdir: the run directory.
        parent: a run whose parameters are the initial ones (continued pre-training); None: random initialization.
        accept_changed_data: resume even if the text changed.

    Raises:
        UserError: the config, the data, the mesh or the checkpoint is invalid.
    """
    settings = from_config(config)
    source = None if parent is None else open_run(parent).with_execution(settings.model)
    check_new_run(workdir, config, settings, PRETRAIN_UNUSED, None)
    # Not an error: a config file for pre-training describes a model, and --init_from replaces it.
    for text in overridden_fields(config, source) if source is not None else ():
        warn(f"pretrain: {text}")
    apply_xla_flags(settings)
    mesh = make_mesh(settings.mesh)
    check_batch(settings, mesh)
    with claim(workdir):
        store = cached_store(token_store(settings, workdir, parent, accept_changed_data), settings.data.cache)
        tokenizer = load_tokenizer(store)
        model, lineage = _architecture(settings, tokenizer, source)
        train = open_store(store, "train")
        rows = PackedRows(train, settings.sequence_length)
        objective = objective_of(settings, model)
        files = read_manifest(store).get("files", [])
        architecture = source.record.architecture if source is not None else ""
        record = RunRecord("pretrain", model, config, {}, train.fingerprint, lineage, files, architecture=architecture)
        record = start_run(workdir, record, tokenizer, accept_changed_data)
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
            load_initial = None if source is None else lambda groups: source.load_merged(mesh, groups)
            job = job_of(settings, model, rows, load_initial, evaluate)
            job = dataclasses.replace(job, earlier_lengths=earlier_lengths(record.length_changes))
            fit(job, settings, mesh, workdir)
        if is_process_zero():
            training = {"training": training_summary(workdir)}
            add_results(workdir / NAME, lambda held: held.update(training))
            publish_results(workdir, settings, training)
    say(f"pretrain: done; the model is in {workdir}")


def job_of(
    settings: Settings, model: ModelConfig, rows: Rows, load_initial: LoadGroups | None, evaluate: Evaluate
) -> Job:
    """Returns the `Job` of a pre-training run.

    Args:
        settings: the config.
        model: the architecture.
        rows: training rows.
        load_initial: (names of groups) -> initial parameters from another run; None: random initialization.
        evaluate: see `Job`.
    """
    return Job(
        title="pretrain",
        objective=objective_of(settings, model),
        rows=rows,
        evaluate=evaluate,
        load_initial=load_initial,
        initial_groups=("backbone", "head"),
        flops_per_step=settings.batch_size
        * settings.sequence_length
        * training_flops_per_token(model, settings.sequence_length),
    )


def token_store(settings: Settings, workdir: Path, parent: Path | None, accept_changed_data: bool = False) -> Path:
    """Returns the token store at `config.data.path`; text there is tokenized into `workdir/store` on the first start.

    With `accept_changed_data`, text that changed is tokenized again with the run's tokenizer.

    Raises:
        UserError: the text is missing, invalid, or changed since the store was written.
    """
    return at(run_on_process_zero(lambda: _store(settings, workdir, parent, accept_changed_data)))


def _store(settings: Settings, workdir: Path, parent: Path | None, accept_changed_data: bool) -> str:
    """Process 0's part of `token_store`."""
    data = settings.data
    if data.path and is_store(at(data.path)):
        return data.path
    if not data.path:
        raise UserError(
            "config.data.path is empty; expected a token store (rootstock prepare), a file, a glob or hf:NAME"
        )
    if not data.validation_fraction:
        raise UserError("config.data.validation_fraction=0 leaves no text to evaluate on; expected a fraction above 0")
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
        # If a kill interrupted tokenizing changed text again, the run's own tokenizer must still be used.
        manifest = made(load_tokenizer(workdir / "tokenizer") if begun else None)
    except DataChanged as error:
        if not accept_changed_data or not begun:
            raise UserError(f"{error}, or --accept_changed_data") from None
        delete_tree(workdir / "store")
        manifest = made(load_tokenizer(workdir / "tokenizer"))
    say_skipped("pretrain", skipped_rows(manifest))
    return str(workdir / "store")


def _architecture(
    settings: Settings, tokenizer: Tokenizer, parent: Run | None
) -> tuple[ModelConfig, list[dict[str, str]]]:
    """Returns (model, lineage): the config's model, or the parent run's, which must have the same tokenizer."""
    if parent is not None:
        expected = parent.tokenizer()
        if expected.sha256 != tokenizer.sha256:
            raise UserError(
                f"{settings.data.path} was tokenized with another tokenizer ({tokenizer.vocab_size} tokens) than "
                f"{parent.directory} ({expected.vocab_size} tokens); "
                f"run rootstock prepare --tokenizer={parent.directory}/tokenizer"
            )
        return parent.model, parent.lineage_entry()
    return complete_model(settings, tokenizer.vocab_size), []
