"""Pre-training: a config and text or a token store -> a run directory."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from configs.errors import UserError
from data.loader import Rows
from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.dtypes import compute_dtype
from model.flops import training_flops_per_token
from model.heads import parameter_count
from model.sharding import MESH_AXES
from model.transformer import Params
from train.console import say, warn
from train.corpus.opened import check_sources, open_corpus
from train.corpus.stores import token_stores
from train.distributed.mesh import apply_xla_flags, check_batch, make_mesh
from train.distributed.processes import is_process_zero
from train.evaluation.scoring import language_model_evaluator
from train.job import Evaluate, Job
from train.loop import fit
from train.run.length import earlier_lengths
from train.run.lock import claim
from train.run.longer_context import longer_context
from train.run.new_run import PRETRAIN_UNUSED, check_new_run, overridden_fields
from train.run.record import Run, RunRecord, open_run
from train.run.record import start as start_run
from train.run.results import NAME, add_results, training_summary
from train.run.rollback import skipped_batches
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
        UserError: the config, the data, the mesh or the checkpoint is invalid, or `parent` is no language model.
    """
    settings = from_config(config)
    source = None if parent is None else open_run(parent).with_execution(settings.model)
    if source is not None and not source.is_language_model:
        raise UserError(
            f"--init_from={parent} is a model for {source.record.task['name']}; expected a pre-trained run, or one "
            "that was fine-tuned to write text"
        )
    check_new_run(workdir, config, settings, PRETRAIN_UNUSED, None)
    # Not an error: a config file for pre-training describes a model, and --init_from replaces it.
    for text in overridden_fields(config, source) if source is not None else ():
        warn(f"pretrain: {text}")
    apply_xla_flags(settings)
    mesh = make_mesh(settings.mesh)
    check_batch(settings, mesh)
    with claim(workdir):
        corpus = open_corpus(token_stores(settings, workdir, parent, accept_changed_data), settings)
        tokenizer, rows = corpus.tokenizer, corpus.rows
        model, lineage = _architecture(settings, tokenizer, source)
        held_out = corpus.held_out()
        check_sources(rows, settings, skipped_batches(workdir), is_new=not (workdir / "run.json").exists())
        objective = objective_of(settings, model)
        record = RunRecord(
            "pretrain", model, config, {}, corpus.fingerprint, lineage, corpus.files, data_sources=corpus.fingerprints,
            architecture=source.record.architecture if source is not None else "",
            generation=source.record.generation if source is not None else {},
        )  # fmt: skip
        record = start_run(workdir, record, tokenizer, accept_changed_data)
        count = parameter_count(boxed_params(objective))
        axes = ", ".join(f"{axis} {mesh.shape[axis]}" for axis in MESH_AXES)
        say(
            f"pretrain: {count:,} parameters, vocabulary {model.vocab_size:,}, {corpus.num_tokens:,} training tokens; "
            f"mesh {axes} ({jax.devices()[0].device_kind}, {compute_dtype(model)})"
        )
        with jax.set_mesh(mesh):
            evaluate = language_model_evaluator(
                objective,
                tokenizer.token_bytes(model.vocab_size),
                held_out,
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


def _architecture(
    settings: Settings, tokenizer: Tokenizer, parent: Run | None
) -> tuple[ModelConfig, list[dict[str, str]]]:
    """Returns (model, lineage): the config's model, or the parent run's, which must have the same tokenizer.

    Raises:
        UserError: another tokenizer, or see `longer_context`.
    """
    if parent is not None:
        expected = parent.tokenizer()
        if expected.sha256 != tokenizer.sha256:
            raise UserError(
                f"{_data_name(settings)} was tokenized with another tokenizer ({tokenizer.vocab_size} tokens) than "
                f"{parent.directory} ({expected.vocab_size} tokens); "
                f"run rootstock prepare --tokenizer={parent.directory}/tokenizer"
            )
        return longer_context(parent, settings.sequence_length, "pretrain"), parent.lineage_entry()
    return complete_model(settings, tokenizer.vocab_size), []


def _data_name(settings: Settings) -> str:
    return settings.data.path or f"config.data.mixture ({', '.join(source.name for source in settings.data.mixture)})"
