"""Every family of models against the installed transformers: logits, bitwise exports, files, and an optimizer step.

`PYTHONPATH=tests python -m tests.train.huggingface.test_families [FAMILY ...]` writes the rows of docs/huggingface.md.
"""

import importlib.util
import re
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from data.tokenizer_training import train_tokenizer
from model.heads import language_model
from model.huggingface.families import ARCHITECTURES, table
from model.huggingface.weights import leaves
from tests.train.huggingface.test_huggingface import check, imported, logits_of
from train.huggingface.exporting import export_hf

ROOT = Path(__file__).resolve().parents[3]
DOC = ROOT / "docs" / "huggingface.md"
START, END = "<!-- families -->\n", "<!-- /families -->"
HAS_TRANSFORMERS = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
needs_torch = pytest.mark.skipif(not HAS_TRANSFORMERS, reason="torch and transformers are not installed")
# Names in tests/golden/make_huggingface.py: {family: its models}.
MODELS = {
    "gpt2": ("gpt2",),
    "llama": ("llama2", "llama3", "llama_bias", "llama_linear", "llama_dynamic", "smollm2"),
    "mistral": ("mistral", "mistral_full"),
    "qwen2": ("qwen2", "qwen2_yarn"),
    "qwen3": ("qwen3", "qwen3_yarn"),
    "gemma2": ("gemma2",),
    "gemma3_text": ("gemma3",),
    "olmo2": ("olmo2",),
    "olmo3": ("olmo3",),
    "smollm3": ("smollm3",),
    "phi3": ("phi3", "phi3_longrope"),
    "granite": ("granite",),
    "granitemoehybrid": ("granite4",),
    "cohere": ("cohere",),
    "cohere2": ("cohere2",),
    "stablelm": ("stablelm", "stablelm_parallel"),
    "gpt_neox": ("gpt_neox",),
    "starcoder2": ("starcoder2",),
    "falcon": ("falcon", "falcon_grouped", "falcon_sequential"),
    "mixtral": ("mixtral", "mixtral_window"),
    "olmoe": ("olmoe", "olmoe_renormalized"),
    "qwen3_moe": ("qwen3_moe", "qwen3_moe_dense_layers"),
}
HEADER = """| model_type | models | in | out | largest logit difference | largest weight difference after a step |
|---|---|---|---|---|---|"""
NOT_MEASURED = "not measured"
ADAMW = {"weight_decay": 0.01, "eps": 1e-5}
RATE = 0.01


def make(name, folder):
    """Writes a random model of transformers with a tokenizer; returns its directory."""
    sys.path.insert(0, str(ROOT / "tests" / "golden"))
    import make_huggingface

    make_huggingface.make(folder / name, name)
    train_tokenizer("bytes", []).save(folder / name)
    return folder / name


def load(directory):
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").float().eval()


def logit_difference(directory, model, params):
    """Returns the largest difference from the logits of transformers, for texts up to 40 tokens, each alone."""
    import torch

    worst = 0.0
    for length in (5, 40):
        ids = np.random.default_rng(length).integers(3, 259, (1, length)).astype(np.int32)
        with torch.no_grad():
            expected = load(directory)(torch.tensor(ids)).logits.numpy()
        places = np.arange(length, dtype=np.int32)[None]
        worst = max(worst, np.abs(logits_of(model, params, ids, places * 0 + 1, places) - expected).max())
    return float(worst)


def step_difference(directory, family, model, params):
    """Returns the largest difference between the weights after one step of AdamW in transformers and here."""
    import torch

    ids = np.random.default_rng(1).integers(3, 259, (2, 20)).astype(np.int32)
    theirs = load(directory)  # not in training mode: dropout is not part of the comparison
    optimizer = torch.optim.AdamW(theirs.parameters(), RATE, **ADAMW)
    logits = theirs(torch.tensor(ids)).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(ids[:, 1:]).flatten().long()).backward()
    optimizer.step()
    # In a file, whose names are the ones that the table has; a module's own can differ.
    theirs.save_pretrained(directory / "after")
    after = load_file(directory / "after" / "model.safetensors")
    places = np.broadcast_to(np.arange(20, dtype=np.int32), ids.shape)
    weights = (places < 19).astype(np.float32)
    batch = {
        "tokens": ids, "targets": np.roll(ids, -1, 1), "segment_ids": places * 0 + 1, "positions": places,
        "weights": weights,
    }  # fmt: skip

    def loss(params):
        sums = language_model(model).loss(params, batch)
        return sums.objective / sums.weight

    ours = optax.adamw(RATE, **ADAMW)
    updates, _ = ours.update(jax.jit(jax.grad(loss))(params), ours.init(params), params)
    updated = jax.tree.map(np.asarray, optax.apply_updates(params, updates))
    worst = 0.0
    for row, leaf in leaves(updated, table(family, model)):
        for key, piece in zip(row.keys(len(leaf)), row.pieces(leaf), strict=True):
            worst = max(worst, np.abs(row.to_ours(after[key], piece.shape) - piece).max())
    return float(worst)


