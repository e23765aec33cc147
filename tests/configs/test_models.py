"""Published architectures: the numbers of the table add up to the published parameter counts."""

import jax
import pytest

from configs import default
from configs.errors import UserError
from configs.models import PUBLISHED_PARAMETERS, architecture
from model.config import EXECUTION_FIELDS, matmul_parameters, model_config
from model.heads import language_model, parameter_count

# Fields of config.model that say how a model starts or runs, which no published architecture decides.
NOT_ARCHITECTURE = {"output_init", *EXECUTION_FIELDS}


def count_parameters(a: dict) -> int:
    """Returns the number of parameters in closed form, without any of the model's code."""
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
def test_parameters_are_the_published_count(name):
    assert count_parameters(architecture(name)) == PUBLISHED_PARAMETERS[name]


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_the_model_has_the_published_count(name):
    section = default.get_config().model
    section.update(architecture(name))
    model = model_config(section)
    params = jax.eval_shape(language_model(model).init, jax.random.key(0))
    assert parameter_count(params) == PUBLISHED_PARAMETERS[name]
    # The vocabulary's product counts although a tied table is stored once; norms and biases multiply nothing.
    untied = 0 if model.tie_embeddings else model.vocab_size * model.embed_dim
    assert matmul_parameters(model) == pytest.approx(PUBLISHED_PARAMETERS[name] - untied, rel=0.01)


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_every_field_is_decided_and_fits_the_config(name):
    config = default.get_config().model
    fields = architecture(name)
    assert set(fields) == set(config) - NOT_ARCHITECTURE
    config.update(fields)
    assert {field: config[field] for field in fields} == fields


def test_table_and_counts_have_the_same_names():
    with pytest.raises(UserError) as error:
        architecture("")
    assert str(error.value).partition("legal: ")[2].split(", ") == list(PUBLISHED_PARAMETERS)


@pytest.mark.parametrize(
    ("wrong", "close"), [("llama-3-8b", "llama3_8b"), ("gpt2-xl", "gpt2_xl"), ("gemma2_9B", "gemma2_9b")]
)
def test_unknown_name_suggests_the_closest(wrong, close):
    with pytest.raises(UserError) as error:
        architecture(wrong)
    message = f"unknown architecture '{wrong}'; did you mean '{close}'?; legal: gpt2, "
    assert str(error.value).startswith(message)


def test_changing_the_result_leaves_the_table_alone():
    architecture("gpt2")["vocab_size"] = 1
    assert architecture("gpt2")["vocab_size"] == 50257


def test_fields_that_no_count_shows():
    assert architecture("mistral_7b")["sliding_window"] == (4096,)
    assert architecture("gemma2_2b")["sliding_window"] == (4096, 0)
    assert architecture("gemma2_9b")["query_scale"] == 0.0625
    assert architecture("llama3_2_1b")["rope_scaling_factor"] == 32.0
    assert architecture("qwen3_8b")["rope_theta"] == 1e6
    assert architecture("smollm2_1_7b")["rope_theta"] == 130000.0
