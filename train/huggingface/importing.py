"""Imports a Hugging Face checkpoint as a run directory."""

import contextlib
import importlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import default
from configs.errors import UserError
from data.storage.files import local_copy
from data.storage.new_directory import check_new, new_directory
from data.storage.paths import at, is_url
from data.tokenizer import load_tokenizer
from model.config import ModelConfig, model_config
from model.heads import language_model, parameter_count
from model.huggingface import IGNORED, Row, compare_shapes, expected_shapes, group_of, leaves, table
from model.huggingface_config import to_section
from model.transformer import Params
from train.checkpoint.manager import open_manager
from train.checkpoint.save import save
from train.console import say
from train.distributed.mesh import spread_mesh
from train.huggingface.generation_config import read_generation
from train.huggingface.imported_tokenizer import with_rows
from train.huggingface.safetensors_files import Weights, find_weights
from train.huggingface.torch_files import PICKLED, PICKLED_INDEX, find_pickled_weights
from train.run.record import RunRecord
from train.run.record import start as start_run
from train.step import TrainState
from train.trees import abstract_params, boxed_params

_PICKLED = (PICKLED, PICKLED_INDEX, "pytorch_model-*.bin")
_FILES = (
    "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*",
    "chat_template*", "special_tokens*",
)  # fmt: skip


def import_hf(source: str, output: Path, allow_pickle: bool = False) -> None:
    """Writes a run with the weights, tokenizer and chat template of a Hugging Face model; it appears when complete.

    Raises:
        UserError: not a model, an unsupported architecture, weights or a tokenizer that do not match it, or `output`
            is not empty.
    """
    check_new(output)
    with _local(source, (*_FILES, *(_PICKLED if allow_pickle else ()))) as directory:
        found = read_config(directory / "config.json")
        architecture, section = to_section(found, str(directory / "config.json"))
        model = model_config(section)
        tokenizer = with_rows(load_tokenizer(directory), model.vocab_size, directory)
        generation = read_generation(directory)
        weights = (find_pickled_weights if allow_pickle else find_weights)(directory)
        params, mesh = _read_params(weights, architecture, model, directory)
    config = default.get_config().to_dict()
    config["model"] = section
    config["sequence_length"] = min(model.context_length, config["sequence_length"])
    record = RunRecord("pretrain", model, config, {}, f"huggingface:{source}", [], generation=generation)
    with new_directory(output, in_place=True) as partial, jax.set_mesh(mesh):
        start_run(partial, record, tokenizer)
        with open_manager(partial, keep=1) as manager:
            save(manager, TrainState(jnp.asarray(0, jnp.int32), params, None, {}), mesh)
    count = parameter_count(params)
    say(f"import-hf: {architecture}, {count:,} parameters; the model is in {output}")


@contextlib.contextmanager
def _local(source: str, patterns: Sequence[str]) -> Iterator[Path]:
    """Yields a local directory; from a bucket or the Hub, the files that match `patterns` are downloaded."""
    path = at(source)
    if path.is_dir():
        with local_copy(path, lambda file: any(file.match(pattern) for pattern in patterns)) as directory:
            yield directory
    else:
        yield _downloaded(source, patterns)


def _downloaded(source: str, patterns: Sequence[str]) -> Path:
    """Returns the local directory of a model on the Hub, whose files that match `patterns` are downloaded."""
    if is_url(source) or Path(source).exists() or source.count("/") != 1 or source.startswith((".", "/")):
        raise UserError(
            f"{source!r} is not a directory; expected a directory with a config.json, or OWNER/NAME on the Hub"
        )
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise UserError(f"{source!r} is not a directory; to download it, pip install -e '.[hf]'") from None
    try:
        return Path(hub.snapshot_download(source, allow_patterns=list(patterns)))
    except Exception as error:  # the library raises many exception types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{source!r} cannot be downloaded: {reason}") from None


def read_config(path: Path) -> dict[str, Any]:
    """Returns the contents of a `config.json`."""
    if not path.is_file():
        raise UserError(f"{path.parent} is not a Hugging Face model: config.json is missing")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} contains a JSON {type(found).__name__}; expected an object")
    return found


def _read_params(
    weights: Weights, architecture: str, model: ModelConfig, directory: Path
) -> tuple[Params, jax.sharding.Mesh]:
    """Returns (parameters, mesh); each leaf is moved to the devices before the next is read."""
    objective = language_model(model)
    mesh = spread_mesh(boxed_params(objective))
    abstract = abstract_params(objective, mesh)
    rows = table(architecture, model)
    expected = expected_shapes(abstract, rows)
    names = _names(weights, set(expected))
    tied = {"lm_head.weight"} if model.tie_embeddings else set()
    shapes = {ours: weights.shapes[theirs] for ours, theirs in names.items() if ours not in tied}
    compare_shapes({n: s for n, s in shapes.items() if not n.endswith(IGNORED)}, expected, str(directory))
    params: Params = {"backbone": {}, "head": {}}
    # Largest first: the host copy of a leaf is needed while the fewest parameters are on the device.
    for row, leaf in sorted(leaves(abstract, rows), key=lambda pair: -pair[1].size):
        arrived = jax.device_put(_read_leaf(weights, row, names, leaf.shape), leaf.sharding)
        _put(params[group_of(row)], row.leaf, jax.block_until_ready(arrived))
    return params, mesh


def _read_leaf(weights: Weights, row: Row, names: dict[str, str], shape: tuple[int, ...]) -> np.ndarray:
    if not row.stacked:
        return row.to_ours(weights.read(names[row.key]), shape).astype(np.float32, copy=False)
    host = np.empty(shape, np.float32)
    for i, key in enumerate(row.keys(shape[0])):
        host[i] = row.to_ours(weights.read(names[key]), shape[1:])
    return host


def _names(weights: Weights, expected: set[str]) -> dict[str, str]:
    """Returns {name in the table: name in the file}; files of a bare backbone omit the prefix of its class."""
    prefix = next((name.split(".")[0] + "." for name in sorted(expected) if name != "lm_head.weight"), "")
    bare = not any(name.startswith(prefix) for name in weights.shapes)
    return {prefix + name if bare and name != "lm_head.weight" else name: name for name in weights.shapes}


def _put(tree: Params, path: str, leaf: jax.Array) -> None:
    *parents, last = path.split("/")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[last] = leaf
