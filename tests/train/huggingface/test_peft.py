"""LoRA adapters of PEFT: the same model as their product added to the weights, and the same files after export."""

import importlib.util
import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs.errors import UserError
from model.adapt import merge
from model.adaptation import Adaptation
from model.config import model_config
from model.heads import language_model
from model.huggingface.config_file import to_section
from model.huggingface.families import table
from model.huggingface.weights import leaves as tensors_of_rows
from tests.gguf_files import CONFIGS, leaves, write_model
from tests.often import often
from tests.runs import error_lines, rootstock
from train.distributed.mesh import single_device_mesh
from train.huggingface.adapter_tensors import PREFIX, Adapter, modules_of, read_adapter, write_adapter
from train.huggingface.exporting import export_hf
from train.huggingface.exporting_adapter import export_adapter
from train.huggingface.importing import import_hf
from train.huggingface.importing_adapter import import_adapter, kernel_shapes
from train.huggingface.peft_config import AdapterConfig
from train.huggingface.safetensors_files import Weights
from train.run.record import open_run
from train.trees import abstract_params

HAS_PEFT = all(importlib.util.find_spec(name) for name in ("torch", "transformers", "peft"))
# Modules of each family in PEFT's words, several of them fused: GPT-2 has one for queries, keys and values.
TARGETS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "qwen3": ["q_proj", "v_proj"],
    "gemma2": ["q_proj", "o_proj", "down_proj"],
    "gpt2": ["c_attn", "attn.c_proj", "mlp.c_proj"],
}
CONV1D = ("c_attn", "c_proj", "c_fc")


def factors_for(base, targets, rank, seed=1, layers=None):
    """Returns {module: (A, B)} of random factors of every module of a model whose name ends with a target."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, weight in load_file(base / "model.safetensors").items():
        module = name.removesuffix(".weight")
        layer = re.search(r"\.(\d+)\.", module)
        if weight.ndim < 2 or not module.endswith(tuple(targets)) or (layers and int(layer[1]) not in layers):
            continue
        outputs, inputs = weight.shape[::-1] if module.endswith(CONV1D) else weight.shape
        own = rank(module) if callable(rank) else rank
        found[module] = tuple(0.2 * rng.standard_normal(s).astype(np.float32) for s in ((own, inputs), (outputs, own)))
    return found


def write_peft(directory, factors, extra=None, **config):
    """Writes an adapter as PEFT does."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {f"{PREFIX}{module}.lora_A.weight": a for module, (a, _) in factors.items()}
    tensors |= {f"{PREFIX}{module}.lora_B.weight": b for module, (_, b) in factors.items()}
    save_file(tensors | (extra or {}), directory / "adapter_model.safetensors")
    fields = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "lora_dropout": 0.05, "bias": "none",
        "target_modules": sorted({m.split(".")[-1] for m in factors}), "base_model_name_or_path": "some/model",
        "inference_mode": True, "fan_in_fan_out": False, "use_rslora": False, "use_dora": False, "rank_pattern": {},
        "alpha_pattern": {}, "modules_to_save": None, "init_lora_weights": True, "layers_to_transform": None,
        "peft_version": "0.21.2", "eva_config": None, "corda_config": None, "loftq_config": {}, "qalora_group_size": 16,
        "megatron_core": "megatron.core", "trainable_token_indices": None, "exclude_modules": None,
    }  # fmt: skip
    (directory / "adapter_config.json").write_text(json.dumps(fields | config))
    return directory


def reference(base, folder, factors, scale, output):
    """Returns {path: leaf} of the model with the products added to its weights in Hugging Face's files."""
    folder.mkdir()
    for path in base.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(base / "model.safetensors")
    for module, (a, b) in factors.items():
        product = (scale(module) if callable(scale) else scale) * (b @ a)
        tensors[f"{module}.weight"] += product.T if module.endswith(CONV1D) else product
    save_file(tensors, folder / "model.safetensors")
    import_hf(str(folder), output)
    return merged(output)


def merged(run):
    return leaves(open_run(run).load_merged(single_device_mesh(), ("backbone", "head")))


