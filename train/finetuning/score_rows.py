"""The metrics of a fine-tuned run on any labeled rows."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from data.filters.contamination import texts_of
from data.labeled import Example, read_examples
from data.storage.paths import at
from data.tokenizer import Tokenizer
from model.heads import Objective
from train.console import say_skipped, say_unread
from train.distributed.mesh import spread_mesh
from train.evaluation.contamination import LookUp
from train.evaluation.interval import as_json
from train.evaluation.metrics import require
from train.finetuning.predictor import Predictor
from train.finetuning.rows import encode_rows, say_dropped, say_unseen, with_reference
from train.generation.language_model import LanguageModel
from train.run.calibration import read_calibration, read_ensemble
from train.run.record import Run, open_run
from train.settings import from_config
from train.tasks.loading import task_from_record
from train.tasks.task import Prediction, Task, row_rules
from train.trees import boxed_params

_BATCH_SIZE = 16


def score_rows(opened: Run, path: str, look_up: LookUp | None = None) -> dict[str, Any]:
    """Returns the metrics of a fine-tuned run on labeled rows, with their number as "rows".

    Args:
        opened: the run.
        path: files with the columns that the run was trained on.
        look_up: looks for the rows in the training text, and adds the metrics on the other rows, "NAME_rest".

    Raises:
        UserError: rows or a checkpoint that cannot be read.
    """
    objective = opened.objective()
    mesh = spread_mesh(boxed_params(objective))
    with jax.set_mesh(mesh):
        return _score_on(mesh, objective, opened, path, look_up)


def _score_on(mesh: Mesh, objective: Objective, opened: Run, path: str, look_up: LookUp | None) -> dict[str, Any]:
    require()
    settings = dataclasses.replace(from_config(opened.record.config), batch_size=_batch_size(mesh))
    task = task_from_record(opened.record.task)
    tokenizer = opened.tokenizer()
    skipped: Counter[str] = Counter()
    class_names = not row_rules(settings.task).first_version
    parse = functools.partial(task.parse, settings=settings.task)
    examples = read_examples(path, parse, settings.data.strict, skipped, class_names)
    say_skipped("evaluate", skipped)
    say_unread("evaluate", path)
    part = encode_rows(task, examples, tokenizer, settings.sequence_length, seed=0)
    params = opened.load(mesh)
    if task.needs_reference:
        part = with_reference(part, load_reference(opened, tokenizer, mesh), settings.batch_size)
    ensemble = read_ensemble(opened, read_calibration(opened))
    predictor = Predictor(task, objective, opened.model, tokenizer, settings, mesh, ensemble)
    predictions = predictor(params, part)
    metrics = task.metrics(part.examples, predictions)
    unseen = say_unseen("evaluate", task, part.examples)
    dropped = say_dropped("evaluate", part, settings.sequence_length)
    counts = {"rows": len(part.examples)} | ({"unseen_label_rows": unseen} if unseen else {})
    counts |= {"dropped_rows": dropped} if dropped else {}
    rest = _score_rest(task, part.examples, predictions, look_up) if look_up is not None else {}
    return {**counts, **as_json(metrics), **rest}


def _score_rest(
    task: Task[Any], examples: Sequence[Example], predictions: Sequence[Prediction], look_up: LookUp
) -> dict[str, Any]:
    """Returns the share of the rows that are in the training text, and the metrics on the other ones, "NAME_rest"."""
    found = look_up([tuple(texts_of(dict(example.fields))) for example in examples])
    kept = np.flatnonzero(~found.found).tolist()
    metrics = as_json(task.metrics([examples[i] for i in kept], [predictions[i] for i in kept])) if len(kept) else {}
    return found.figures() | {f"{name}_rest": value for name, value in metrics.items()}


def load_reference(opened: Run, tokenizer: Tokenizer, mesh: Mesh) -> LanguageModel:
    """Returns the language model that a run was fine-tuned from."""
    foundation = open_run(at(opened.record.lineage[-1]["directory"])).with_model(opened.model)
    params = foundation.load_merged(mesh, ("backbone", "head"))
    return LanguageModel(opened.model, params, tokenizer, "", tokenizer.eos_id, mesh)


def _batch_size(mesh: Mesh) -> int:
    return -(-_BATCH_SIZE // mesh.size) * mesh.size
