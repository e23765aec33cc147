"""The models of the before/after table: baselines, the model from random initialization, the fine-tuned model."""

import dataclasses
import math
from collections.abc import Sequence

from configs.errors import UserError
from model.flops import training_flops_per_token
from model.heads import Objective
from model.transformer import Params
from train.checkpoint.manager import saved_steps
from train.evaluation.scoring import held_out_loss
from train.finetuning.baselines import alternatives, constant_baseline, foundation_head, prompted_foundation
from train.finetuning.confidence import calibrate, score_confidence
from train.finetuning.ensembling import joined_by_linear_model
from train.finetuning.finetune_run import FinetuneRun, Scored, measured, score
from train.finetuning.learning_rate import for_all_weights
from train.finetuning.predictor import Predictor
from train.finetuning.rows import first_rows, with_reference
from train.finetuning.task_text import train_on_task_text
from train.generation.language_model import LanguageModel
from train.job import Evaluate, Job
from train.loop import fit
from train.run.calibration import newest_step
from train.run.length import earlier_lengths
from train.run.record import Run
from train.tasks.task import Fitted, Prediction

RANDOM_INIT, FINE_TUNED = "random initialization", "fine-tuned"
RANDOM_INIT_DIR = "from_random"


def compare(run: FinetuneRun) -> list[Scored]:
    """Trains and scores every model of the table; the last row is the one that predicts.

    That is the fine-tuned model, alone or joined by a linear model.

    Raises:
        UserError: see `loop.fit`; or the task trains a language-model head and the foundation has none.
    """
    task = run.data.task
    table, learned = constant_baseline(run), dict[str, Fitted]()
    if run.settings.task.alternatives:
        rows, learned = alternatives(run)
        table += rows
    run, foundation_rows = _score_foundation(run)
    table += foundation_rows
    zero_shot = foundation_rows[0].predictions if foundation_rows and task.zero_shot == "head" else None
    # Metrics relative to the foundation's log-probabilities mean nothing for random weights.
    if run.settings.task.baseline and not task.needs_reference:
        table.append(_train_and_score(run, RANDOM_INIT, zero_shot))
    train_on_task_text(run)
    table.append(_train_and_score(run, FINE_TUNED, zero_shot))
    return table + joined_by_linear_model(run, table, learned)


def with_references(run: FinetuneRun) -> FinetuneRun:
    """Returns the run with the foundation's log-probabilities in its rows, if the task needs them."""
    foundation = load_foundation(run) if run.data.task.needs_reference else None
    return run if foundation is None else _with_references(run, foundation)


def _with_references(run: FinetuneRun, foundation: LanguageModel) -> FinetuneRun:
    parts = {n: with_reference(part, foundation, run.settings.batch_size) for n, part in run.data.parts.items()}
    return dataclasses.replace(run, data=dataclasses.replace(run.data, parts=parts))


def _score_foundation(run: FinetuneRun) -> tuple[FinetuneRun, list[Scored]]:
    """Returns (the run, with references if the task needs them; the foundation's rows).

    The foundation's parameters are freed on return, before training.
    """
    task = run.data.task
    foundation = load_foundation(run)
    if foundation is None:
        return run, []
    if task.needs_reference:
        run = _with_references(run, foundation)
    if not run.settings.task.zero_shot_rows:
        return run, []
    if task.zero_shot == "prompt":
        return run, prompted_foundation(run, foundation)
    predictor = _predictor(run, run.objective(adapted=False))
    return run, foundation_head(run, foundation, predictor)


def load_foundation(run: FinetuneRun) -> LanguageModel | None:
    """Returns the foundation as a language model; None if it is not one, or is neither scored nor a reference.

    Raises:
        UserError: the task trains a language-model head and the foundation has none.
    """
    task = run.data.task
    has_lm_head = run.foundation.is_language_model
    if task.trains_lm_head and not has_lm_head:
        raise UserError(
            f"--init_from={run.foundation.directory} is a {run.foundation.record.task['name']} model and cannot "
            f"generate text; config.task.name={run.settings.task.name!r} needs a pre-trained model, or one fine-tuned "
            "to generate text"
        )
    scored = run.settings.task.zero_shot_rows and task.zero_shot != "none"
    if not has_lm_head or not (scored or task.needs_reference):
        return None
    tokenizer = run.data.tokenizer
    params = run.foundation.load_merged(run.mesh, ("backbone", "head"))
    return LanguageModel(run.foundation.model, params, tokenizer, "", tokenizer.eos_id, run.mesh)


