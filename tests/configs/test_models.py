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
    "qwen2_5_0_5b": 494_032_768,
    "qwen2_5_1_5b": 1_543_714_304,
    "qwen2_5_3b": 3_085_938_688,
    "qwen2_5_7b": 7_615_616_512,
    "qwen2_5_14b": 14_770_033_664,
    "qwen2_5_32b": 32_763_876_352,
    "qwen2_5_72b": 72_706_203_648,
    "qwen3_0_6b": 596_049_920,
    "qwen3_1_7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "qwen3_14b": 14_768_307_200,
    "qwen3_32b": 32_762_123_264,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1_7b": 1_711_376_384,
    "olmo2_1b": 1_484_916_736,
    "olmo2_7b": 7_298_617_344,
    "olmo3_7b": 7_298_011_136,
    "olmo3_32b": 32_233_522_176,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
    "gemma3_4b": 3_880_263_168,
    "gemma3_12b": 11_766_034_176,
    "gemma3_27b": 27_009_346_304,
    "smollm3_3b": 3_075_098_624,
    "phi3_mini_4k": 3_821_079_552,
    "phi3_medium_4k": 13_960_238_080,
    "phi4_14b": 14_659_507_200,
    "granite3_2b": 2_533_531_648,
    "granite3_8b": 8_170_848_256,
    "granite4_micro": 3_402_836_480,
    "command_r_35b": 34_980_831_232,
    "command_r7b": 8_028_033_024,
    "stablelm_3b": 2_795_443_200,
    "stablelm2_1_6b": 1_644_515_328,
    "pythia_160m": 162_322_944,
    "pythia_410m": 405_334_016,
    "pythia_1b": 1_011_781_632,
    "pythia_1_4b": 1_414_647_808,
    "pythia_2_8b": 2_775_208_960,
    "pythia_6_9b": 6_857_302_016,
    "pythia_12b": 11_846_072_320,
    "starcoder2_3b": 3_030_371_328,
    "starcoder2_7b": 7_173_923_840,
    "starcoder2_15b": 15_957_889_024,
    "falcon_7b": 6_921_720_704,
    "falcon_40b": 41_303_293_952,
    "mixtral_8x7b": 46_702_792_704,
    "olmoe_1b_7b": 6_919_161_856,
    "qwen3_30b_a3b": 30_532_122_624,
}
# In billions, of the parameters that one token uses: arXiv:2401.04088, section 2; arXiv:2409.02060, table 1;
# arXiv:2505.09388, table 2.
PUBLISHED_ACTIVE = {"mixtral_8x7b": 12.9, "olmoe_1b_7b": 1.3, "qwen3_30b_a3b": 3.3}


def count_parameters(a: dict, experts: int = 0) -> int:
    """Returns the number of parameters in closed form, without calling the model's code.

    Args:
        a: the architecture.
        experts: number of experts that are counted; 0: all.
    """
    embed, head, mlp = a["embed_dim"], a["head_dim"], a["mlp_dim"]
    queries, keys = a["num_heads"] * head, a["num_kv_heads"] * head
    norm = embed * (2 if a["norm"] == "layernorm" and a["norm_bias"] else 1)
    matrices = 3 if a["mlp"] in ("silu_gated", "gelu_gated") else 2

    layer = norm * (4 if a["norm_position"] == "both" else 1 if a["parallel"] == "one_norm" else 2)
    layer += embed * (queries + 2 * keys) + a["qkv_bias"] * (queries + 2 * keys)
    layer += queries * embed + a["output_bias"] * embed
    if a["num_experts"]:  # in these models, each layer has experts
        layer += (experts or a["num_experts"]) * matrices * embed * (a["expert_dim"] or mlp) + embed * a["num_experts"]
    else:
        layer += matrices * embed * mlp + a["mlp_bias"] * ((matrices - 1) * mlp + embed)
    layer += (queries + keys if a["qk_norm_joint"] else 2 * head) * a["qk_norm"]

    tables = a["vocab_size"] * embed * (1 if a["tie_embeddings"] else 2)
    tables += a["context_length"] * embed * (a["position"] == "learned")
    return tables + a["num_layers"] * layer + norm


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_closed_form_parameter_count_is_the_published_one(name):
    assert count_parameters(architecture(name)) == PUBLISHED_PARAMETERS[name]


@pytest.mark.integration
@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_initialized_model_has_the_published_parameter_count(name):
    section = default.get_config().model
    section.update(architecture(name))
    model = model_config(section)
    params = jax.eval_shape(language_model(model).init, jax.random.key(0))
    assert parameter_count(params) == PUBLISHED_PARAMETERS[name]
    # matmul_parameters counts the output product even if its table is tied; it omits norms and biases.
    untied = 0 if model.tie_embeddings else model.vocab_size * model.embed_dim
    active = count_parameters(architecture(name), model.experts_per_token)
    assert matmul_parameters(model) == pytest.approx(active - untied, rel=0.01)


@pytest.mark.parametrize("name", PUBLISHED_ACTIVE)
def test_a_mixture_of_experts_has_the_published_active_parameter_count(name):
    a = architecture(name)
    # Rounded, or cut off, to one digit.
    assert 0 <= count_parameters(a, a["experts_per_token"]) / 1e9 - PUBLISHED_ACTIVE[name] + 0.05 < 0.11


def test_every_mixture_of_experts_has_a_published_active_count():
    assert set(PUBLISHED_ACTIVE) == {name for name in PUBLISHED_PARAMETERS if architecture(name)["num_experts"]}


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
