"""Mixtures of experts in files: both layouts of expert tensors, routers that are refused, adapters, exports."""

import json
import re

import jax
import numpy as np
import pytest
from conftest import init, tiny_model
from safetensors.numpy import load_file, save_file

from configs.errors import UserError
from model.config import model_config
from model.heads import language_model
from model.huggingface.config_file import architecture_of, to_config, to_section
from model.huggingface.families import table
from model.huggingface.weights import expected_shapes, leaves
from tests.runs import error_lines, rootstock
from tests.train.huggingface.test_huggingface import change, imported, source
from tests.train.huggingface.test_peft import factors_for, merged, write_peft
from train.huggingface.exporting_adapter import export_adapter
from train.huggingface.importing import import_hf
from train.huggingface.importing_adapter import import_adapter

STORED = ("mixtral", "olmoe", "qwen3_moe")
EXPERT = re.compile(r"(?P<layer>.*\.\d+)\.(?:mlp|block_sparse_moe)\.experts\.(?P<e>\d+)\.(?P<name>\w+)\.weight")
KINDS = {"w1": "gate", "gate_proj": "gate", "w3": "up", "up_proj": "up", "w2": "down", "down_proj": "down"}
MIXTURE = {"num_experts": 4, "experts_per_token": 2, "expert_dim": 24, "tie_embeddings": False}


def fuse(directory):
    """Rewrites a model with one tensor for all experts of a layer, as `save_original_format=False` of transformers."""
    tensors = load_file(directory / "model.safetensors")
    found, fused = {}, {}
    for name, tensor in tensors.items():
        match = EXPERT.fullmatch(name)
        if match:
            found.setdefault(match["layer"], {}).setdefault(KINDS[match["name"]], {})[int(match["e"])] = tensor
        else:
            fused[name.replace("block_sparse_moe", "mlp")] = tensor
    for layer, kinds in found.items():
        gate, up, down = (np.stack([kinds[kind][e] for e in sorted(kinds[kind])]) for kind in ("gate", "up", "down"))
        fused[f"{layer}.mlp.experts.gate_up_proj"] = np.concatenate([gate, up], axis=1)
        fused[f"{layer}.mlp.experts.down_proj"] = down
    save_file(fused, directory / "model.safetensors")
    return directory


