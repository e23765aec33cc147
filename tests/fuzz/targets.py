"""Readers of untrusted files: each takes bytes and may raise only `UserError`, with a one-line message.

A target gets an empty directory and the bytes of the file under test.
"""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import flags
from safetensors.numpy import save

from configs import default
from configs.errors import UserError
from data.jinja import render_jinja
from data.packing import PackedRows
from data.prepare import StoreOptions, prepare
from data.readers import read_documents, read_rows
from data.store import open_store
from data.store_check import verify_store
from data.tokenizer import load_tokenizer
from data.tokenizer_training import train_tokenizer
from model.config import model_config
from model.huggingface.config_file import to_section
from train import cli
from train.checkpoint.manager import open_to_read
from train.checkpoint.read import read_contents
from train.commands import plan
from train.evaluation.linear_text import fit_linear_text, read_linear_text
from train.huggingface.safetensors_files import find_weights
from train.huggingface.sources import read_config
from train.run.calibration import read_calibration
from train.run.history import read_records
from train.run.record import RunRecord, open_run
from train.run.rollback import skipped_batches
from train.settings import from_config

NAMES = (
    "JSONL", "CSV", "text", "compressed JSONL", "store manifest.json", "store train/tokens-00000-of-00001.bin",
    "store train/offsets-00000-of-00001.npy", "checkpoint manifest", "safetensors", "safetensors index", "config.json",
    "chat template", "tokenizer.json", "run.json", "skipped_batches.json", "metrics.jsonl", "config overrides",
    "calibration.json", "linear_model.npz",
)  # fmt: skip
_MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader under test.

    Attributes:
        name: the kind of file.
        valid: a valid file to mutate; JSON is also mutated as a JSON value.
        read: (empty directory, bytes) -> reads the bytes as that file.
    """

    name: str
    valid: bytes
    read: Callable[[Path, bytes], object]


def _documents(suffix: str) -> Callable[[Path, bytes], object]:
    def read(directory: Path, data: bytes) -> None:
        path = directory / f"rows{suffix}"
        path.write_bytes(data)
        for strict in (True, False):
            with contextlib.suppress(UserError):
                list(read_rows(str(path), strict))
            with contextlib.suppress(UserError):
                list(read_documents(str(path), "text", strict))
        list(read_documents(str(path)))

    return read


_STORE_FILES = ("manifest.json", "train/tokens-00000-of-00001.bin", "train/offsets-00000-of-00001.npy")
_STORE_TEXT = b"\n".join(json.dumps({"text": f"text {i}"}).encode() for i in range(20))


def make_store(directory: Path) -> Path:
    """Makes a token store and returns its directory."""
    (directory / "in.jsonl").write_bytes(_STORE_TEXT)
    prepare(str(directory / "in.jsonl"), directory / "store", StoreOptions("bytes", validation_fraction=0.2))
    return directory / "store"


def _in_store(made: Path, name: str) -> Callable[[Path, bytes], object]:
    """Returns a function that reads a store in which one file has the given bytes."""

    def read(directory: Path, data: bytes) -> None:
        store = directory / "store"
        shutil.copytree(made, store)
        (store / name).write_bytes(data)
        with contextlib.suppress(UserError):
            verify_store(store)
        with contextlib.suppress(UserError):
            load_tokenizer(store)
        rows = PackedRows(open_store(store, "train"), 8)
        rows.rows(np.arange(min(len(rows), 4)))

    return read


def _safetensors(directory: Path, data: bytes) -> None:
    (directory / "model.safetensors").write_bytes(data)
    weights = find_weights(directory)
    for name in weights.shapes:
        weights.read(name)


def _index(directory: Path, data: bytes) -> None:
    (directory / "a.safetensors").write_bytes(save({"w": np.ones(3, np.float32)}))
    (directory / "model.safetensors.index.json").write_bytes(data)
    find_weights(directory)


def _foreign_config(directory: Path, data: bytes) -> None:
    (directory / "config.json").write_bytes(data)
    _, section = to_section(read_config(directory / "config.json"), "config.json")
    model_config(section)


def _chat_template(directory: Path, data: bytes) -> None:
    render_jinja(data.decode("utf-8", "replace"), _MESSAGES, {"bos_token": "<bos>", "eos_token": "<eos>"}, True)


def _tokenizer(directory: Path, data: bytes) -> None:
    (directory / "tokenizer.json").write_bytes(data)
    load_tokenizer(directory).encode("text")


def _run(directory: Path, data: bytes) -> None:
    (directory / "run.json").write_bytes(data)
    open_run(directory)


def _skipped(directory: Path, data: bytes) -> None:
    (directory / "skipped_batches.json").write_bytes(data)
    skipped_batches(directory)


def _metrics(directory: Path, data: bytes) -> None:
    (directory / "metrics.jsonl").write_bytes(data)
    read_records(directory)


def _calibration(directory: Path, data: bytes) -> None:
    (directory / "run.json").write_bytes(_record())
    (directory / "calibration.json").write_bytes(data)
    read_calibration(open_run(directory))


def _linear_model(directory: Path, data: bytes) -> None:
    read_linear_text(data, "linear_model.npz").margins(["a text"], ("a", "b"))


def _overrides(directory: Path, data: bytes) -> None:
    """Parses each line as a flag, like the command line."""
    lines = [line for line in data.decode("utf-8", "replace").splitlines() if line]
    arguments = ["--config=configs/pretrain/tiny.py", *(f"--config.{line}" for line in lines)]
    values = flags.FlagValues()

    def refuse(message: str, code: int) -> None:
        raise UserError(message)

    kept, cli.end = cli.end, refuse  # type: ignore[assignment]
    try:
        values = cli.parse("plan", plan, arguments)
    finally:
        cli.end = kept
    from_config(values.config.to_dict())


def _checkpoint(made: Path, name: str) -> Callable[[Path, bytes], object]:
    """Returns a function that reads a checkpoint in which one file has the given bytes."""

    def read(directory: Path, data: bytes) -> None:
        shutil.copytree(made, directory / "run")
        (directory / "run" / name).write_bytes(data)
        with open_to_read(directory / "run") as manager:
            for step in manager.all_steps():
                read_contents(manager, step)

    return read


def _record() -> bytes:
    config = default.get_config().to_dict()
    model = model_config(config["model"] | {"vocab_size": 64, "context_length": 64})
    record = RunRecord("pretrain", model, config, {}, "fingerprint", [])
    return json.dumps({"version": 1, **dataclasses.asdict(record)}).encode()


_LLAMA = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 300, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "tie_word_embeddings": True, "hidden_act": "silu",
}  # fmt: skip
_CALIBRATION = b'{"temperature": 1.0, "rows": 2, "label_probabilities": [0.5, 0.9], "step": 0, "weights": [1.0, 2.0]}'
_LABELED = (["a text", "other words"], ["a", "b"])
_TEMPLATE = (
    b"{% for m in messages %}{{ m['role'] + ': ' + m['content']|trim }}{% if loop.last %}{{ eos_token }}{% endif %}"
    b"{% endfor %}{% if add_generation_prompt %}{{ raise_exception('no') if messages|length > 3 else 'A:' }}{% endif %}"
)


def targets(store: Path, run: Path) -> list[Target]:
    """Returns all targets, given a token store and a run with a checkpoint."""
    manifest = next((run / "checkpoints").glob("[0-9]*/manifest/metadata"))
    inside = {name: (store / name).read_bytes() for name in _STORE_FILES}
    return [
        Target("JSONL", _STORE_TEXT, _documents(".jsonl")),
        Target("CSV", b'text,label\n"a ""b"" c",1\nd,2\n', _documents(".csv")),
        Target("text", "a text\n\u00fc\n".encode(), _documents(".txt")),
        Target("compressed JSONL", b"\x1f\x8b\x08\x00", _documents(".jsonl.gz")),
        *(Target(f"store {name}", data, _in_store(store, name)) for name, data in inside.items()),
        Target("checkpoint manifest", manifest.read_bytes(), _checkpoint(run, str(manifest.relative_to(run)))),
        Target("safetensors", save({"w": np.ones((2, 3), np.float32), "b": np.ones(3, np.float32)}), _safetensors),
        Target("safetensors index", b'{"weight_map": {"w": "a.safetensors"}}', _index),
        Target("config.json", json.dumps(_LLAMA).encode(), _foreign_config),
        Target("chat template", _TEMPLATE, _chat_template),
        Target("tokenizer.json", train_tokenizer("bytes", []).serialized.encode(), _tokenizer),
        Target("run.json", _record(), _run),
        Target(
            "skipped_batches.json", b'{"roll_backs": [{"step": 1, "failed_step": 3, "first": 1, "last": 2}]}', _skipped
        ),
        Target("metrics.jsonl", b'{"step": 1, "phase": "train", "loss": 2.5}\n' * 3, _metrics),
        Target("calibration.json", _CALIBRATION, _calibration),
        Target("linear_model.npz", fit_linear_text(_LABELED, _LABELED).to_bytes(), _linear_model),
        Target("config overrides", b"model.num_layers=2\noptimizer.name=muon\ndata.path=a\nmesh.fsdp=-1", _overrides),
    ]
