"""Imports a Hugging Face checkpoint as a run directory."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from configs import default
from data.storage.new_directory import check_new, new_directory
from model.config import ModelConfig, model_config
from model.heads import language_model, parameter_count
from model.huggingface.config_file import to_section
from model.huggingface.families import FAMILIES, table
from model.huggingface.tables import FUSED_EXPERTS
from model.huggingface.weights import IGNORED, Row, compare_shapes, expected_shapes, group_of, leaves
from model.transformer import Params
from train.checkpoint.manager import open_manager
from train.checkpoint.save import save
from train.console import say, warn
from train.distributed.mesh import spread_mesh
from train.huggingface.imported_tokenizer import with_rows
from train.huggingface.safetensors_files import Weights
from train.huggingface.sources import IMPORTED, MODEL_FILES, on_this_machine, open_source
from train.huggingface.summary import Imported, summary
from train.run.record import RunRecord
from train.run.record import start as start_run
from train.step import TrainState
from train.trees import abstract_params, boxed_params

_EMBEDDING = "embedding/table"


def import_hf(source: str, output: Path, allow_pickle: bool = False) -> None:
    """Writes a run with a model's weights, tokenizer and chat template, and prints what it found.

    The run appears when it is complete.

    Args:
        source: a directory of Hugging Face's format, a name on the Hub, or a GGUF file.
        output: the run directory.
        allow_pickle: read pytorch_model.bin instead of safetensors.

    Raises:
        UserError: not a model, an unsupported architecture, weights or a tokenizer that do not match it, or `output`
            is not empty.
    """
    check_new(output)
    with on_this_machine(source, MODEL_FILES) as local:
        found = open_source(local, allow_pickle)
        architecture, section = to_section(found.config, found.config_name)
        model = model_config(section)
        tokenizer = with_rows(found.tokenizer(), model.vocab_size, found.where)
        generation = found.generation()
        weights = found.weights(model, expected_names(architecture, model))
        model, params, mesh = read_params(weights, architecture, model, found.where)
    config = default.get_config().to_dict()
    config["model"] = section | {"tie_embeddings": model.tie_embeddings}
    config["sequence_length"] = min(model.context_length, config["sequence_length"])
    record = RunRecord(
        "pretrain", model, config, {}, f"{IMPORTED}{source}", [], generation=generation, architecture=architecture
    )
    with new_directory(output, in_place=True) as partial, jax.set_mesh(mesh):
        start_run(partial, record, tokenizer)
        with open_manager(partial, keep=1) as manager:
            save(manager, TrainState(jnp.asarray(0, jnp.int32), params, None, {}), mesh)
    for line in summary(Imported(output, architecture, model, parameter_count(params), found.stored_as, tokenizer)):
        say(line)


def expected_names(architecture: str, model: ModelConfig, fused: bool = False) -> list[str]:
    """Returns the names of the tensors of a model, with an output table even where that is tied to the embedding."""
    untied = dataclasses.replace(model, tie_embeddings=False)
    return [key for row in table(architecture, untied, fused) for key in row.keys(model.num_layers)]


def read_params(
    weights: Weights, architecture: str, model: ModelConfig, where: str
) -> tuple[ModelConfig, Params, jax.sharding.Mesh]:
    """Returns (model, parameters, mesh); each leaf is moved to the devices before the next is read.

    An output table that differs from the embedding, which the config ties it to, makes the model one that is not tied.

    Raises:
        UserError: the tensors are not those of the model.
    """
    fused = any(name.endswith(FUSED_EXPERTS) for name in weights.shapes)
    embedding = next(row.key for row in table(architecture, model) if row.leaf == _EMBEDDING)
    output = FAMILIES[architecture].output
    names = _names(weights, set(expected_names(architecture, model, fused)), output)
    tied = model.tie_embeddings
    if tied and output in names and embedding not in names:
        # transformers ties the two whichever of them is there.
        names = names | {embedding: names.pop(output)}
    elif tied and output in names and not _equal(weights, names[output], names[embedding]):
        warn(
            f"{where}: tie_word_embeddings is true, but {output} differs from {embedding}; both are imported and "
            "not tied, as in transformers"
        )
        model = dataclasses.replace(model, tie_embeddings=False)
    objective = language_model(model)
    mesh = spread_mesh(boxed_params(objective))
    abstract = abstract_params(objective, mesh)
    rows = table(architecture, model, fused)
    expected = expected_shapes(abstract, rows)
    copies = {output} if model.tie_embeddings else set()
    shapes = {ours: weights.shapes[theirs] for ours, theirs in names.items() if ours not in copies}
    compare_shapes({n: s for n, s in shapes.items() if not n.endswith(IGNORED)}, expected, where)
    params: Params = {"backbone": {}, "head": {}}
    # Largest first: the host copy of a leaf is needed while the fewest parameters are on the device.
    for row, leaf in sorted(leaves(abstract, rows), key=lambda pair: -pair[1].size):
        arrived = jax.device_put(_read_leaf(weights, row, names, leaf.shape), leaf.sharding)
        _put(params[group_of(row)], row.leaf, jax.block_until_ready(arrived))
    return model, params, mesh


def _equal(weights: Weights, one: str, other: str) -> bool:
    return weights.shapes[one] == weights.shapes[other] and np.array_equal(weights.read(one), weights.read(other))


def _read_leaf(weights: Weights, row: Row, names: dict[str, str], shape: tuple[int, ...]) -> np.ndarray:
    if not row.stacked:
        return row.to_ours(weights.read(names[row.key]), shape).astype(np.float32, copy=False)
    host = np.empty(shape, np.float32)
    for piece, key in zip(row.pieces(host), row.keys(shape[0]), strict=True):
        piece[...] = row.to_ours(weights.read(names[key]), piece.shape)
    return host


def _names(weights: Weights, expected: set[str], output: str) -> dict[str, str]:
    """Returns {name in the table: name in the file}; files of a bare backbone omit the prefix of its class."""
    prefix = next((name.split(".")[0] + "." for name in sorted(expected) if name != output), "")
    bare = not any(name.startswith(prefix) for name in weights.shapes)
    return {prefix + name if bare and name != output else name: name for name in weights.shapes}


def _put(tree: Params, path: str, leaf: jax.Array) -> None:
    *parents, last = path.split("/")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[last] = leaf
