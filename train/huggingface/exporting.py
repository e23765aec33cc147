"""Exports a run as a Hugging Face checkpoint."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs.errors import UserError
from data.new_directory import check_new, new_directory
from model.huggingface import Row, expected_shapes, group_of, leaves, table
from model.huggingface_config import architecture_of, class_prefix, to_config
from model.transformer import Params
from train.console import say
from train.distributed.mesh import single_device_mesh
from train.huggingface.leaf_reader import Read, open_params
from train.huggingface.safetensors_files import write_weights
from train.run.record import Run, open_run

_DTYPES = ("float32", "bfloat16", "float16")


def export_hf(directory: Path, output: Path, dtype: str = "float32") -> None:
    """Writes a run's model as a Hugging Face checkpoint.

    Raises:
        UserError: no Hugging Face architecture matches the model or its head, or `output` is not empty.
    """
    check_new(output)
    run = open_run(directory)
    architecture = architecture_of(run.model)
    rows, classes = _rows(run, architecture)
    tokenizer = run.tokenizer()
    config = to_config(
        architecture, run.model, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, dtype
    ) | _classification(architecture, classes)
    mesh = single_device_mesh()
    with new_directory(output) as partial:
        with jax.set_mesh(mesh), open_params(run, mesh) as (params, read):
            write_weights(partial, _shapes(params, rows), dtype, _tensors(params, rows, read))
        (partial / "config.json").write_text(json.dumps(config, indent=2))
        # An imported tokenizer keeps its own post-processor; ours has none and needs one that adds special tokens.
        framed = classes or (tokenizer.starts_with_bos and not json.loads(tokenizer.serialized)["post_processor"])
        (tokenizer.with_post_processor(eos=bool(classes)) if framed else tokenizer).save(partial)
    say(f"export-hf: {config['architectures'][0]} in {output}")


def _rows(run: Run, architecture: str) -> tuple[list[Row], list[str]]:
    """Returns the parameter table of a run's model and its classes (empty for a language model)."""
    if run.is_language_model:
        return table(architecture, run.model), []
    task = run.record.task
    if task["name"] != "classification" or task["pooling"] != "last":
        raise UserError(
            f"{run.directory} is a {task['name']} model"
            + (f" with pooling {task['pooling']!r}" if "pooling" in task else "")
            + "; expected a language model, or a classifier trained with config.task.pooling=last"
        )
    backbone = [row for row in table(architecture, run.model) if row.leaf != "table"]
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
    """Returns the shapes of the Hugging Face tensors, in the order of `_tensors`."""
    shapes = expected_shapes(params, rows)
    names = [key for row, leaf in leaves(params, rows) if row.last for key in row.keys(leaf.shape[0])]
    return {name: shapes[name] for name in names}


def _tensors(params: Params, rows: list[Row], read: Read) -> Iterator[np.ndarray]:
    """Yields the Hugging Face tensors; a tensor that consists of several of our leaves is concatenated."""
    parts: dict[str, list[np.ndarray]] = {}
    for row, leaf in leaves(params, rows):
        host = np.asarray(read(f"{group_of(row)}/{row.leaf}"))
        for i, key in enumerate(row.keys(leaf.shape[0])):
            tensors = [*parts.pop(key, []), row.to_theirs(host[i] if row.stacked else host)]
            if not row.last:
                parts[key] = tensors
            else:
                yield np.concatenate(tensors, axis=-1) if len(tensors) > 1 else tensors[0]
