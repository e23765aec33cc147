"""Hugging Face import and export: logits equal transformers', weights round-trip bit for bit, errors are one line.

tests/golden/make_huggingface.py made the stored models. `test_families.py` creates models of all families where torch
and transformers are installed, and loads what is exported with transformers.
"""

import importlib.util
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from conftest import mesh_of
from safetensors.numpy import load_file, save_file

from configs import default
from configs.errors import UserError
from configs.finetune import email_spam
from data.tokenizer_training import train_tokenizer
from model.config import model_config
from model.heads import unembedding
from model.huggingface.config_file import architecture_of
from model.losses import logits
from model.transformer import forward
from tests.damage import flip_a_bit
from tests.often import often
from train.distributed.mesh import single_device_mesh
from train.finetuning.run import finetune
from train.huggingface.exporting import export_hf
from train.huggingface.importing import import_hf
from train.run.record import open_run

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
STORED = sorted(path.name for path in (GOLDEN / "huggingface").iterdir())
HAS_TRANSFORMERS = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def source(name, folder):
    """Returns a copy of a stored model, with a tokenizer."""
    shutil.copytree(GOLDEN / "huggingface" / name, folder / name)
    train_tokenizer("bytes", []).save(folder / name)
    return folder / name


def imported(directory, output):
    import_hf(str(directory), output)
    run = open_run(output)
    return run.model, run.load_merged(single_device_mesh(), ("backbone", "head"))


def logits_of(model, params, tokens, segments, positions):
    batch = {"tokens": tokens, "segment_ids": segments, "positions": positions}
    return np.asarray(logits(forward(model, params["backbone"], batch), unembedding(params), model.logit_softcap))


