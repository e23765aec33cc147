"""GGUF files: the same model as its safetensors, the same tokens as its tokenizer, and one line for what is wrong."""

import dataclasses
import importlib.util
import json
import struct

import jax
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file
from tokenizers import decoders, normalizers, trainers

from configs.errors import UserError
from data.tokenizer import load_tokenizer
from tests.gguf_files import CONFIGS, leaves, write_gguf, write_model
from tests.runs import error_lines, rootstock
from train.distributed.mesh import single_device_mesh
from train.huggingface.importing import import_hf
from train.run.record import open_run

pytest.importorskip("gguf", reason="the package gguf is not installed (extra: gguf)")
HAS_TRANSFORMERS = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def imported(source, output):
    """Returns (model, {path: leaf}) of a model, imported."""
    import_hf(str(source), output)
    run = open_run(output)
    return run.model, leaves(run.load_merged(single_device_mesh(), ("backbone", "head")))


@pytest.mark.integration
@pytest.mark.parametrize("name", CONFIGS)
def test_a_gguf_file_is_the_same_model_as_its_safetensors(name, tmp_path):
    directory = write_model(name, tmp_path / "model")
    model, expected = imported(directory, tmp_path / "run")
    again, found = imported(write_gguf(directory, tmp_path / "model.gguf"), tmp_path / "from_gguf")
    for field in dataclasses.fields(model):
        ours, theirs = getattr(model, field.name), getattr(again, field.name)
        # Metadata is float32.
        assert theirs == (pytest.approx(ours) if isinstance(ours, float) else ours), field.name
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        # The offset of Gemma's norms is added and subtracted in float32.
        tolerance = 1e-6 if name.startswith("gemma") and "norm" in path else 0
        np.testing.assert_allclose(found[path], leaf, atol=tolerance, rtol=0, err_msg=path)


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_quantized_weights_are_what_the_package_dequantizes(name, kind, tmp_path):
    """Quantizing rows and permuting them commute, so the safetensors of dequantized weights are the reference."""
    import gguf

    directory = write_model(name, tmp_path / "model")
    path = write_gguf(directory, tmp_path / "model.gguf", kind)
    type_ = gguf.GGMLQuantizationType[kind]

    def rounded(key, tensor):
        if tensor.ndim < 2:
            return tensor
        conv1d = key.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        rows = np.ascontiguousarray(tensor.T if conv1d else tensor)
        rows = gguf.dequantize(gguf.quantize(rows, type_), type_)
        return np.ascontiguousarray(rows.T) if conv1d else rows

    tensors = {key: rounded(key, x) for key, x in load_file(directory / "model.safetensors").items()}
    save_file(tensors, directory / "model.safetensors")
    _, expected = imported(directory, tmp_path / "run")
    _, found = imported(path, tmp_path / "from_gguf")
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.skipif(not HAS_TRANSFORMERS, reason="torch and transformers are not installed")
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_logits_equal_those_of_transformers_reading_the_same_file(name, tmp_path):
    """Elsewhere transformers reads no file, or not all of it: no soft caps of Gemma 2 and no biases of Llama."""
    import torch
    import transformers

    from tests.train.huggingface.test_huggingface import logits_of

    path = write_gguf(write_model(name, tmp_path / "model"), tmp_path / "model.gguf", "Q8_0")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype="float32").eval()
    import_hf(str(path), tmp_path / "run")
    run = open_run(tmp_path / "run")
    params = run.load_merged(single_device_mesh(), ("backbone", "head"))
    ids = np.random.default_rng(0).integers(3, 290, (2, 40)).astype(np.int32)
    places = np.broadcast_to(np.arange(40, dtype=np.int32), ids.shape)
    found = logits_of(run.model, params, ids, places * 0 + 1, places)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


TEXTS = ["the cat sat on the mat", "  two spaces\n\nand lines\t\t", "dogs 1984 3", "é 日本 😀", "<|eos|> is text", ""]


def test_a_byte_level_tokenizer_encodes_as_the_tokenizer_it_was_written_from(tmp_path):
    directory = write_model("llama", tmp_path / "model")
    path = write_gguf(directory, tmp_path / "model.gguf", tokenizer__chat_template="{{ messages }}")
    import_hf(str(path), tmp_path / "run")
    expected, found = load_tokenizer(directory), open_run(tmp_path / "run").tokenizer()
    assert found.encode_batch(TEXTS) == expected.encode_batch(TEXTS)
    assert [found.decode(found.encode(text)) for text in TEXTS] == TEXTS
    assert (found.bos_id, found.eos_id, found.pad_id) == (expected.bos_id, expected.eos_id, expected.pad_id)
    assert found.chat_template == "{{ messages }}" and found.starts_with_bos


