"""An invalid config is an error before anything runs, and the error lists every invalid field."""

import pytest

from configs import default
from configs.errors import UserError
from model.config import architecture_difference, model_config
from model.flops import training_flops_per_token
from train.settings import from_config


def changed(**fields):
    config = default.get_config().to_dict()
    for name, value in fields.items():
        section = config
        *path, last = name.split("__")
        for part in path:
            section = section[part]
        section[last] = value
    return config


@pytest.mark.parametrize(
    ("fields", "messages"),
    [
        ({"optimizer__learning_rat": 1.0}, ["config.optimizer.learning_rat is unknown; did you mean 'learning_rate'?"]),
        ({"batch_size": True}, ["config.batch_size=True must be of type int"]),
        ({"optimizer__name": "sgd"}, ["config.optimizer.name='sgd' must be one of adamw, muon"]),
        (
            {"batch_size": 0, "num_steps": -1},
            ["config.batch_size=0 must be at least 1", "config.num_steps=-1 must be at least 1"],
        ),
        ({"microbatches": 5}, ["config.microbatches=5 must divide config.batch_size (32)"]),
        ({"loss__chunk": 7}, ["config.loss.chunk=7 must divide config.sequence_length (256)"]),
        ({"model__num_kv_heads": 3}, ["config.model.num_kv_heads=3 must divide config.model.num_heads=4; use one of"]),
        ({"model__norm": "batchnorm"}, ["config.model.norm='batchnorm' must be one of rmsnorm, layernorm"]),
        ({"model__sliding_window": (-1,)}, ["config.model.sliding_window=(-1,)"]),
        ({"loss__z_loss": float("nan")}, ["config.loss.z_loss=nan must be at least 0"]),
        (
            {"batch_size": 0, "model__num_layers": 0, "model__norm": "x", "task__shots": -1, "task__rows": 1},
            [
                *("config.batch_size=0 must", "config.model.num_layers=0 must", "config.model.norm='x' must"),
                *("config.task.shots=-1 must", "config.task.rows is unknown"),
            ],
        ),
        ({"task__input": "{a"}, ["config.task.input='{a': a single '{'; write {{ for a brace; expected"]),
        ({"optimizer__beta1": 1.5}, ["config.optimizer.beta1=1.5 must be between 0 and 1"]),
        ({"optimizer__beta2": 1.0}, ["config.optimizer.beta2=1.0 would divide by 0", "expected a factor below 1"]),
        ({"optimizer__epsilon": 0.0}, ["config.optimizer.epsilon=0.0 would divide 0 by 0", "expected e.g. 1e-8"]),
        ({"seed": -1}, ["config.seed=-1 must be between 0 and 9223372036854775807"]),
        ({"seed": 2**63}, ["config.seed=9223372036854775808 must be between 0 and 9223372036854775807"]),
    ],
)
def test_an_invalid_config_names_each_field_its_value_and_what_is_expected(fields, messages):
    with pytest.raises(UserError) as caught:
        from_config(changed(**fields))
    assert all(message in str(caught.value) for message in messages), str(caught.value)


def test_a_missing_section_or_field_is_named():
    config = changed()
    del config["mesh"]
    with pytest.raises(UserError, match=r"config.mesh is missing"):
        from_config(config)
    config = changed()
    del config["optimizer"]["beta2"]
    with pytest.raises(UserError, match=r"config.optimizer.beta2 is missing"):
        from_config(config)


def test_execution_fields_do_not_make_architectures_differ():
    base = changed()["model"] | {"vocab_size": 8, "context_length": 8}
    ours = model_config(base)
    assert architecture_difference(ours, model_config(base | {"remat": "full", "scan_layers": False})) == []
    assert architecture_difference(ours, model_config(base | {"rope_theta": 5e5})) == [
        "rope_theta: 10000.0 != 500000.0"
    ]


def test_flops_per_token_count_the_weights_and_the_visible_keys():
    shape = {"embed_dim": 8, "num_heads": 2, "num_kv_heads": 1, "head_dim": 4, "mlp_dim": 16, "num_layers": 1}
    base = changed()["model"] | shape | {"vocab_size": 100, "context_length": 8}
    weights = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16 + 100 * 8
    # Four tokens see 1, 2, 3 and 4 keys; QK and AV are 2 products of 2 FLOPs each, three times over.
    assert training_flops_per_token(model_config(base), 4) == 6 * weights + 12 * 2 * 4 * 2.5
    # With a window of two they see 1, 2, 2 and 2.
    windowed = model_config(base | {"sliding_window": (2,)})
    assert training_flops_per_token(windowed, 4) == 6 * weights + 12 * 2 * 4 * 1.75
