"""Scores a model: a foundation model on text, a fine-tuned one on labelled rows.

rootstock evaluate --checkpoint=runs/tiny --text='held_out/*.txt' --json
rootstock evaluate --checkpoint=runs/intent --data=test.jsonl --json
"""

import json
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh
from rich.console import Console

from configs.errors import UserError
from data.labelled import read_examples
from data.packing import PackedRows
from data.sources import read_documents
from data.store import store_from_documents
from data.tokenizer import load_tokenizer
from model.transformer import Params
from train import run as runs
from train.distributed import is_first
from train.mesh import scoring_mesh
from train.proof.interval import as_json
from train.proof.metrics import require
from train.scoring import language_model_evaluator
from train.settings import from_config
from train.task_rows import Predictor, render_rows, with_reference
from train.tasks.contract import load

REQUIRED = ("checkpoint",)
MULTI_PROCESS = True
_BATCH_SIZE = 16


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("checkpoint", None, "Directory of a run.", flag_values=values)
    flags.DEFINE_string("text", "", "Foundation model: file, glob or hf:NAME of text.", flag_values=values)
    flags.DEFINE_string("data", "", "Fine-tuned model: labelled rows, columns as in training.", flag_values=values)
    flags.DEFINE_boolean("json", False, "Print one JSON object.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command; prints nats_per_token, bits_per_byte, tokens, or the task's metrics with intervals."""
    directory = Path(values.checkpoint)
    record = runs.read_record(directory)
    wanted = "text" if record.stage == "pretrain" else "data"
    if not values[wanted].value:
        raise UserError(f"--{wanted} is missing: {directory} is a {record.stage} run")
    mesh = scoring_mesh()
    with jax.set_mesh(mesh):
        figures = _score_text(directory, record, values.text, mesh) if wanted == "text" else _score_rows(
            directory, record, values.data, mesh
        )  # fmt: skip
    if is_first() and values.json:
        print(json.dumps(figures))
    elif is_first():
        Console().print(figures)


def _score_text(directory: Path, record: runs.RunRecord, pattern: str, mesh: Mesh) -> dict[str, Any]:
    tokenizer = load_tokenizer(directory / "tokenizer")
    texts = list(read_documents(pattern, text_field=record.config["data"]["text_field"]))
    encoded = [[tokenizer.bos_id, *ids, tokenizer.eos_id] for ids in tokenizer.encode_batch(texts)]
    rows = PackedRows(store_from_documents(encoded), record.config["sequence_length"])
    objective = runs.objective_of(record, record.model)
    params = runs.load_params(directory, objective, mesh)
    token_bytes = tokenizer.token_bytes(record.model.vocab_size)
    figures = language_model_evaluator(objective, token_bytes, rows, _batch_size(mesh), 0, mesh)(params)
    return {
        "nats_per_token": figures["loss"],
        "bits_per_byte": figures["bits_per_byte"],
        "tokens": int(figures["targets"]),
    }


def _score_rows(directory: Path, record: runs.RunRecord, path: str, mesh: Mesh) -> dict[str, Any]:
    require()
    settings = from_config(record.config)
    task, facts = load(record.task["name"]), record.task
    tokenizer = load_tokenizer(directory / "tokenizer")
    examples = read_examples(path, lambda row: task.parse(row, settings.task))
    part = render_rows(task, facts, examples, tokenizer, settings.sequence_length, seed=0)
    objective = runs.objective_of(record, record.model)
    params = runs.load_params(directory, objective, mesh)
    if task.reference:
        part = with_reference(part, record.model, _foundation(record, mesh), _batch_size(mesh), mesh)
    predictor = Predictor(
        task,
        facts,
        objective,
        settings.adapt,
        record.model,
        tokenizer,
        _batch_size(mesh),
        settings.task.max_new_tokens,
        mesh,
    )
    metrics = task.metrics(part.examples, predictor(params, part), None, facts)
    return {"rows": len(part.examples), **as_json(metrics)}


def _foundation(record: runs.RunRecord, mesh: Mesh) -> Params:
    """Returns the language model that a run was grafted from."""
    return runs.load_plain(Path(record.lineage[-1]["directory"]), record.model, mesh, ("backbone", "head"))


def _batch_size(mesh: Mesh) -> int:
    return -(-_BATCH_SIZE // mesh.size) * mesh.size


if __name__ == "__main__":
    import sys

    from train.cli import main

    main(["evaluate", *sys.argv[1:]])
