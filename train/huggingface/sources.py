"""Where an imported model comes from: a directory of Hugging Face's format, a name on the Hub, or a GGUF file."""

import contextlib
import dataclasses
import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.errors import UserError
from data.storage.files import local_copy
from data.storage.paths import at, is_url
from data.tokenizer import Tokenizer, load_tokenizer
from model.config import ModelConfig
from train.huggingface.generation_config import read_generation
from train.huggingface.gguf_config import config_of, sampling_of
from train.huggingface.gguf_file import read_gguf
from train.huggingface.gguf_tokenizer import gguf_tokenizer
from train.huggingface.gguf_weights import gguf_weights
from train.huggingface.kinds import check_config, check_directory
from train.huggingface.safetensors_files import Weights, find_weights
from train.huggingface.torch_files import PICKLED, PICKLED_INDEX, find_pickled_weights

IMPORTED = "huggingface:"  # what the data fingerprint of an imported run begins with
_PICKLED_FILES = (PICKLED, PICKLED_INDEX, "pytorch_model-*.bin")
_SOUND_FILES = (
    "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*",
    "chat_template*", "special_tokens*", "adapter_config.json", "modules.json", "model_index.json",
    "config_sentence_transformers.json",
)  # fmt: skip
# What is read of the directory of a model.
MODEL_FILES = (*_SOUND_FILES, *_PICKLED_FILES)


@dataclasses.dataclass(frozen=True)
class Source:
    """A model to import; nothing but its config is read yet.

    Attributes:
        where: names it in errors.
        config: the contents of its config.json, or the same in a GGUF file's metadata.
        config_name: names the config in errors.
        tokenizer: reads the tokenizer.
        generation: reads the sampling options (`generation_config.read_generation`).
        weights: (architecture, names of the tensors that it has) -> its tensors.
        stored_as: how the weights are stored, for people.
    """

    where: str
    config: Mapping[str, Any]
    config_name: str
    tokenizer: Callable[[], Tokenizer]
    generation: Callable[[], dict[str, Any]]
    weights: Callable[[ModelConfig, Iterable[str]], Weights]
    stored_as: str


@contextlib.contextmanager
def on_this_machine(source: str, patterns: Sequence[str]) -> Iterator[str]:
    """Yields a source on this machine: what matches `patterns` in a bucket is copied for as long as the block runs."""
    if not is_url(source):
        yield source
        return
    with local_copy(at(source), lambda file: any(file.match(pattern) for pattern in patterns)) as copy:
        yield str(copy)


def open_source(source: str, allow_pickle: bool = False) -> Source:
    """Returns the model at a path, or of a name on the Hub, whose files are downloaded.

    Raises:
        UserError: there is none, its config is damaged, or it is not a language model.
    """
    path = Path(source)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise UserError(f"{source!r} is a file; expected a GGUF file (.gguf), or the directory of a model")
        return _open_gguf(path)
    directory = local_directory(source, MODEL_FILES if allow_pickle else _SOUND_FILES)
    check_directory(directory)
    config_path = directory / "config.json"
    config = read_config(config_path)
    check_config(config, str(config_path))
    find = find_pickled_weights if allow_pickle else find_weights
    return Source(
        str(directory),
        config,
        str(config_path),
        lambda: load_tokenizer(directory),
        lambda: read_generation(directory),
        lambda _model, _names: find(directory),
        "pickled tensors" if allow_pickle else "safetensors",
    )


def _open_gguf(path: Path) -> Source:
    gguf = read_gguf(path)
    return Source(
        str(path),
        config_of(gguf),
        str(path),
        lambda: gguf_tokenizer(gguf),
        lambda: sampling_of(gguf),
        lambda model, names: gguf_weights(gguf, model, names),
        f"GGUF ({gguf.types})",
    )


def local_directory(source: str, patterns: Sequence[str]) -> Path:
    """Returns a local directory; for a name on the Hub, the files that match `patterns` are downloaded."""
    if Path(source).is_dir():
        return Path(source)
    if (
        Path(source).exists()
        or source.count("/") != 1
        or source.startswith((".", "/"))
        or source.lower().endswith(".gguf")
    ):
        raise UserError(
            f"{source!r} is not a directory; expected a directory with a config.json, a GGUF file, or OWNER/NAME on "
            "the Hub"
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
        raise UserError(f"{path.parent} is not a Hugging Face model: {path.name} is missing")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} contains a JSON {type(found).__name__}; expected an object")
    return found