def check(found, expected):
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_allclose(found[path], leaf, atol=2e-5, err_msg=path)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Returns a function of a name of `CONFIGS` -> (a model, its run)."""
    folder = tmp_path_factory.mktemp("models")

    def make(name):
        if not (folder / name).exists():
            write_model(name, folder / name)
            import_hf(str(folder / name), folder / f"{name}-run")
        return folder / name, folder / f"{name}-run"

    return make


@pytest.mark.integration
@pytest.mark.parametrize("name", often(TARGETS, "llama"))
def test_an_adapter_is_the_model_with_its_product_added_and_round_trips_bit_for_bit(name, base, tmp_path):
    model, run = base(name)
    factors = factors_for(model, TARGETS[name], 4)
    adapter = write_peft(tmp_path / "adapter", factors)
    import_adapter(str(adapter), run, tmp_path / "run")
    check(merged(tmp_path / "run"), reference(model, tmp_path / "sum", factors, 2.0, tmp_path / "expected"))
    export_adapter(tmp_path / "run", tmp_path / "back")
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "back"))
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        np.testing.assert_array_equal(after[key], tensor, err_msg=key)
    config = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["fan_in_fan_out"]) == (4, 8, name == "gpt2")
    assert config["base_model_name_or_path"] == str(model)
    import_adapter(str(tmp_path / "back"), run, tmp_path / "again")
    check(merged(tmp_path / "again"), merged(tmp_path / "run"))


@pytest.mark.parametrize("name", CONFIGS)
def test_factors_of_every_projection_of_every_family_round_trip(name):
    """Fused and interleaved modules too: the product in our layout is their product, read like a weight."""
    architecture, section = to_section(CONFIGS[name], name)
    model = model_config(section)
    rows = table(architecture, model)
    abstract = abstract_params(language_model(model), single_device_mesh())
    modules = modules_of(rows)
    kernels = [row for parts in modules.values() for row in parts]
    shapes = {row.leaf: leaf.shape for row, leaf in tensors_of_rows(abstract, kernels)}
    rng = np.random.default_rng(0)
    tensors = {}
    for pattern, parts in modules.items():
        weight = parts[0].their_shape(shapes[parts[0].leaf][1:])
        outputs, inputs = weight if parts[0].transposed else weight[::-1]
        for i in range(model.num_layers):
            key = f"{PREFIX}{pattern.format(i=i)}.lora_"
            tensors[f"{key}A.weight"] = rng.standard_normal((3, inputs)).astype(np.float32)
            tensors[f"{key}B.weight"] = rng.standard_normal((outputs, 3)).astype(np.float32)
    weights = Weights({key: tensor.shape for key, tensor in tensors.items()}, tensors.__getitem__)
    adapter = read_adapter(weights, AdapterConfig(3, 6.0), rows, shapes, name)
    written, ranks = write_adapter(adapter, rows, shapes)
    assert written.keys() == tensors.keys() and ranks == {}
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(written[key], tensor, err_msg=key)
    for pattern, parts in modules.items():
        for row in parts:
            pair = adapter.tree
            for part in row.leaf.removesuffix("/kernel").split("/"):
                pair = pair[part]
            for i in range(model.num_layers):
                a, b = (tensors[f"{PREFIX}{pattern.format(i=i)}.lora_{letter}.weight"] for letter in "AB")
                product = b @ a if row.transposed else (b @ a).T
                shape = shapes[row.leaf][1:]
                ours = pair["lora_a"][i].reshape(-1, 3) @ pair["lora_b"][i].reshape(3, -1)
                np.testing.assert_allclose(
                    ours.reshape(shape), row.to_ours(product, shape), atol=1e-4, err_msg=row.leaf
                )


def rank_of(module):
    return 2 if "q_proj" in module else 4


@pytest.mark.integration
@pytest.mark.parametrize(
    ("config", "rank", "scale", "layers"),
    [
        ({"use_rslora": True}, 4, 8 / 2, None),
        ({"rank_pattern": {"q_proj": 2}}, rank_of, lambda m: 8 / rank_of(m), None),
        ({"alpha_pattern": {r"layers\.1\.self_attn\.v_proj": 12}}, 4, lambda m: 3 if "1.self_attn.v" in m else 2, None),
        (
            {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 12}, "use_rslora": True},
            rank_of,
            lambda m: (12 if "v_proj" in m else 8) / rank_of(m) ** 0.5,
            None,
        ),
        ({"layers_to_transform": [1]}, 4, 2.0, (1,)),
        ({"target_modules": "all-linear", "lora_alpha": 3}, 4, 0.75, None),
        ({"target_modules": r".*\.self_attn\.[qv]_proj"}, 4, 2.0, None),
    ],
)
def test_ranks_and_scales_of_modules(config, rank, scale, layers, base, tmp_path):
    model, run = base("llama")
    factors = factors_for(model, ["q_proj", "v_proj", "up_proj"], rank, layers=layers)
    import_adapter(str(write_peft(tmp_path / "adapter", factors, **config)), run, tmp_path / "run")
    check(merged(tmp_path / "run"), reference(model, tmp_path / "sum", factors, scale, tmp_path / "expected"))


@pytest.mark.integration
def test_a_saved_output_table_is_read_and_written(base, tmp_path):
    model, run = base("llama")
    factors = factors_for(model, ["q_proj"], 4)
    head = np.random.default_rng(5).standard_normal((320, 64)).astype(np.float32)
    extra = {f"{PREFIX}lm_head.weight": head}
    adapter = write_peft(tmp_path / "adapter", factors, extra, modules_to_save=["lm_head"])
    import_adapter(str(adapter), run, tmp_path / "run")
    params = open_run(tmp_path / "run").load_merged(single_device_mesh(), ("backbone", "head"))
    np.testing.assert_array_equal(params["head"]["table"], head)
    export_adapter(tmp_path / "run", tmp_path / "back")
    np.testing.assert_array_equal(
        load_file(tmp_path / "back" / "adapter_model.safetensors")[f"{PREFIX}lm_head.weight"], head
    )
    assert json.loads((tmp_path / "back" / "adapter_config.json").read_text())["modules_to_save"] == ["lm_head"]


@pytest.mark.integration
@pytest.mark.parametrize("targets", [("query", "value"), ("query", "key", "value", "down"), ("key",)])
def test_our_own_factors_of_a_fused_module_become_one_pair_with_the_same_product(targets, base, tmp_path):
    """GPT-2's queries, keys and values share a module; ours each have an A of their own."""
    _, directory = base("gpt2")
    run = open_run(directory)
    rows = table("gpt2", run.model)
    shapes = kernel_shapes(run, single_device_mesh())
    rng = np.random.default_rng(0)

    def pair(row):
        shape = shapes[row.leaf]
        inputs, outputs = shape[1 : 1 + row.inputs], shape[1 + row.inputs :]
        drawn = ((shape[0], *inputs, 3), (shape[0], 3, *outputs))
        return dict(zip(("lora_a", "lora_b"), (rng.standard_normal(s).astype(np.float32) for s in drawn), strict=True))

    tree = {"layers": {"attention": {}, "mlp": {}}}
    for row in rows:
        part, name = row.leaf.split("/")[1:3] if row.inputs else ("", "")
        if name in targets:
            tree["layers"][part][name] = pair(row)
    adapter = Adapter(3, 6.0, targets, tree)
    tensors, ranks = write_adapter(adapter, rows, shapes)
    params = run.load_merged(single_device_mesh(), ("backbone", "head"))
    with_adapter = merge(params | {"adapter": tree}, Adaptation("lora", 1, 3, 6.0, targets))
    before, after = leaves(params), leaves(with_adapter)
    names = [name for name in targets if name != "down"]
    for pattern, parts in modules_of(rows).items():
        if not pattern.endswith("c_attn"):
            continue
        for i in range(3):
            a, b = (tensors[f"{PREFIX}{pattern.format(i=i)}.lora_{letter}.weight"] for letter in "AB")
            assert len(a) == 3 * len(names) and (ranks.get(pattern.format(i=i), 3) == len(a))
            thirds = np.split(2.0 * (b @ a), 3)
            for row, third in zip(parts, thirds, strict=True):
                path = "".join(f"['{key}']" for key in ("backbone", *row.leaf.split("/")))
                change = after[path][i] - before[path][i]
                np.testing.assert_allclose(third.T.reshape(change.shape), change, atol=1e-4)


