"""A config that is wrong says so before anything runs, all faults at once."""

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
        ({"batch_size": True}, ["config.batch_size is True; legal: int"]),
        ({"optimizer__name": "sgd"}, ["config.optimizer.name is 'sgd'; legal: adamw, muon"]),
        ({"batch_size": 0, "num_steps": -1}, ["config.batch_size is 0", "config.num_steps is -1"]),
        ({"microbatches": 5}, ["config.microbatches is 5; legal: a divisor of batch_size 32"]),
        ({"loss__chunk": 7}, ["config.loss.chunk is 7; legal: a divisor of sequence_length 256"]),
        ({"model__num_kv_heads": 3}, ["config.model.num_kv_heads=3 must divide config.model.num_heads=4; use one of"]),
        ({"model__norm": "batchnorm"}, ["config.model.norm is 'batchnorm'; legal: rmsnorm, layernorm"]),
        ({"model__sliding_window": (-1,)}, ["config.model.sliding_window=(-1,)"]),
        ({"optimizer__beta1": 1.5}, ["config.optimizer.beta1 is 1.5; legal: 0 to 1"]),
    ],
)
def test_faults_name_the_field_what_was_found_and_what_is_legal(fields, messages):
    with pytest.raises(UserError) as caught:
        from_config(changed(**fields))
    assert all(message in str(caught.value) for message in messages), str(caught.value)


def test_a_missing_section_and_a_missing_field_are_named():
    config = changed()
    del config["mesh"]
    with pytest.raises(UserError, match=r"config.mesh is missing"):
        from_config(config)
    config = changed()
    del config["optimizer"]["beta2"]
    with pytest.raises(UserError, match=r"config.optimizer.beta2 is missing"):
        from_config(config)


def test_an_architecture_differs_by_what_it_computes_alone():
    base = changed()["model"] | {"vocab_size": 8, "context_length": 8}
    ours = model_config(base)
    assert architecture_difference(ours, model_config(base | {"remat": "full", "scan_layers": False})) == []
    assert architecture_difference(ours, model_config(base | {"rope_theta": 5e5})) == [
        "rope_theta: 10000.0 != 500000.0"
    ]


def test_flops_count_three_products_a_weight_and_the_keys_a_query_sees():
    shape = {"embed_dim": 8, "num_heads": 2, "num_kv_heads": 1, "head_dim": 4, "mlp_dim": 16, "num_layers": 1}
    base = changed()["model"] | shape | {"vocab_size": 100, "context_length": 8}
    weights = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16 + 100 * 8
    # Four tokens see 1, 2, 3 and 4 keys; QK and AV are 2 products of 2 FLOPs each, three times over.
    assert training_flops_per_token(model_config(base), 4) == 6 * weights + 12 * 2 * 4 * 2.5
    # With a window of two they see 1, 2, 2 and 2.
    windowed = model_config(base | {"sliding_window": (2,)})
    assert training_flops_per_token(windowed, 4) == 6 * weights + 12 * 2 * 4 * 1.75