def _train_and_score(run: FinetuneRun, name: str, zero_shot: Sequence[Prediction] | None) -> Scored:
    """Trains one model of the table and scores it on the held-out examples."""
    from_foundation = name == FINE_TUNED
    workdir = run.workdir if from_foundation else run.workdir / RANDOM_INIT_DIR
    workdir.mkdir(parents=True, exist_ok=True)
    # Without a foundation to adapt, all parameters train.
    objective = run.objective(adapted=from_foundation)
    settings = run.settings if from_foundation else for_all_weights(run.settings, run.record.model.embed_dim)
    predictor = _predictor(run, objective)
    evaluate, better = _evaluation(run, objective, predictor)
    job = dataclasses.replace(finetuning_job(run, name, objective, evaluate, from_foundation), better=better)
    resumes, test = bool(saved_steps(workdir)), run.data.parts["test"]
    with measured() as cost:
        params = fit(job, settings, run.mesh, workdir)
        predictions, decisions = predictor.with_decisions(params, test)
        scored = score(run, name, test.examples, predictions, zero_shot)
        # What an earlier process spent is not known here.
        scored = dataclasses.replace(scored, cost=None if resumes else cost())
    if not from_foundation or decisions is None:
        return scored
    _, validation = predictor.with_decisions(params, run.data.parts["validation"])
    if validation is None or not len(validation.labels) or not len(decisions.labels):
        return scored
    # What calibrates is learned from the validation rows.
    found = calibrate(run.data.task, validation, newest_step(Run(run.workdir, run.record)))
    confidence = score_confidence(run.data.task, found, decisions, test.examples)
    return dataclasses.replace(scored, decisions=(validation, decisions), confidence=confidence)


def _predictor(run: FinetuneRun, objective: Objective) -> Predictor:
    return Predictor(run.data.task, objective, run.record.model, run.data.tokenizer, run.settings, run.mesh)


def _evaluation(run: FinetuneRun, objective: Objective, predictor: Predictor) -> tuple[Evaluate, dict[str, str]]:
    """Returns (parameters -> loss and metrics on validation rows, metric -> which direction is better).

    There are as many rows as `config.evaluation.batches` says. No metrics for tasks that generate text. The directions
    are known from the first evaluation on.
    """
    better: dict[str, str] = {}
    task, batches = run.data.task, run.settings.evaluation.batches
    validation = first_rows(run.data.parts["validation"], batches * run.settings.batch_size)

    def evaluate(params: Params) -> dict[str, float]:
        loss = held_out_loss(objective, params, validation.rows, run.settings.batch_size, run.mesh)
        if task.generates:
            return {"loss": loss}
        metrics = task.metrics(validation.examples, predictor(params, validation))
        better.update((name, interval.better) for name, interval in metrics.items())
        return {"loss": loss} | {name: interval.value for name, interval in metrics.items()}

    return evaluate, better


def finetuning_job(
    run: FinetuneRun, title: str, objective: Objective, evaluate: Evaluate, from_foundation: bool = True
) -> Job:
    """Returns what the loop runs, starting from the foundation or from random initialization."""
    lm_head, rows = run.data.task.trains_lm_head, run.data.parts["train"].rows
    # The model needs logits at targets alone; the few outputs of a new head cost nothing compared to a vocabulary.
    outputs = math.ceil(run.record.model.vocab_size * rows.target_share) if lm_head else 1
    counted, length = dataclasses.replace(run.record.model, vocab_size=outputs), run.settings.sequence_length
    flops = training_flops_per_token(counted, length, run.settings.adapt if from_foundation else None)
    return Job(
        title=title,
        objective=objective,
        rows=rows,
        evaluate=evaluate,
        load_initial=(lambda groups: run.source.load_merged(run.mesh, groups)) if from_foundation else None,
        initial_groups=("backbone", "head") if lm_head else ("backbone",),
        flops_per_step=run.settings.batch_size * length * flops,
        earlier_lengths=earlier_lengths(run.record.length_changes, "." if from_foundation else RANDOM_INIT_DIR),
    )
