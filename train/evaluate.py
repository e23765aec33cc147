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
from data.packing import PackedRows
from data.sources import read_documents
from data.store import store_from_documents
from data.tasks import classification_rows, read_examples
from data.tokenizer import load_tokenizer
from train import report
from train import run as runs
from train.distributed import is_first
from train.mesh import scoring_mesh
from train.scoring import language_model_evaluator, predict

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
    objective = runs.objective_of(record, record.model, record.config["loss"]["chunk"])
    params = runs.load_params(directory, objective, mesh)
    token_bytes = tokenizer.token_bytes(record.model.vocab_size)
    figures = language_model_evaluator(objective, token_bytes, rows, _batch_size(mesh), 0, mesh)(params)
    return {
        "nats_per_token": figures["loss"],
        "bits_per_byte": figures["bits_per_byte"],
        "tokens": int(figures["targets"]),
    }


def _score_rows(directory: Path, record: runs.RunRecord, path: str, mesh: Mesh) -> dict[str, Any]:
    report.require_metrics()
    tokenizer = load_tokenizer(directory / "tokenizer")
    config, task = record.config, record.task
    examples = read_examples(path, config["data"]["text_field"], config["task"]["label_field"])
    rows = classification_rows(examples, task["classes"], tokenizer, config["sequence_length"], seed=0)
    objective = runs.objective_of(record, record.model)
    params = runs.load_params(directory, objective, mesh)
    labels, logits = predict(objective, params, rows, _batch_size(mesh), mesh)
    return {"rows": len(labels), **report.as_json(report.classification_metrics(labels, logits.argmax(-1)))}


def _batch_size(mesh: Mesh) -> int:
    return -(-_BATCH_SIZE // mesh.size) * mesh.size


if __name__ == "__main__":
    import sys

    from train.cli import main

    main(["evaluate", *sys.argv[1:]])