def measure(name, family, folder):
    """Returns (largest difference of the logits, of the weights after a step) of one model."""
    directory = make(name, folder)
    model, params = imported(directory, folder / f"{name}_run")
    return logit_difference(directory, model, params), step_difference(directory, family, model, params)


@needs_torch
@pytest.mark.parametrize(("family", "name"), [(family, name) for family, names in MODELS.items() for name in names])
def test_family_equals_transformers(family, name, tmp_path, monkeypatch):
    """Padded and packed logits, texts beyond the original context, one step, bitwise exports, bfloat16 and shards."""
    import torch

    from train.huggingface import safetensors_files

    logits, step = measure(name, family, tmp_path)
    assert logits < 1e-4 and step < 1e-4
    check(tmp_path / name, tmp_path)
    assert logit_difference(tmp_path / "back", *imported(tmp_path / "back", tmp_path / "returned")) < 1e-4
    # A bfloat16 file in several shards, as transformers writes it.
    load(tmp_path / name).to(torch.bfloat16).save_pretrained(tmp_path / "half", max_shard_size="4KB")
    train_tokenizer("bytes", []).save(tmp_path / "half")
    assert len(list((tmp_path / "half").glob("*.safetensors"))) > 2
    model, params = imported(tmp_path / "half", tmp_path / "half_run")
    assert logit_difference(tmp_path / "half", model, params) < 1e-4
    monkeypatch.setattr(safetensors_files, "_SHARD_BYTES", 4000)
    export_hf(tmp_path / "half_run", tmp_path / "half_back", "bfloat16")
    before, after = (tensors(tmp_path / folder) for folder in ("half", "half_back"))
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        np.testing.assert_array_equal(tensor.view(np.uint16), after[key].view(np.uint16), err_msg=key)


def tensors(directory):
    return {name: x for path in sorted(directory.glob("*.safetensors")) for name, x in load_file(path).items()}


def test_every_family_is_measured_and_the_table_lists_it():
    assert tuple(MODELS) == ARCHITECTURES
    shown = re.findall(r"^\| `(\w+)` \|.*\| ([^|]+) \| ([^|]+) \|$", DOC.read_text(), re.MULTILINE)
    assert [family for family, *_ in shown] == list(ARCHITECTURES)
    measured = [float(cell) for _, *cells in shown for cell in cells if cell != NOT_MEASURED]
    assert all(0 <= value < 1e-4 for value in measured)
    golden = {path.name for path in (ROOT / "tests" / "golden" / "huggingface").iterdir()}
    assert golden <= {name for names in MODELS.values() for name in names}


def rounded_up(value):
    """Returns e.g. "4e-7" for 3.1e-7."""
    exponent = int(np.floor(np.log10(max(value, 1e-9))))
    digit = int(np.ceil(value / 10.0**exponent))
    return f"{digit}e{exponent}" if digit < 10 else f"1e{exponent + 1}"


def write_rows(families):
    """Measures these families and replaces their rows in docs/huggingface.md."""
    from tests.train.huggingface.family_notes import NOTES

    for family in families:
        with tempfile.TemporaryDirectory() as folder:
            found = [measure(name, family, Path(folder)) for name in MODELS[family]]
        logits, steps = (rounded_up(max(values)) for values in zip(*found, strict=True))
        row = f"| `{family}` | {NOTES[family]} | yes | yes | {logits} | {steps} |"
        print(row, flush=True)
        text = DOC.read_text()
        before, table, after = text.partition(START)[0], *text.partition(START)[2].partition(END)[::2]
        lines = (line for line in table.splitlines() if line.startswith("| `"))
        rows = {line.split("`")[1]: line for line in lines} | {family: row}
        rows = {"model_type": HEADER} | {name: rows[name] for name in MODELS if name in rows}
        DOC.write_text(f"{before}{START}{chr(10).join(rows.values())}\n{END}{after}")


if __name__ == "__main__":
    write_rows(sys.argv[1:] or MODELS)