def assert_equal_leaves(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.integration
@pytest.mark.parametrize("name", STORED)
def test_both_layouts_of_experts_are_the_same_model(name, tmp_path, monkeypatch):
    from train.huggingface import safetensors_files

    directory = source(name, tmp_path)
    model, params = imported(directory, tmp_path / "run")
    fused = fuse(source(name, tmp_path / "other"))
    again, found = imported(fused, tmp_path / "fused_run")
    assert again == model
    assert_equal_leaves(found, params)
    monkeypatch.setattr(safetensors_files, "_SHARD_BYTES", 4000)
    rootstock("export-hf", tmp_path / "fused_run", f"--output={tmp_path / 'back'}")
    assert len(list((tmp_path / "back").glob("model-*.safetensors"))) > 3
    shards = [load_file(path) for path in (tmp_path / "back").glob("*.safetensors")]
    written = {key: tensor for shard in shards for key, tensor in shard.items()}
    expected = load_file(directory / "model.safetensors")
    assert written.keys() == expected.keys()
    for key, tensor in expected.items():
        np.testing.assert_array_equal(written[key], tensor, err_msg=key)


@pytest.mark.integration
@pytest.mark.parametrize("name", STORED)
def test_tensors_of_all_experts_are_written_as_they_are_read(name, tmp_path):
    fused = load_file(fuse(source(name, tmp_path)) / "model.safetensors")
    architecture, section = to_section(json.loads((tmp_path / name / "config.json").read_text()), name)
    model, written = model_config(section), {}
    params = jax.device_get(init(language_model(model)))
    rows = table(architecture, model, fused=True)
    assert expected_shapes(params, rows) == {key: tensor.shape for key, tensor in fused.items()}
    for row, leaf in leaves(params, rows):
        for key, piece in zip(row.keys(len(leaf)), row.pieces(np.asarray(leaf)), strict=True):
            ours = row.to_ours(fused[key], piece.shape)
            written[key] = row.to_theirs(ours, written.get(key))
    for key, tensor in fused.items():
        np.testing.assert_array_equal(written[key], tensor, err_msg=key)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.experts.down_proj"), r"missing: model.layers.1.mlp.experts.down_proj"),
        (
            lambda t: t.update({"model.layers.0.mlp.gate.e_score_correction_bias": np.zeros(4, np.float32)}),
            "unexpected: model.layers.0.mlp.gate.e_score_correction_bias",
        ),
        (
            lambda t: t.update({"model.layers.0.mlp.experts.down_proj": np.zeros((3, 16, 24), np.float32)}),
            r"down_proj has shape \[3, 16, 24\], expected \[4, 16, 24\]",
        ),
    ],
)
def test_missing_other_and_unknown_tensors_of_experts_are_named(damage, message, tmp_path):
    directory = fuse(source("olmoe", tmp_path))
    tensors = load_file(directory / "model.safetensors")
    damage(tensors)
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(UserError, match=message) as caught:
        import_hf(str(directory), tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "deepseek_v3", "n_routed_experts": 8}, "sigmoid scores with a bias .*, in groups, .* latent"),
        ({"model_type": "gpt_oss", "num_local_experts": 8}, "router and experts have biases"),
        ({"model_type": "llama4_text"}, "the router's sigmoid multiplies the inputs"),
        ({"model_type": "granitemoe"}, "laid out in another way"),
        ({"model_type": "phimoe"}, "its router is SparseMixer"),
        ({"model_type": "jamba"}, "it has Mamba layers"),
        ({"model_type": "qwen2_moe", "shared_expert_intermediate_size": 8}, "a sigmoid gate .* the shared expert"),
        ({"model_type": "flex_olmo", "num_experts": 7}, "num_experts=7"),
        ({"model_type": "bailing_moe", "n_routed_experts": 64}, "n_routed_experts=64"),
        ({"model_type": "deepseek_v3", "quantization_config": {"quant_method": "fp8"}}, "sigmoid scores with a bias"),
    ],
)
def test_an_import_with_a_router_that_is_not_here_is_one_clear_line(fields, message, tmp_path):
    directory = source("olmoe", tmp_path)
    change(directory, num_experts="gone", **fields) if "num_experts" not in fields else change(directory, **fields)
    done = rootstock("import-hf", directory, f"--workdir={tmp_path / 'run'}", check=False)
    (line,) = error_lines(done)
    assert re.search(rf"model_type='{fields['model_type']}' is a mixture of experts that is not supported", line), line
    assert re.search(rf"\(.*{message}.*\); expected one of mixtral, olmoe, qwen3_moe", line), line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("mixtral", {"num_experts_per_tok": 5}, r"num_experts_per_tok=5; expected from 1 to num_local_experts \(4\)"),
        ("olmoe", {"num_experts_per_tok": 0}, r"num_experts_per_tok=0; expected from 1 to num_experts \(4\)"),
        ("qwen3_moe", {"num_local_experts": 0}, "num_local_experts=0 is not supported .* expected at least 1"),
        ("olmoe", {"num_local_experts": 8}, "num_experts=4 and num_local_experts=8 differ"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv=8.0 is not supported; expected None"),
        ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step=0; expected at least 1"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, r"mlp_only_layers=\[1\] .* every n-th layer after the first k"),
        ("qwen3_moe", {"mlp_only_layers": [0, 1, 2]}, "leaves no layer with experts"),
        ("qwen3_moe", {"shared_expert_intermediate_size": 8}, "shared_expert_intermediate_size=8: unknown"),
        ("mixtral", {"scoring_func": "sigmoid"}, "scoring_func='sigmoid': unknown"),
    ],
)
def test_a_field_of_a_mixture_that_is_not_supported_is_named(name, fields, message, tmp_path):
    directory = source(name, tmp_path)
    change(directory, **fields)
    with pytest.raises(UserError, match=message) as caught:
        import_hf(str(directory), tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "qwen3_moe"),
        ({"router_renormalize": False}, "qwen3_moe"),
        ({"router": "softmax_top"}, "qwen3_moe"),
        ({"router": "softmax_top", "qk_norm": False}, "mixtral"),
        ({"qk_norm": False, "sliding_window": (8,)}, "mixtral"),
        ({"qk_norm_joint": True}, "olmoe"),
        ({"num_layers": 4, "dense_layers": 1, "mlp_dim": 40}, "qwen3_moe"),
        ({"num_layers": 4, "expert_every": 2, "mlp_dim": 40}, "qwen3_moe"),
        ({"num_layers": 5, "dense_layers": 1, "expert_every": 2, "mlp_dim": 40}, "qwen3_moe"),
    ],
)
def test_a_mixture_that_was_trained_here_has_a_family(changes, expected):
    model = tiny_model(**MIXTURE | changes)
    assert architecture_of(model) == expected
    again = model_config(to_section(to_config(expected, model, "float32"), expected)[1])
    assert [kind.experts for kind in again.kinds] == [kind.experts for kind in model.kinds]
    assert again.expert_width == 24


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"router": "sigmoid"}, "router='sigmoid'"),
        ({"shared_expert_dim": 16}, "shared_expert_dim=16"),
        ({"qk_norm": False, "router_renormalize": False}, "router_renormalize=False|qk_norm=False"),
        ({"qk_norm": False, "num_layers": 4, "dense_layers": 1}, "dense_layers=1|qk_norm=False"),
    ],
)
def test_a_mixture_without_a_family_is_refused_by_name(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        architecture_of(tiny_model(**MIXTURE | changes))
    assert str(caught.value).endswith("expected a model of mixtral, olmoe, qwen3_moe")


@pytest.mark.integration
@pytest.mark.parametrize("name", STORED)
def test_an_adapter_of_attention_round_trips(name, tmp_path):
    directory = source(name, tmp_path)
    import_hf(str(directory), tmp_path / "base")
    factors = factors_for(directory, ["q_proj", "v_proj", "o_proj"], 4)
    import_adapter(str(write_peft(tmp_path / "adapter", factors)), tmp_path / "base", tmp_path / "run")
    before, after = merged(tmp_path / "base"), merged(tmp_path / "run")
    changed = {path for path, leaf in before.items() if not np.array_equal(leaf, after[path])}
    assert {path.split("'")[-4] for path in changed} == {"query", "value", "output"}
    export_adapter(tmp_path / "run", tmp_path / "back")
    expected, found = (load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("adapter", "back"))
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        np.testing.assert_array_equal(found[key], tensor, err_msg=key)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "target"),
    [("mixtral", "w1"), ("mixtral", "block_sparse_moe.gate"), ("olmoe", "down_proj"), ("qwen3_moe", "0.mlp.gate_proj")],
)
def test_an_adapter_of_experts_is_refused_by_name(name, target, tmp_path):
    directory = source(name, tmp_path)
    import_hf(str(directory), tmp_path / "base")
    adapter = write_peft(tmp_path / "adapter", factors_for(directory, ["q_proj", target], 4))
    with pytest.raises(UserError, match=rf"has factors of .*{target}: LoRA is not supported for .* experts") as caught:
        import_adapter(str(adapter), tmp_path / "base", tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.integration
def test_an_imported_mixture_is_fine_tuned_with_router_losses_and_exported(tmp_path):
    directory = source("mixtral", tmp_path)
    rootstock("import-hf", directory, f"--workdir={tmp_path / 'base'}")
    rows = [{"text": f"{'good' if i % 2 else 'bad'} {i}", "label": "ab"[i % 2]} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {
        "data.path": tmp_path / "rows.jsonl", "num_steps": 3, "sequence_length": 32, "task.pooling": "last",
        "task.baseline": False, "task.zero_shot_rows": 0, "optimizer.warmup_steps": 1, "adapt.method": "lora",
        "adapt.rank": 2, "loss.balance_loss": 0.1, "loss.router_z_loss": 0.01,
    }  # fmt: skip
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    config = "--config=configs/finetune/email_spam.py"
    rootstock("finetune", config, f"--init_from={tmp_path / 'base'}", f"--workdir={tmp_path / 'run'}", *flags)
    rootstock("export-hf", tmp_path / "run", f"--output={tmp_path / 'out'}")
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert found["architectures"] == ["MixtralForSequenceClassification"] and found["num_local_experts"] == 4
    before, after = (load_file(folder / "model.safetensors") for folder in (directory, tmp_path / "out"))
    assert after.keys() - before.keys() == {"score.weight"} and before.keys() - after.keys() == {"lm_head.weight"}
    changed = {name for name in before.keys() & after.keys() if not np.array_equal(before[name], after[name])}
    assert changed and all(".self_attn." in name for name in changed)