@pytest.mark.parametrize(("add_bos", "expected"), [(True, True), (False, False), (None, False)])
def test_whether_prompts_start_with_bos_is_read(add_bos, expected, tmp_path):
    path = write_gguf(
        write_model("qwen2", tmp_path / "model"), tmp_path / "m.gguf", tokenizer__ggml__add_bos_token=add_bos
    )
    import_hf(str(path), tmp_path / "run")
    assert open_run(tmp_path / "run").tokenizer().starts_with_bos is expected


def sentencepiece(prefixed):
    """Returns (a trained SentencePiece-like tokenizer, metadata of it without its merges)."""
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    replace = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefixed else replace
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    words = "the cat sat on the mat and two dogs saw it in 1984 two spaces and lines".split()
    trainer = trainers.BpeTrainer(vocab_size=310, special_tokens=specials, show_progress=False)
    backend.train_from_iterator([" ".join(words)] * 9, trainer)
    tokens = [backend.id_to_token(i) for i in range(backend.get_vocab_size())]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)
    return backend, {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(tokens) - 259)],
        "tokenizer.ggml.merges": None,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": None,
        "tokenizer.ggml.add_bos_token": None,
        "tokenizer.ggml.add_space_prefix": prefixed,
    }


@pytest.mark.parametrize("prefixed", [True, False])
def test_a_sentencepiece_tokenizer_encodes_as_the_tokenizer_it_was_written_from(prefixed, tmp_path):
    backend, values = sentencepiece(prefixed)
    directory = write_model("llama", tmp_path / "model")
    import_hf(str(write_gguf(directory, tmp_path / "m.gguf", **values)), tmp_path / "run")
    found = open_run(tmp_path / "run").tokenizer()
    texts = [*TEXTS[:4], "the" * 30, "in 1984 two dogs"]
    assert [found.encode(text) for text in texts] == [
        backend.encode(text, add_special_tokens=False).ids for text in texts
    ]
    assert [found.decode(found.encode(text)) for text in texts] == texts
    # llama.cpp adds bos to such vocabularies unless the file says otherwise.
    assert found.starts_with_bos and found.pad_id == found.eos_id == 2


def test_parts_of_a_file_are_one_model(tmp_path):
    import gguf

    directory = write_model("llama", tmp_path / "model")
    path = write_gguf(directory, tmp_path / "whole.gguf")
    reader = gguf.GGUFReader(path)
    for number, tensors in enumerate((reader.tensors[:9], reader.tensors[9:20], reader.tensors[20:])):
        writer = gguf.GGUFWriter(tmp_path / f"m-0000{number + 1}-of-00003.gguf", "llama")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 3)
        for field in [] if number else reader.fields.values():
            if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                kind = field.types[0]
                writer.add_key_value(
                    field.name, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None
                )
        for tensor in tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    _, expected = imported(path, tmp_path / "run")
    # Any part stands for all of them.
    _, found = imported(tmp_path / "m-00002-of-00003.gguf", tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    (tmp_path / "m-00003-of-00003.gguf").unlink()
    with pytest.raises(UserError, match=r"is one of 3 parts; m-00003-of-00003\.gguf is missing in the same directory"):
        import_hf(str(tmp_path / "m-00001-of-00003.gguf"), tmp_path / "none")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general__architecture": "mamba"}, "architecture='mamba' is not supported; expected one of gpt2, llama"),
        ({"general__architecture": "clip"}, "general.architecture='clip' is not supported"),
        ({"general__type": "adapter"}, "general.type='adapter'; expected a language model"),
        ({"general__type": "mmproj"}, "general.type='mmproj'; expected a language model"),
        ({"llama__expert_count": 8}, r"llama.expert_count=8: not supported for llama"),
        ({"llama__attention__causal": False}, r"llama.attention.causal=False: not supported"),
        ({"llama__attention__sliding_window": 64}, r"llama.attention.sliding_window=64: not supported"),
        ({"llama__some_new_key": 1.5}, r"llama.some_new_key=1.5: not supported"),
        ({"llama__rope__scaling__type": "surprise"}, "rope_type='surprise' is not supported"),
        ({"llama__rope__dimension_count": 16}, "rope.dimension_count=16 differs from the size of heads, 32"),
        ({"llama__attention__value_length": 16}, "attention.value_length=16 differs from the size of heads"),
        ({"llama__vocab_size": 300}, "vocab_size=300, but token_embd.weight has 320 rows"),
        ({"llama__embedding_length": None}, "embedding_length is missing"),
        ({"llama__block_count": 2}, r"unexpected: blk.2"),
        ({"llama__attention__head_count_kv": [2, 2, 1]}, "attention.head_count_kv has a value per layer"),
        ({"tokenizer__ggml__model": "t5"}, "tokenizer.ggml.model='t5' is not supported; expected gpt2"),
        ({"tokenizer__ggml__pre": "default"}, "tokenizer.ggml.pre='default' is not supported; expected one of gpt-2"),
        ({"tokenizer__ggml__eos_token_id": None}, "tokenizer.ggml.eos_token_id is missing"),
        ({"tokenizer__ggml__eos_token_id": 999}, "the special token 999 is not one of"),
        ({"tokenizer__ggml__token_type": [1, 2]}, "tokenizer.ggml.token_type has 2 values for"),
        ({"general__sampling__temp": -1.0}, "general.sampling: temperature=-1.0"),
    ],
)  # fmt: skip
def test_metadata_that_is_not_supported_is_refused_by_name(metadata, message, tmp_path):
    path = write_gguf(write_model("llama", tmp_path / "model"), tmp_path / "m.gguf", **metadata)
    with pytest.raises(UserError, match=message) as caught:
        import_hf(str(path), tmp_path / "run")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def big_endian(path):
    data = path.read_bytes()
    path.write_bytes(data[:4] + struct.pack(">I", 3) + data[8:])


