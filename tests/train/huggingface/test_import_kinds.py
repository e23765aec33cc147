"""Imports besides a plain model, and what is refused: tied tables, other kinds of models, quantized weights."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs.errors import UserError
from tests.gguf_files import write_model
from tests.runs import error_lines, rootstock
from train.distributed.mesh import single_device_mesh
from train.huggingface.importing import import_hf
from train.run.record import open_run

HEADS = {"llama3": "lm_head.weight", "qwen3": "lm_head.weight", "gemma2": "lm_head.weight", "gpt2": "lm_head.weight"}
EMBEDDINGS = {"gpt2": "transformer.wte.weight"}


def edit_tensors(directory, edit):
    tensors = load_file(directory / "model.safetensors")
    save_file(edit(tensors), directory / "model.safetensors")


def params_of(directory, output):
    import_hf(str(directory), output)
    run = open_run(output)
    return run, run.load_merged(single_device_mesh(), ("backbone", "head"))


@pytest.mark.integration
@pytest.mark.parametrize("name", HEADS)
def test_a_differing_output_table_of_a_tied_model_is_imported_untied(name, tmp_path, capsys):
    directory = write_model(name, tmp_path / "model")
    embedding = EMBEDDINGS.get(name, "model.embed_tokens.weight")
    head = np.random.default_rng(3).standard_normal((320, 64)).astype(np.float32)
    edit_tensors(directory, lambda tensors: tensors | {HEADS[name]: head})
    run, params = params_of(directory, tmp_path / "run")
    assert f"{HEADS[name]} differs from {embedding}; both are imported and not tied" in capsys.readouterr().err
    np.testing.assert_array_equal(params["head"]["table"], head)
    assert not run.model.tie_embeddings and not run.record.config["model"]["tie_embeddings"]
    rootstock("export-hf", tmp_path / "run", f"--output={tmp_path / 'back'}")
    np.testing.assert_array_equal(load_file(tmp_path / "back" / "model.safetensors")[HEADS[name]], head)


@pytest.mark.integration
@pytest.mark.parametrize("name", HEADS)
def test_an_equal_output_table_of_a_tied_model_is_dropped(name, tmp_path, capsys):
    directory = write_model(name, tmp_path / "model")
    embedding = EMBEDDINGS.get(name, "model.embed_tokens.weight")
    edit_tensors(directory, lambda tensors: tensors | {HEADS[name]: tensors[embedding].copy()})
    run, params = params_of(directory, tmp_path / "run")
    assert run.model.tie_embeddings and params["head"] == {} and "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["llama3", "qwen3", "gemma2"])
def test_a_tied_model_with_an_output_table_alone_embeds_with_it(name, tmp_path):
    directory = write_model(name, tmp_path / "model")
    table = load_file(directory / "model.safetensors")["model.embed_tokens.weight"]
    edit_tensors(directory, lambda t: {HEADS[name] if "embed" in key else key: x for key, x in t.items()})
    _, params = params_of(directory, tmp_path / "run")
    np.testing.assert_array_equal(params["backbone"]["embedding"]["table"], table)


def test_a_differing_output_table_gives_the_logits_of_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tests.train.huggingface.test_huggingface import logits_of

    for name in ("llama3", "qwen3", "gemma2"):
        directory = write_model(name, tmp_path / name)
        head = np.random.default_rng(3).standard_normal((320, 64)).astype(np.float32)
        edit_tensors(directory, lambda tensors, head=head: tensors | {"lm_head.weight": head})
        run, params = params_of(directory, tmp_path / f"{name}-run")
        ids = np.random.default_rng(0).integers(3, 290, (2, 24)).astype(np.int32)
        places = np.broadcast_to(np.arange(24, dtype=np.int32), ids.shape)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        with torch.no_grad():
            expected = theirs(torch.tensor(ids, dtype=torch.long)).logits.numpy()
        found = logits_of(run.model, params, ids, places * 0 + 1, places)
        np.testing.assert_allclose(found, expected, atol=1e-4, err_msg=name)


QUANTIZED = "quantized weights are not supported; import the model that was quantized, or a GGUF file"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "llava", "text_config": {}}, "model_type='llava' is a vision-language model"),
        ({"model_type": "qwen2_vl"}, "model_type='qwen2_vl' is a vision-language model"),
        ({"model_type": "gemma3", "vision_config": {"a": 1}}, r"'gemma3' is a vision-language model \(vision_config\)"),
        ({"model_type": "new_vl", "vision_config": {"a": 1}}, r"'new_vl' is a vision-language model \(vision_config\)"),
        ({"model_type": "voxtral", "audio_config": {"a": 1}}, r"is an audio-language model \(audio_config\)"),
        ({"model_type": "omni", "text_config": {"a": 1}}, r"is a model of several kinds of input \(text_config\)"),
        ({"model_type": "t5"}, "model_type='t5' is an encoder-decoder model"),
        ({"model_type": "bart", "is_encoder_decoder": True}, "model_type='bart' is an encoder-decoder model"),
        ({"model_type": "new", "is_encoder_decoder": True}, "is an encoder-decoder model"),
        ({"model_type": "bert"}, "model_type='bert' is an encoder, for embeddings or masked tokens"),
        ({"model_type": "modernbert"}, "is an encoder, for embeddings or masked tokens"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, rf"\(gptq, 4 bits\): {QUANTIZED}"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, rf"\(awq, 4 bits\): {QUANTIZED}"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
         rf"\(bitsandbytes, load_in_4bit\): {QUANTIZED}"),
        ({"quantization_config": {"quant_method": "fp8"}}, rf"\(fp8\): {QUANTIZED}"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, rf"\(mxfp4\): {QUANTIZED}"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, rf"\(compressed-tensors\): {QUANTIZED}"),
        ({"compression_config": {"format": "pack-quantized"}}, rf"\(pack-quantized\): {QUANTIZED}"),
    ],
)  # fmt: skip
def test_another_kind_of_model_is_refused_by_name(fields, message, tmp_path):
    directory = write_model("llama", tmp_path / "model")
    config = json.loads((directory / "config.json").read_text()) | fields
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message) as caught:
        import_hf(str(directory), tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def as_type(directory, dtype, size):
    """Replaces one tensor of a file by zeros of a type that numpy does not have."""
    path = directory / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    name = "model.layers.1.mlp.up_proj.weight"
    start = len(data) - 8 - length
    count = header[name]["shape"][0] * header[name]["shape"][1] * size
    entry = {"dtype": dtype, "shape": header[name]["shape"], "data_offsets": [start, start + count]}
    text = json.dumps(header | {"extra.weight_scale": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :] + bytes(count))


@pytest.mark.parametrize(("dtype", "size"), [("F8_E4M3", 1), ("F8_E5M2", 1), ("U8", 1), ("I8", 1), ("I32", 4)])
def test_quantized_tensors_are_refused_by_their_type(dtype, size, tmp_path):
    directory = write_model("llama", tmp_path / "model")
    as_type(directory, dtype, size)
    with pytest.raises(UserError, match=rf"extra.weight_scale \({dtype}\): {QUANTIZED}") as caught:
        import_hf(str(directory), tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("model_index.json", "is a diffusion pipeline"),
        ("modules.json", "is an embedding model of sentence-transformers"),
        ("config_sentence_transformers.json", "is an embedding model of sentence-transformers"),
    ],
)
def test_another_kind_of_directory_is_refused_by_its_files(file, message, tmp_path):
    directory = write_model("llama", tmp_path / "model")
    (directory / file).write_text("{}")
    with pytest.raises(UserError, match=rf"{message} \({file}\); expected a decoder-only language model of text"):
        import_hf(str(directory), tmp_path / "run")


def test_a_directory_of_gguf_files_names_one_to_import(tmp_path):
    (tmp_path / "models").mkdir()
    for name in ("b-q8_0.gguf", "a-q4_0.gguf"):
        (tmp_path / "models" / name).touch()
    with pytest.raises(UserError, match=r"GGUF files \(a-q4_0.gguf, b-q8_0.gguf\); import one: .*models/a-q4_0.gguf"):
        import_hf(str(tmp_path / "models"), tmp_path / "run")


@pytest.mark.parametrize("name", ["model.safetensors", "weights.bin"])
def test_a_single_file_of_another_format_is_an_error(name, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"is a file; expected a GGUF file \(.gguf\), or the directory of a model"):
        import_hf(str(tmp_path / name), tmp_path / "run")


@pytest.mark.integration
@pytest.mark.parametrize(
    ("template", "command"), [("{{ messages[0].content }}", "chat"), ("", "generate")], ids=["chat", "base"]
)
def test_import_prints_what_it_found_and_commands_that_work_as_printed(template, command, tmp_path, monkeypatch):
    directory = write_model("gemma3", tmp_path / "model")
    if template:
        (directory / "chat_template.jinja").write_text(template)
    done = rootstock("import-hf", directory, f"--workdir={tmp_path / 'run'}")
    lines = done.stderr.splitlines()
    assert lines[:3] == [f"import-hf: {tmp_path / 'run'}", "  family      gemma3_text", lines[2]]
    assert lines[2].startswith("  parameters  ") and lines[2].endswith(", read from safetensors")
    assert lines[3] == "  context     128 tokens; 6 of 7 layers attend to the last 16"
    assert lines[4].startswith("  tokenizer   288 tokens; prompts start with <|bos|>, texts end with <|eos|>")
    assert lines[5] == f"  template    {'the tokenizer' if template else 'none found; the model continues texts'}" + (
        "'s own" if template else ""
    )
    import shlex

    commands = [shlex.split(line) for line in lines if line.startswith("  rootstock ")]
    assert [words[1] for words in commands] == [command, "evaluate"]
    monkeypatch.setattr("sys.stdin", __import__("io").StringIO("/exit\n"))
    for words in commands:
        assert error_lines(rootstock(*words[1:], check=False)) == []
