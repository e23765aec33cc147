"""Published architectures have the published parameter counts."""

import jax
import pytest

from configs import default
from configs.errors import UserError
from configs.models import architecture
from model.config import EXECUTION_FIELDS, model_config
from model.flops import matmul_parameters
from model.heads import language_model, parameter_count

# Fields of config.model for initialization and execution, which a published architecture does not define.
NOT_ARCHITECTURE = {"output_init", *EXECUTION_FIELDS}

# Number of parameters of the published weights; a tied output table counts once, learned positions count.
# The count of GPT-3 follows from its table; appendix D of the paper rounds it to 174,600 million.
PUBLISHED_PARAMETERS: dict[str, int] = {
    "gpt2": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
    "gpt3_175b": 174_604_259_328,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama2_70b": 68_976_648_192,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama3_2_1b": 1_235_814_400,
    "mistral_7b": 7_241_732_096,
    "qwen2_0_5b": 494_032_768,
    "qwen2_7b": 7_615_616_512,
    "qwen3_0_6b": 596_049_920,
    "qwen3_8b": 8_190_735_360,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1_7b": 1_711_376_384,
    "olmo2_1b": 1_484_916_736,
    "olmo2_7b": 7_298_617_344,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
}


def count_parameters(a: dict) -> int:
    """Returns the number of parameters in closed form, without calling the model's code."""
    embed, head, mlp = a["embed_dim"], a["head_dim"], a["mlp_dim"]
    queries, keys = a["num_heads"] * head, a["num_kv_heads"] * head
    norm = embed * (2 if a["norm"] == "layernorm" else 1)
    matrices = 3 if a["mlp"] in ("silu_gated", "gelu_gated") else 2

    layer = norm * (4 if a["norm_position"] == "both" else 2)
    layer += embed * (queries + 2 * keys) + a["qkv_bias"] * (queries + 2 * keys)
    layer += queries * embed + a["output_bias"] * embed
    layer += matrices * embed * mlp + a["mlp_bias"] * ((matrices - 1) * mlp + embed)
    layer += (queries + keys if a["qk_norm_joint"] else 2 * head) * a["qk_norm"]

    tables = a["vocab_size"] * embed * (1 if a["tie_embeddings"] else 2)
    tables += a["context_length"] * embed * (a["position"] == "learned")
    return tables + a["num_layers"] * layer + norm


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_closed_form_parameter_count_is_the_published_one(name):
    assert count_parameters(architecture(name)) == PUBLISHED_PARAMETERS[name]


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_initialized_model_has_the_published_parameter_count(name):
    section = default.get_config().model
    section.update(architecture(name))
    model = model_config(section)
    params = jax.eval_shape(language_model(model).init, jax.random.key(0))
    assert parameter_count(params) == PUBLISHED_PARAMETERS[name]
    # matmul_parameters counts the output product even if its table is tied; it omits norms and biases.
    untied = 0 if model.tie_embeddings else model.vocab_size * model.embed_dim
    assert matmul_parameters(model) == pytest.approx(PUBLISHED_PARAMETERS[name] - untied, rel=0.01)


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_architecture_sets_every_field_with_the_right_type(name):
    config = default.get_config().model
    fields = architecture(name)
    assert set(fields) == set(config) - NOT_ARCHITECTURE
    config.update(fields)
    assert {field: config[field] for field in fields} == fields


def test_every_architecture_has_a_published_count():
    with pytest.raises(UserError) as error:
        architecture("")
    assert str(error.value).partition("expected one of ")[2].split(", ") == list(PUBLISHED_PARAMETERS)


@pytest.mark.parametrize(
    ("wrong", "close"), [("llama-3-8b", "llama3_8b"), ("gpt2-xl", "gpt2_xl"), ("gemma2_9B", "gemma2_9b")]
)
def test_unknown_architecture_suggests_the_closest_name(wrong, close):
    with pytest.raises(UserError) as error:
        architecture(wrong)
    message = f"unknown architecture '{wrong}'; did you mean '{close}'?; expected one of gpt2, "
    assert str(error.value).startswith(message)


def test_architecture_returns_a_copy():
    architecture("gpt2")["vocab_size"] = 1
    assert architecture("gpt2")["vocab_size"] == 50257


def test_fields_that_do_not_change_the_parameter_count():
    assert architecture("mistral_7b")["sliding_window"] == (4096,)
    assert architecture("gemma2_2b")["sliding_window"] == (4096, 0)
    assert architecture("gemma2_9b")["query_scale"] == 0.0625
    assert architecture("llama3_2_1b")["rope_scaling_factor"] == 32.0
    assert architecture("qwen3_8b")["rope_theta"] == 1e6
    assert architecture("smollm2_1_7b")["rope_theta"] == 130000.0