KINDS = [
    ({"peft_type": "IA3"}, "peft_type='IA3' is not supported; expected 'LORA'"),
    ({"peft_type": "ADALORA"}, "peft_type='ADALORA' is not supported"),
    ({"peft_type": "PREFIX_TUNING"}, "peft_type='PREFIX_TUNING' is not supported"),
    ({"peft_type": None}, "peft_type is missing"),
    ({"task_type": "SEQ_CLS"}, "task_type='SEQ_CLS' is not supported; expected 'CAUSAL_LM'"),
    ({"use_dora": True}, "use_dora=True is not supported; expected False"),
    ({"bias": "lora_only"}, "bias='lora_only' is not supported; expected 'none'"),
    ({"bias": "all"}, "bias='all' is not supported"),
    ({"lora_bias": True}, "lora_bias=True is not supported"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is not supported"),
    ({"init_lora_weights": "olora"}, "init_lora_weights='olora' is not supported"),
    ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication=.* is not supported"),
    ({"target_parameters": ["mlp.experts"]}, "target_parameters=.* is not supported"),
    ({"trainable_token_indices": [5]}, "trainable_token_indices=.* is not supported"),
    ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens=.* is not supported"),
    ({"some_new_field": 1}, "some_new_field=1 is unknown, so it may change what the adapter computes"),
    ({"r": "four"}, "a field has the wrong type"),
    ({"r": 0}, "expected ranks of at least 1"),
    ({"rank_pattern": {"(": 2}}, "a field has the wrong type"),
    ({"r": 5}, r"lora_A.weight has shape \[4, 64\], expected \[5, 64\] for r=5"),
    ({"rank_pattern": {"q_proj": 8}}, r"q_proj.lora_A.weight has shape \[4, 64\], expected \[8, 64\]"),
]


@pytest.mark.parametrize(("config", "message"), KINDS)
def test_kinds_of_adapters_that_are_not_supported_are_refused_by_name(config, message, base, tmp_path):
    model, run = base("llama")
    adapter = write_peft(tmp_path / "adapter", factors_for(model, ["q_proj"], 4), **config)
    with pytest.raises(UserError, match=message) as caught:
        import_adapter(str(adapter), run, tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


NORM = np.ones(64, np.float32)


@pytest.mark.parametrize(
    ("name", "tensors", "message"),
    [
        ("llama", {"model.layers.0.input_layernorm.weight": NORM}, "contains base_model.model.model.layers.0.input"),
        ("llama", {"model.layers.0.self_attn.q_proj.lora_magnitude_vector": NORM}, "magnitude_vector, which is not"),
        ("llama", {"model.embed_tokens.weight": np.ones((320, 64), np.float32)}, "embed_tokens.weight, which is not"),
        ("qwen3", {"lm_head.weight": np.ones((320, 64), np.float32)}, "lm_head.weight, which is not supported"),
        ("llama", {"lm_head.lora_A.weight": NORM[None], "lm_head.lora_B.weight": np.ones((320, 1), np.float32)},
         "has factors of lm_head, which is not a projection in a layer"),
        ("llama", {"model.layers.7.self_attn.q_proj.lora_A.weight": np.ones((4, 64), np.float32),
                   "model.layers.7.self_attn.q_proj.lora_B.weight": np.ones((128, 4), np.float32)},
         "has factors of model.layers.7.self_attn.q_proj"),
        ("llama", {"model.layers.0.self_attn.k_proj.lora_A.weight": np.ones((4, 64), np.float32)},
         "k_proj has only one of lora_A and lora_B"),
    ],
)  # fmt: skip
def test_tensors_that_are_not_supported_are_refused_by_name(name, tensors, message, base, tmp_path):
    model, run = base(name)
    extra = {PREFIX + key: tensor for key, tensor in tensors.items()}
    adapter = write_peft(tmp_path / "adapter", factors_for(model, ["q_proj"], 4), extra)
    with pytest.raises(UserError, match=message) as caught:
        import_adapter(str(adapter), run, tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_an_embedding_that_equals_the_base_model_s_is_accepted(base, tmp_path):
    model, run = base("llama")
    table_ = load_file(model / "model.safetensors")["model.embed_tokens.weight"]
    extra = {f"{PREFIX}model.embed_tokens.weight": table_}
    import_adapter(str(write_peft(tmp_path / "a", factors_for(model, ["q_proj"], 4), extra)), run, tmp_path / "run")


def test_an_adapter_of_another_model_is_an_error_that_asks_for_the_base(base, tmp_path):
    model, _ = base("llama")
    _, other = base("gemma2")
    adapter = write_peft(tmp_path / "adapter", factors_for(model, ["up_proj"], 4))
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({k: np.ascontiguousarray(x[:, :-1]) if "lora_A" in k else x for k, x in tensors.items()},
              adapter / "adapter_model.safetensors")  # fmt: skip
    with pytest.raises(UserError, match="is --base the model that it was trained on"):
        import_adapter(str(adapter), other, tmp_path / "run")


@pytest.mark.integration
def test_the_commands_import_generate_merge_and_export_an_adapter(base, tmp_path):
    model, run = base("llama")
    adapter = write_peft(tmp_path / "adapter", factors_for(model, TARGETS["llama"], 4))
    done = rootstock("import-hf", adapter, f"--workdir={tmp_path / 'none'}", check=False)
    assert done.returncode == 1 and len(error_lines(done)) == 1
    assert "is an adapter of PEFT (adapter_config.json); to import it, add --base=RUN" in error_lines(done)[0]
    done = rootstock("import-hf", adapter, f"--base={run}", f"--workdir={tmp_path / 'run'}")
    assert "LoRA of rank 4, alpha 8, on query, key, value, output, gate, up, down" in done.stderr
    assert "the adapter was trained on some/model" in done.stderr
    # The commands that it prints work as printed.
    commands = [line.split() for line in done.stderr.splitlines() if line.startswith("  rootstock ")]
    assert [command[1] for command in commands] == ["generate", "merge"]
    prompted = [f"--run={tmp_path / 'run'}", "--prompt=the cat", "--max_new_tokens=5", "--temperature=0"]
    text = rootstock("generate", *prompted).stdout
    rootstock(*commands[1][1:])
    prompted[0] = f"--run={tmp_path / 'run'}-merged"
    assert rootstock("generate", *prompted).stdout == text
    rootstock("export-hf", tmp_path / "run", "--adapter", f"--output={tmp_path / 'back'}")
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "results.json"
    ]  # fmt: skip
    assert "AutoPeftModelForCausalLM.from_pretrained('back')" in (tmp_path / "back" / "README.md").read_text()
    done = rootstock("export-hf", run, "--adapter", f"--output={tmp_path / 'no'}", check=False)
    assert "has no LoRA adapter; expected a run with config.adapt.method='lora'" in error_lines(done)[0]


@pytest.mark.skipif(not HAS_PEFT, reason="torch, transformers and peft are not installed")
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_logits_equal_those_of_peft_in_both_directions(name, base, tmp_path):
    import peft
    import torch
    import transformers

    from tests.train.huggingface.test_huggingface import logits_of

    model, run = base(name)
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=TARGETS[name], task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(theirs, config).eval()
    with torch.no_grad():
        for key, parameter in wrapped.named_parameters():
            if "lora_" in key:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    ids = np.random.default_rng(0).integers(3, 290, (2, 24)).astype(np.int32)
    with torch.no_grad():
        expected = wrapped(torch.tensor(ids, dtype=torch.long)).logits.numpy()
    wrapped.save_pretrained(tmp_path / "adapter")
    import_adapter(str(tmp_path / "adapter"), run, tmp_path / "run")
    opened = open_run(tmp_path / "run")
    params = opened.load_merged(single_device_mesh(), ("backbone", "head"))
    places = np.broadcast_to(np.arange(24, dtype=np.int32), ids.shape)
    np.testing.assert_allclose(logits_of(opened.model, params, ids, places * 0 + 1, places), expected, atol=1e-4)
    export_adapter(tmp_path / "run", tmp_path / "back")
    export_hf(run, tmp_path / "base")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    again = peft.PeftModel.from_pretrained(plain, tmp_path / "back").eval()
    with torch.no_grad():
        np.testing.assert_allclose(again(torch.tensor(ids, dtype=torch.long)).logits.numpy(), expected, atol=1e-4)
