"""Every rung is a config that a user could have written; sizes come in whole heads."""

import pytest

from configs import default
from configs.errors import UserError
from configs.models import architecture
from configs.pretrain import books, tiny
from model.config import model_config
from model.flops import matmul_parameters
from train.scaling.sizes import ladder, overrides, scaled, size_for
from train.settings import from_config


def model_of(config):
    return model_config(config["model"] | {"vocab_size": 2048, "context_length": 128})


def test_size_one_and_length_one_are_the_config():
    config = tiny.get_config().to_dict()
    same = scaled(config, 1, 1)
    assert same["evaluation"].pop("every") == config["num_steps"]
    config["evaluation"].pop("every")
    assert same == config


def test_a_size_keeps_the_shape_and_a_length_the_schedule_s_shape():
    config = tiny.get_config().to_dict()
    half = scaled(config, 0.5, 2)
    for name in ("embed_dim", "num_layers", "num_heads", "num_kv_heads", "mlp_dim"):
        assert half["model"][name] == config["model"][name] / 2, name
    assert model_of(half).head_dim == model_of(config).head_dim
    assert half["num_steps"] == 600 and half["optimizer"]["warmup_steps"] == 100
    assert half["batch_size"] == config["batch_size"]


def test_adamw_s_learning_rate_goes_as_one_over_the_width_and_muon_s_stay():
    config = tiny.get_config().to_dict()
    assert scaled(config, 0.25, 1)["optimizer"]["learning_rate"] == 4 * config["optimizer"]["learning_rate"]
    muon = books.get_config().to_dict()
    assert scaled(muon, 0.25, 1)["optimizer"] == muon["optimizer"]


@pytest.mark.parametrize("name", ["gpt2", "llama3_8b", "qwen2_0_5b", "qwen3_0_6b", "smollm2_135m", "gemma2_2b"])
def test_every_size_of_a_published_family_is_a_model(name):
    config = default.get_config()
    config.model.update(architecture(name))
    config = config.to_dict()
    last = 0
    for size in (0.01, 0.2, 0.5, 0.77, 1, 1.3, 2):
        one = scaled(config, size, 1)
        from_config(one)
        model = model_of(one)
        assert model.head_dim == model_of(config).head_dim
        assert matmul_parameters(model) >= last
        last = matmul_parameters(model)


def test_the_ladder_names_its_runs_and_sorts_them_by_size():
    config = tiny.get_config().to_dict()
    runs = ladder(config, [1, 0.25, 0.5], [1, 0.5, 0.25])
    assert list(runs)[:4] == ["width48-steps75", "width48-steps150", "width48-steps300", "width96-steps75"]
    assert len(runs) == 9 and runs["width192-steps300"] == scaled(config, 1, 1)


@pytest.mark.parametrize(
    "sizes, lengths, message",
    [
        ([0.5, 1], [0.25, 0.5, 1], "--sizes=0.5,1 gives runs of [2, 4] heads"),
        ([0.25, 0.3, 1], [0.25, 0.5, 1], "--sizes=0.25,0.3,1 gives runs of [1, 1, 4] heads"),
        ([0.25, 0.5, 1], [0.5, 1], "--lengths=0.5,1 gives runs of [150, 300] steps"),
        ([0.25, 0.5, 1], [0.001, 0.002, 1], "[1, 1, 300] steps; legal: at least 3 values, whose runs differ"),
    ],
)
def test_a_ladder_of_too_few_rungs_is_refused(sizes, lengths, message):
    with pytest.raises(UserError) as error:
        ladder(tiny.get_config().to_dict(), sizes, lengths)
    assert message in str(error.value)


def test_the_size_for_a_number_of_parameters_is_the_nearest_one():
    config = tiny.get_config().to_dict()

    def count(one):
        return matmul_parameters(model_of(one))

    for heads in (1, 2, 5, 17, 64):
        exact = count(scaled(config, heads / 4, 1))
        assert size_for(config, exact, count) == heads / 4
        assert size_for(config, exact * 1.02, count) == heads / 4
    assert size_for(config, 1.0, count) == 0.25
    assert size_for(config, 1e40, count) == 1024


def test_overrides_are_the_flags_that_make_the_config():
    config = tiny.get_config()
    changed = scaled(config.to_dict(), 0.5, 0.5)
    flags = dict(flag.removeprefix("--config.").split("=") for flag in overrides(config.to_dict(), changed))
    config.update_from_flattened_dict(
        {name: float(value) if name == "optimizer.learning_rate" else int(value) for name, value in flags.items()}
    )
    config.evaluation.every = config.num_steps
    assert config.to_dict() == changed