def check(directory, tmp_path):
    """Checks logits of padded and packed rows, and the export."""
    model, params = imported(directory, tmp_path / "run")
    expected = np.load(directory / "expected.npz")
    ids, mask, columns = (
        expected["ids"].astype(np.int32), expected["mask"].astype(np.int32), expected["logits"].shape[-1]
    )  # fmt: skip
    places = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    found = logits_of(model, params, ids, mask, places)
    np.testing.assert_allclose(found[mask > 0][:, :columns], expected["logits"][mask > 0], atol=1e-4)
    rows = [ids[i, : mask[i].sum()] for i in (1, 2)]
    packed = np.concatenate(rows)[None]
    segments = np.repeat([1, 2], [len(row) for row in rows])[None].astype(np.int32)
    places = np.concatenate([np.arange(len(row), dtype=np.int32) for row in rows])[None]
    found = logits_of(model, params, packed, segments, places)[0]
    np.testing.assert_allclose(found[:, :columns], expected["logits"][1:][mask[1:] > 0], atol=1e-4)
    export_hf(tmp_path / "run", tmp_path / "back")
    kinds = [
        json.loads((folder / "config.json").read_text())["model_type"] for folder in (directory, tmp_path / "back")
    ]
    assert kinds[0] == kinds[1]
    before, after = (load_file(folder / "model.safetensors") for folder in (directory, tmp_path / "back"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(tensor, after[name], err_msg=name)
    again, _ = imported(tmp_path / "back", tmp_path / "again")
    assert again == model


@pytest.mark.integration
@pytest.mark.parametrize("name", often(STORED, "gpt2", "llama3", "gemma3", "qwen3_moe", "granite"))
def test_logits_equal_transformers_and_weights_round_trip(name, tmp_path):
    check(source(name, tmp_path), tmp_path)


@pytest.mark.integration
def test_shards_and_half_precision(tmp_path, monkeypatch):
    from train.huggingface import safetensors_files

    directory = source("llama3", tmp_path)
    model, params = imported(directory, tmp_path / "run")
    monkeypatch.setattr(safetensors_files, "_SHARD_BYTES", 4000)
    export_hf(tmp_path / "run", tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 3
    again, found = imported(tmp_path / "sharded", tmp_path / "again")
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(a, b)
    export_hf(tmp_path / "run", tmp_path / "bf16", "bfloat16")
    _, half = imported(tmp_path / "bf16", tmp_path / "from_bf16")
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(half), strict=True):
        np.testing.assert_allclose(a, b, rtol=2**-8)
    export_hf(tmp_path / "from_bf16", tmp_path / "bf16_again", "bfloat16")
    for path in (tmp_path / "bf16").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "bf16_again" / path.name).read_bytes()
    assert again == model


def test_weights_without_prefix_and_with_old_buffers_are_imported(tmp_path):
    directory = source("gpt2", tmp_path)
    tensors = {name.removeprefix("transformer."): t for name, t in load_file(directory / "model.safetensors").items()}
    tensors["h.0.attn.bias"] = np.ones((1, 1, 8, 8), np.float32)
    save_file(tensors, directory / "model.safetensors")
    _, bare = imported(directory, tmp_path / "bare")
    (tmp_path / "plain").mkdir()
    _, plain = imported(source("gpt2", tmp_path / "plain"), tmp_path / "whole")
    for a, b in zip(jax.tree.leaves(bare), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.integration
def test_weights_are_imported_onto_a_mesh(tmp_path, monkeypatch):
    from train.huggingface import importing as module

    monkeypatch.setattr(module, "spread_mesh", lambda boxed: mesh_of(fsdp=4))
    seen = []
    monkeypatch.setattr(jax, "device_put", lambda x, s, put=jax.device_put: seen.append((x.shape, s)) or put(x, s))
    model, params = imported(source("qwen2", tmp_path), tmp_path / "run")
    assert any("fsdp" in str(sharding.spec) for _, sharding in seen if hasattr(sharding, "spec"))
    expected = np.load(tmp_path / "qwen2" / "expected.npz")
    ids = expected["ids"].astype(np.int32)[:1]
    places = np.arange(ids.shape[1], dtype=np.int32)[None]
    np.testing.assert_allclose(logits_of(model, params, ids, places * 0 + 1, places), expected["logits"][:1], atol=1e-4)


def test_exported_architecture_is_found_or_the_error_names_the_mismatch():
    def named(**changes):
        section = default.model().to_dict() | {"vocab_size": 300, "context_length": 64} | changes
        return architecture_of(model_config(section))

    assert named() == "qwen3" and named(qk_norm=False) == "llama" and named(qk_norm=False, qkv_bias=True) == "qwen2"
    assert named(qk_norm=False, sliding_window=(8,)) == "mistral"
    with pytest.raises(
        UserError, match=r"closest, qwen3, does not support mlp='relu2'; expected a model of gpt2, llama"
    ):
        named(mlp="relu2")


@pytest.mark.integration
def test_export_of_a_lora_classifier(tmp_path):
    """Weights, classes, and a tokenizer that adds the same special tokens as training."""
    import_hf(str(source("llama3", tmp_path)), tmp_path / "base")
    rows = [{"text": f"{'good' if i % 2 else 'bad'} {i}", "label": "ab"[i % 2]} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = email_spam.get_config()
    config.data.path, config.num_steps, config.sequence_length = str(tmp_path / "rows.jsonl"), 3, 32
    config.task.pooling, config.task.baseline, config.task.zero_shot_rows = "last", False, 0
    config.optimizer.warmup_steps = 1
    config.adapt.method, config.adapt.rank, config.mesh.data, config.mesh.fsdp = "lora", 2, 1, 8
    finetune(config.to_dict(), tmp_path / "base", tmp_path / "run")
    assert open_run(tmp_path / "run").record.architecture == "llama"
    export_hf(tmp_path / "run", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert found["architectures"] == ["LlamaForSequenceClassification"]
    assert found["id2label"] == {"0": "a", "1": "b"} and found["pad_token_id"] == 0
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors["score.weight"].shape == (2, 16) and "lm_head.weight" not in tensors
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    ids = backend.encode("good").ids
    assert (ids[0], ids[-1], len(ids)) == (1, 2, 6)
    config.task.pooling = "mean"
    finetune(config.to_dict(), tmp_path / "base", tmp_path / "mean")
    with pytest.raises(UserError, match="classification model with pooling 'mean'; expected a language model"):
        export_hf(tmp_path / "mean", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def change(path, **fields):
    config = json.loads((path / "config.json").read_text()) | fields
    (path / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value != "gone"}))


def rename(path, old, new):
    tensors = load_file(path / "model.safetensors")
    save_file({new if name == old else name: tensor for name, tensor in tensors.items()}, path / "model.safetensors")


def truncate(path):
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[:-100])


def evil_index(path):
    (path / "model.safetensors").rename(path / "weights.safetensors")
    index = {"weight_map": {"model.norm.weight": "../weights.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "config.json").unlink(), "config.json is missing"),
        (lambda p: (p / "config.json").write_text("{"), "config.json is damaged"),
        (lambda p: change(p, model_type="mamba"), "model_type='mamba' is not supported; expected one of gpt2"),
        (lambda p: change(p, hidden_size="gone"), "'hidden_size' is missing; expected a config.json of llama"),
        (lambda p: change(p, hidden_act="relu"), "hidden_act='relu' is not supported; expected 'silu'"),
        (lambda p: change(p, rope_parameters={"rope_type": "axial"}), "rope_type='axial' is not supported"),
        (lambda p: change(p, num_hidden_layers=3), "missing: model.layers.2.self_attn.q_proj.weight"),
        (lambda p: change(p, num_hidden_layers=1), "unexpected: model.layers.1"),
        (lambda p: change(p, intermediate_size=32), r"gate_proj.weight has shape \[24, 16\], expected \[32, 16\]"),
        (lambda p: rename(p, NORM, "model.nrom.weight"), f"missing: {NORM}; unexpected: model.nrom.weight"),
        (truncate, "is damaged or not a safetensors file"),
        (evil_index, "expected a file in the same directory"),
        (
            lambda p: (p / "model.safetensors").rename(p / "pytorch_model.bin"),
            "is a pickle, which needs --allow_pickle",
        ),
        (lambda p: (p / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda p: change(p, vocab_size=200), "the tokenizer has 259 tokens, but the embedding has 200 rows"),
    ],
)  # fmt: skip
def test_an_invalid_model_is_a_one_line_error_and_nothing_is_written(damage, message, tmp_path):
    directory = source("llama3", tmp_path)
    damage(directory)
    with pytest.raises(UserError, match=message) as caught:
        import_hf(str(directory), tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run" / "run.json").exists()


def test_a_missing_source_or_a_used_output_is_an_error(tmp_path):
    with pytest.raises(UserError, match="is not a directory; expected a directory"):
        import_hf(str(tmp_path / "none"), tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").touch()
    with pytest.raises(UserError, match="is not empty"):
        import_hf(str(source("llama3", tmp_path)), tmp_path / "run")


class Code:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_allow_pickle_reads_tensors_and_runs_no_code(tmp_path):
    torch = pytest.importorskip("torch")
    directory = source("llama3", tmp_path)
    _, expected = imported(directory, tmp_path / "run")
    tensors = {name: torch.from_numpy(x) for name, x in load_file(directory / "model.safetensors").items()}
    (directory / "model.safetensors").unlink()
    torch.save(tensors, directory / "pytorch_model.bin")
    import_hf(str(directory), tmp_path / "pickled", allow_pickle=True)
    got = open_run(tmp_path / "pickled").load_merged(single_device_mesh(), ("backbone", "head"))
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    torch.save(tensors | {NORM: Code(tmp_path / "ran")}, directory / "pytorch_model.bin")
    with pytest.raises(UserError, match="is damaged or contains objects other than tensors") as caught:
        import_hf(str(directory), tmp_path / "evil", allow_pickle=True)
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


@pytest.mark.skipif(HAS_TRANSFORMERS, reason="torch is installed")
def test_a_pickle_needs_torch(tmp_path):
    with pytest.raises(UserError, match="--allow_pickle needs: pip install torch"):
        import_hf(str(source("llama3", tmp_path)), tmp_path / "run", allow_pickle=True)


def test_a_damaged_checkpoint_is_not_exported(tmp_path):
    import_hf(str(source("llama3", tmp_path)), tmp_path / "run")
    flip_a_bit(tmp_path / "run" / "checkpoints" / "0" / "params")
    with pytest.raises(UserError, match="checkpoint 0 is damaged") as caught:
        export_hf(tmp_path / "run", tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