def edit(path, start, data):
    found = bytearray(path.read_bytes())
    found[start : start + len(data)] = data
    path.write_bytes(found)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: cut(p, -100), "is damaged or truncated: it has [0-9,]+ bytes, and its tensors need"),
        (lambda p: cut(p, 900), "is damaged or truncated: it ends after 900 bytes, within its header"),
        (lambda p: cut(p, 6), "is damaged or truncated: it ends after 6 bytes"),
        (lambda p: cut(p, 0), "is not a GGUF file"),
        (big_endian, "is big-endian; convert it first: gguf-convert-endian"),
        (lambda p: edit(p, 0, b"GGML"), "is not a GGUF file: it does not start with GGUF"),
        (lambda p: edit(p, 4, struct.pack("<I", 1)), "has version 1 of GGUF; expected 2 or 3"),
        (lambda p: edit(p, 8, struct.pack("<Q", 1 << 60)), "is damaged or truncated"),
        (lambda p: edit(p, 16, struct.pack("<Q", 1 << 60)), "is damaged or truncated"),
        (lambda p: edit(p, 24, struct.pack("<Q", 1 << 60)), "is damaged or truncated"),
    ],
)
def test_a_damaged_file_is_a_one_line_error(damage, message, tmp_path):
    path = write_gguf(write_model("llama", tmp_path / "model"), tmp_path / "m.gguf")
    damage(path)
    with pytest.raises(UserError, match=message) as caught:
        import_hf(str(path), tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_any_single_changed_byte_of_the_header_is_a_model_or_one_error(tmp_path):
    path = write_gguf(write_model("llama", tmp_path / "model"), tmp_path / "m.gguf")
    from train.huggingface.sources import open_source

    good = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, 4000, 150):
        changed = bytearray(good)
        changed[place] ^= 1 << rng.integers(0, 8)
        path.write_bytes(changed)
        try:
            found = open_source(str(path))
            found.tokenizer()
        except UserError as error:
            assert "\n" not in str(error)


def test_sampling_options_are_read(tmp_path):
    metadata = {"general__sampling__temp": 0.6, "general__sampling__top_k": 20, "general__sampling__top_p": 0.95}
    path = write_gguf(write_model("llama", tmp_path / "model"), tmp_path / "m.gguf", **metadata)
    import_hf(str(path), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["generation"] == {
        "temperature": 0.6, "top_k": 20, "top_p": 0.95
    }  # fmt: skip


def test_the_command_imports_a_gguf_file_and_names_the_package_that_it_needs(tmp_path, monkeypatch):
    path = write_gguf(write_model("llama3", tmp_path / "model"), tmp_path / "m.gguf", "Q8_0")
    done = rootstock("import-hf", path, f"--workdir={tmp_path / 'run'}")
    assert "read from GGUF (F32, Q8_0)" in done.stderr
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    done = rootstock("import-hf", path, f"--workdir={tmp_path / 'other'}", check=False)
    assert done.returncode == 1
    assert error_lines(done) == ["rootstock: error: reading a GGUF file needs: pip install -e '.[gguf]'"]
