"""Exports a run as a Hugging Face checkpoint."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from configs.errors import UserError
from data.chat_export import to_jinja
from data.storage.new_directory import check_new, new_directory
from data.templates import end_of_turn
from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.huggingface.config_file import architecture_of, to_config
from model.huggingface.families import table
from model.huggingface.weights import Row, expected_shapes, group_of, leaves
from model.transformer import Params
from train.console import say, warn
from train.distributed.mesh import single_device_mesh
from train.huggingface.card_metadata import DEFAULT_OPTIONS, CardOptions
from train.huggingface.exported_tokenizer import framed, save_tokenizer, with_own_pad
from train.huggingface.generation_config import FILE as GENERATION_FILE
from train.huggingface.generation_config import generation_config
from train.huggingface.heads import Head, head_edits, head_of
from train.huggingface.leaf_reader import Read, open_params
from train.huggingface.model_card import write_card
from train.huggingface.safetensors_files import write_weights
from train.run.calibration import read_calibration
from train.run.language_model import trained_template_of
from train.run.record import Run, open_run

_EMBEDDING, _HEAD, _NORM_BIAS = "embedding/table", "table", "final_norm/bias"
_Edits = Mapping[str, Callable[[np.ndarray], np.ndarray]]


def export_hf(directory: Path, output: Path, dtype: str = "float32", card: CardOptions = DEFAULT_OPTIONS) -> None:
    """Writes a run's model as a Hugging Face checkpoint, with a model card.

    Raises:
        UserError: no Hugging Face architecture matches the model or its head, or `output` is not empty.
    """
    check_new(output)
    run = open_run(directory)
    described, attention = _described(run)
    architecture = architecture_of(described, run.record.architecture)
    head = head_of(run, architecture)
    rows = table(architecture, run.model)
    if head.row is not None:
        rows = [*(row for row in rows if row.leaf != _HEAD), head.row]
    tokenizer = framed(_tokenizer(run, head), classifier=head.framed)
    # A pad token that was added to the tokenizer may need a row of its own.
    model = dataclasses.replace(described, vocab_size=max(run.model.vocab_size, tokenizer.vocab_size))
    ids = _special_ids(tokenizer)
    config = to_config(architecture, model, dtype) | ids | attention | {"architectures": [head.name], **head.config}
    max_length = run.record.config["sequence_length"] if head.framed else model.context_length
    mesh = single_device_mesh()
    with new_directory(output) as partial:
        with jax.set_mesh(mesh), open_params(run, mesh) as (params, read):
            shapes = _shapes(params, rows, head, model.vocab_size)
            edits = _edits(head, rows, read, model.vocab_size)
            write_weights(partial, shapes, dtype, _tensors(params, rows, read, edits, shapes))
        (partial / "config.json").write_text(json.dumps(config, indent=2))
        save_tokenizer(tokenizer, partial, max_length, classifier=head.framed)
        if run.is_language_model:
            generation = generation_config(ids, run.record.generation)
            (partial / GENERATION_FILE).write_text(json.dumps(generation, indent=2))
        write_card(run, partial, output.name, card)
    calibration = read_calibration(run)
    if calibration is not None and calibration.weights is not None:
        warn("export-hf: the linear SVM that joins this model is not exported; the export predicts as the model alone")
    say(f"export-hf: {head.name} in {output}")


def _described(run: Run) -> tuple[ModelConfig, dict[str, bool]]:
    """Returns (the causal model whose config.json describes a run's model, the field for attention in both directions).

    The models of `transformers` attend in both directions if `is_causal` is false. A window of theirs then reaches as
    many tokens as it says in each direction, while ours counts the query as well.

    Raises:
        UserError: a window of one token, which theirs cannot be.
    """
    if run.model.causal:
        return run.model, {}
    windows = run.model.sliding_window
    if 1 in windows:
        raise UserError(f"{run.directory} has a window of 1 token and attention in both directions; expected 0 or 2")
    reach = tuple(max(window - 1, 0) for window in windows)
    return dataclasses.replace(run.model, causal=True, sliding_window=reach), {"is_causal": False}


def _tokenizer(run: Run, head: Head) -> Tokenizer:
    """Returns the run's tokenizer with the template and all ends of turns of a chat model, or a classifier's pad."""
    tokenizer = run.tokenizer()
    if not run.is_language_model:
        return dataclasses.replace(with_own_pad(tokenizer) if head.pooled else tokenizer, end_ids=())
    template = trained_template_of(run)
    if not template:
        return tokenizer
    ends = tuple(index for index in (end_of_turn(template, tokenizer), *tokenizer.end_ids) if index != tokenizer.eos_id)
    jinja = tokenizer.chat_template if template == "tokenizer" else to_jinja(template, tokenizer)
    return dataclasses.replace(tokenizer, chat_template=jinja, end_ids=tuple(dict.fromkeys(ends)))


def _special_ids(tokenizer: Tokenizer) -> dict[str, int | list[int]]:
    """Returns the ids of bos, eos and pad; a model with several ends has a list of them."""
    ends = [tokenizer.eos_id, *tokenizer.end_ids]
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": ends if len(ends) > 1 else ends[0],
        "pad_token_id": tokenizer.pad_id,
    }


def _key(rows: list[Row], leaf: str) -> str:
    """Returns the name of the tensor of a leaf, or "" if the model does not have it."""
    return next((row.key for row in rows if row.leaf == leaf), "")


def _shapes(params: Params, rows: list[Row], head: Head, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the Hugging Face tensors, in the order of `_tensors`."""
    expected = expected_shapes(params, rows)
    shapes = {key: expected[key] for row, leaf in leaves(params, rows) if row.last for key in row.keys(leaf.shape[0])}
    embedding = _key(rows, _EMBEDDING)
    shapes[embedding] = (vocab_size, *shapes[embedding][1:])
    return shapes | ({head.bias: shapes[_key(rows, _HEAD)][:1]} if head.bias else {})


def _edits(head: Head, rows: list[Row], read: Read, vocab_size: int) -> _Edits:
    """Returns {tensor name: how the exported tensor differs from the run's}."""
    weights_VD = np.asarray(read(f"head/{_HEAD}")) if head.row is not None else np.zeros((0, 0))
    edits = head_edits(head, weights_VD, _key(rows, _NORM_BIAS))
    return edits | {_key(rows, _EMBEDDING): lambda table: np.pad(table, ((0, vocab_size - len(table)), (0, 0)))}


def _tensors(
    params: Params, rows: list[Row], read: Read, edits: _Edits, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[np.ndarray]:
    """Yields the Hugging Face tensors; one that consists of several of our leaves when the last of them is read."""
    parts: dict[str, np.ndarray] = {}
    written = set()
    for row, leaf in leaves(params, rows):
        host = np.asarray(read(f"{group_of(row)}/{row.leaf}"))
        for key, piece in zip(row.keys(leaf.shape[0]), row.pieces(host), strict=True):
            tensor = row.to_theirs(piece, parts.pop(key, None))
            if not row.last:
                parts[key] = tensor
                continue
            written.add(key)
            yield edits[key](tensor) if key in edits else tensor
    # The bias of a head, which ours do not have.
    yield from (np.zeros(shape, np.float32) for key, shape in shapes.items() if key not in written)
