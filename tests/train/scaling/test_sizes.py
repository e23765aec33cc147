"""The configs of a sweep are valid configs whose width is a multiple of the head size."""

import pytest

from configs import default
from configs.errors import UserError
from configs.models import architecture
from configs.pretrain import books, tiny
from model.config import model_config
from model.flops import matmul_parameters
from train.scaling.sizes import overrides, scaled, size_for, sweep_configs
from train.settings import from_config


def model_of(config):
    return model_config(config["model"] | {"vocab_size": 2048, "context_length": 128})


def test_size_1_and_length_1_give_the_config_itself():
    config = tiny.get_config().to_dict()
    same = scaled(config, 1, 1)
    assert same["evaluation"].pop("every") == config["num_steps"]
    config["evaluation"].pop("every")
    assert same == config


def test_scaling_keeps_the_ratios_of_the_model_and_of_the_schedule():
    config = tiny.get_config().to_dict()
    half = scaled(config, 0.5, 2)
    for name in ("embed_dim", "num_layers", "num_heads", "num_kv_heads", "mlp_dim"):
        assert half["model"][name] == config["model"][name] / 2, name
    assert model_of(half).head_dim == model_of(config).head_dim
    assert half["num_steps"] == 600 and half["optimizer"]["warmup_steps"] == 100
    assert half["batch_size"] == config["batch_size"]


def test_adamw_learning_rate_scales_with_1_over_width_and_muon_does_not():
    config = tiny.get_config().to_dict()
    assert scaled(config, 0.25, 1)["optimizer"]["learning_rate"] == 4 * config["optimizer"]["learning_rate"]
    muon = books.get_config().to_dict()
    assert scaled(muon, 0.25, 1)["optimizer"] == muon["optimizer"]


@pytest.mark.parametrize("name", ["gpt2", "llama3_8b", "qwen2_0_5b", "qwen3_0_6b", "smollm2_135m", "gemma2_2b"])
def test_every_size_of_a_published_architecture_is_valid(name):
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


def test_sweep_configs_are_named_and_sorted_by_size():
    config = tiny.get_config().to_dict()
    runs = sweep_configs(config, [1, 0.25, 0.5], [1, 0.5, 0.25])
    assert list(runs)[:4] == ["width48-steps75", "width48-steps150", "width48-steps300", "width96-steps75"]
    assert len(runs) == 9 and runs["width192-steps300"] == scaled(config, 1, 1)


@pytest.mark.parametrize(
    "sizes, lengths, message",
    [
        ([0.5, 1], [0.25, 0.5, 1], "--sizes=0.5,1 gives runs of [2, 4] heads"),
        ([0.25, 0.3, 1], [0.25, 0.5, 1], "--sizes=0.25,0.3,1 gives runs of [1, 1, 4] heads"),
        ([0.25, 0.5, 1], [0.5, 1], "--lengths=0.5,1 gives runs of [150, 300] steps"),
        ([0.25, 0.5, 1], [0.001, 0.002, 1], "[1, 1, 300] steps; expected at least 3 values that give different runs"),
    ],
)
def test_too_few_distinct_sizes_or_lengths_are_an_error(sizes, lengths, message):
    with pytest.raises(UserError) as error:
        sweep_configs(tiny.get_config().to_dict(), sizes, lengths)
    assert message in str(error.value)


def test_size_for_returns_the_nearest_number_of_parameters():
    config = tiny.get_config().to_dict()

    def count(one):
        return matmul_parameters(model_of(one))

    for heads in (1, 2, 5, 17, 64):
        exact = count(scaled(config, heads / 4, 1))
        assert size_for(config, exact, count) == heads / 4
        assert size_for(config, exact * 1.02, count) == heads / 4
    assert size_for(config, 1.0, count) == 0.25
    assert size_for(config, 1e40, count) == 1024


def test_overrides_reproduce_the_config():
    config = tiny.get_config()
    changed = scaled(config.to_dict(), 0.5, 0.5)
    flags = dict(flag.removeprefix("--config.").split("=") for flag in overrides(config.to_dict(), changed))
    config.update_from_flattened_dict(
        {name: float(value) if name == "optimizer.learning_rate" else int(value) for name, value in flags.items()}
    )
    config.evaluation.every = config.num_steps
    assert config.to_dict() == changed


def test_the_flags_of_a_longer_run_move_the_changes_of_its_mixture():
    config = tiny.get_config().to_dict()
    config["data"]["mixture_schedule"] = ((150, {"a": 1, "b": 3}),)
    longer = scaled(config, 1, 10)
    (moved,) = [flag for flag in overrides(config, longer) if "mixture_schedule" in flag]
    assert moved == f'--config.data.mixture_schedule="{longer["data"]["mixture_schedule"]}"'
    assert longer["data"]["mixture_schedule"][0][0] == 1500
    assert not any("mixture_schedule" in flag for flag in overrides(config, scaled(config, 2, 1)))
