"""Files that do not agree with each other: tokens without an embedding, and single weights beside an index."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

from configs.errors import UserError
from data.tokenizer import load_tokenizer
from data.tokenizer_training import train_tokenizer
from tests.runs import rootstock
from train.distributed.mesh import single_device_mesh
from train.huggingface.importing import import_hf
from train.huggingface.safetensors_files import find_weights, write_weights
from train.run.record import open_run

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "huggingface"
HAS_TRANSFORMERS = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
ROWS = 272  # of the stored models' embeddings
BYTES = train_tokenizer("bytes", [])


def source(folder, added=(), pad="<|pad|>", end_ids=()):
    """Returns a stored model whose tokenizer has more added tokens: {name: whether it is special}."""
    directory = folder / "source"
    shutil.copytree(GOLDEN / "llama3", directory)
    backend = tokenizers.Tokenizer.from_str(BYTES.serialized)
    fill = [f"<{i}>" for i in range(ROWS - BYTES.vocab_size)]
    backend.add_tokens(fill)
    for name, special in dict(added).items():
        backend.add_tokens([tokenizers.AddedToken(name, special=special)])
    (directory / "tokenizer.json").write_text(backend.to_str())
    names = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": pad}
    (directory / "tokenizer_config.json").write_text(json.dumps(names))
    if end_ids:
        (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": list(end_ids)}))
    return directory


@pytest.mark.parametrize(
    ("added", "pad", "pad_id"),
    [
        ({"[PAD]": True}, "[PAD]", 2),
        ({"[PAD]": True}, "<|pad|>", 0),
        ({"<|im_start|>": True, "<|im_end|>": True}, "<|pad|>", 0),
        ({"<tool>": False, "[PAD]": True}, "[PAD]", 2),
    ],
)
def test_added_tokens_without_an_embedding_are_dropped_and_listed(added, pad, pad_id, tmp_path):
    done = rootstock("import-hf", source(tmp_path, added, pad, [2, ROWS]), "--workdir", tmp_path / "run")
    for i, name in enumerate(added):
        assert f"{name} ({ROWS + i})" in done.stderr.replace("\n", " ")
    assert ("padded with eos" in done.stderr.replace("\n", " ")) == (pad in added)
    tokenizer = open_run(tmp_path / "run").tokenizer()
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.end_ids) == (ROWS, pad_id, ())
    for name in added:
        text = f"a {name} b"
        for ids in (tokenizer.encode(text), tokenizer.encode_with_specials(text)[0]):
            assert max(ids) < ROWS and tokenizer.decode(ids) == text
    assert tokenizer.encode("<3>")[0] == BYTES.vocab_size + 3  # tokens with an embedding stay


@pytest.mark.parametrize("role", ["bos", "eos"])
def test_bos_and_eos_need_an_embedding(role, tmp_path):
    directory = source(tmp_path, {"<new>": True})
    names = json.loads((directory / "tokenizer_config.json").read_text()) | {f"{role}_token": "<new>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(names))
    with pytest.raises(UserError, match=r"has 273 tokens, but the embedding has 272 rows, and token 272 \(<new>\) has"):
        import_hf(str(directory), tmp_path / "run")
    assert load_tokenizer(directory).vocab_size == ROWS + 1


def stale(directory, kind):
    """Adds an index, as another upload left it, beside model.safetensors."""
    weights = load_file(directory / "model.safetensors")
    shard = "model-00001-of-00001.safetensors"
    names = {"missing shards": "gone.safetensors", "old shards": shard, "outside": "../gone.safetensors"}
    if kind == "old shards":
        save_file({name: np.zeros_like(tensor) for name, tensor in weights.items()}, directory / shard)
    index = {"weight_map": dict.fromkeys(weights, names[kind])} if kind != "damaged" else []
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return weights


@pytest.mark.parametrize("kind", ["missing shards", "old shards", "outside", "damaged"])
def test_the_single_file_is_read_and_not_the_index_beside_it(kind, tmp_path, capsys):
    directory = source(tmp_path)
    expected = stale(directory, kind)
    found = find_weights(directory)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found.read(name), tensor)
    assert "reads model.safetensors, as transformers does" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.skipif(not HAS_TRANSFORMERS, reason="torch and transformers are not installed")
def test_transformers_reads_the_single_file_too(tmp_path):
    import transformers

    directory = source(tmp_path, {"[PAD]": True}, "[PAD]")
    stale(directory, "old shards")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    import_hf(str(directory), tmp_path / "run")
    ours = open_run(tmp_path / "run").load(single_device_mesh())["backbone"]["embedding"]["table"]
    np.testing.assert_array_equal(model.get_input_embeddings().weight.detach().numpy(), ours)


def test_a_value_too_large_for_float16_is_refused_by_name(tmp_path):
    def write(dtype, *values):
        write_weights(tmp_path, {"a.weight": (len(values),)}, dtype, iter([np.array(values, np.float32)]))

    write("float16", 65_504.0, np.inf)
    write("bfloat16", 1e5)
    with pytest.raises(UserError, match=r"a.weight has values beyond 65,504, the largest of float16; use --dtype=bf"):
        write("float16", 1e5, np.inf)
