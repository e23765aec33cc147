"""Exports a run as a Hugging Face checkpoint."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs.errors import UserError
from data.tokenizer import load_tokenizer
from model.huggingface import Row, expected_shapes, group_of, leaves, table
from model.huggingface_config import architecture_of, class_prefix, to_config
from model.transformer import Params
from train.console import say
from train.distributed.mesh import single_device_mesh
from train.huggingface.leaf_reader import Read, open_params
from train.huggingface.safetensors_files import write_weights
from train.run.record import RunRecord, read_record
from train.tasks.task import load_task

_DTYPES = ("float32", "bfloat16", "float16")


def export_hf(directory: Path, output: Path, dtype: str = "float32") -> None:
    """Writes a run's model in Hugging Face's format.

    Raises:
        UserError: no architecture of theirs computes the model, a head that they do not have, or `output` is not free.
    """
    if output.exists() and any(output.iterdir()):
        raise UserError(f"--output={output} exists and is not empty; legal: a new directory")
    record = read_record(directory)
    architecture = architecture_of(record.model)
    rows, classes = _rows(directory, record, architecture)
    tokenizer = load_tokenizer(directory / "tokenizer")
    config = to_config(
        architecture, record.model, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, dtype
    ) | _classification(architecture, classes)
    mesh = single_device_mesh()
    temporary = output.with_name(f".{output.name}.partial-{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        with jax.set_mesh(mesh), open_params(directory, record.model, mesh) as (params, read):
            write_weights(temporary, _shapes(params, rows), dtype, _tensors(params, rows, read))
        (temporary / "config.json").write_text(json.dumps(config, indent=2))
        # A tokenizer that came from elsewhere frames language models' texts as it always did; ours says how.
        framed = classes or (tokenizer.starts_with_bos and not json.loads(tokenizer.serialized)["post_processor"])
        (tokenizer.with_frame(eos=bool(classes)) if framed else tokenizer).save(temporary)
        if output.exists():
            output.rmdir()
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    say(f"export-hf: {config['architectures'][0]} in {output}")


def _rows(directory: Path, record: RunRecord, architecture: str) -> tuple[list[Row], list[str]]:
    """Returns the table of a run's model and its classes, which a language model has none of."""
    if record.stage == "pretrain" or load_task(record.task["name"]).trains_lm_head:
        return table(architecture, record.model), []
    task = record.task
    if task["name"] != "classification" or task["pooling"] != "last":
        raise UserError(
            f"{directory} is a {task['name']} model"
            + (f" of pooling {task['pooling']!r}" if "pooling" in task else "")
            + "; legal to export: language models, and classifiers trained with config.task.pooling=last"
        )
    backbone = [row for row in table(architecture, record.model) if row.leaf != "table"]
    return [*backbone, Row("table", "score.weight")], task["classes"]


def _classification(architecture: str, classes: list[str]) -> dict[str, Any]:
    if not classes:
        return {}
    return {
        "architectures": [f"{class_prefix(architecture)}ForSequenceClassification"],
        "id2label": {str(i): name for i, name in enumerate(classes)},
        "label2id": {name: i for i, name in enumerate(classes)},
        "num_labels": len(classes),
    }


def _shapes(params: Params, rows: list[Row]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of their tensors in the order in which `_tensors` has them."""
    shapes = expected_shapes(params, rows)
    names = [key for row, leaf in leaves(params, rows) if row.last for key in row.keys(leaf.shape[0])]
    return {name: shapes[name] for name in names}


def _tensors(params: Params, rows: list[Row], read: Read) -> Iterator[np.ndarray]:
    """Yields their tensors; those that several of our leaves make up are joined."""
    parts: dict[str, list[np.ndarray]] = {}
    for row, leaf in leaves(params, rows):
        host = np.asarray(read(f"{group_of(row)}/{row.leaf}"))
        for i, key in enumerate(row.keys(leaf.shape[0])):
            tensors = [*parts.pop(key, []), row.to_theirs(host[i] if row.stacked else host)]
            if not row.last:
                parts[key] = tensors
            else:
                yield np.concatenate(tensors, axis=-1) if len(tensors) > 1 else tensors[0]
