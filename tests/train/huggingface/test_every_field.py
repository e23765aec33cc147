"""No field of config.json changes what transformers computes without a word: import matches its logits, or refuses."""

import importlib.util

import numpy as np
import pytest

from configs.errors import UserError
from model.config import model_config
from model.huggingface.config_file import to_section
from model.huggingface.families import ARCHITECTURES
from tests.train.huggingface.parity import OTHER, our_logits, tensors_of, tiny_config, torch_logits, torch_model

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
    reason="torch and transformers are not installed",
)

# Fields that a family's own file need not have, with values that change some family's function.
FOREIGN = {
    "is_causal": False, "layer_types": ["sliding_attention"] * 4, "sliding_window": 4, "use_sliding_window": True,
    "head_dim": 10, "attention_bias": True, "mlp_bias": True, "use_bias": True, "use_qkv_bias": True,
    "partial_rotary_factor": 0.5, "rotary_pct": 0.5, "rope_theta": 300.0, "rotary_emb_base": 300.0,
    "rope_local_base_freq": 300.0, "rope_scaling": {"rope_type": "linear", "factor": 3.0},
    "original_max_position_embeddings": 8, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 1.5,
    "use_bidirectional_attention": True, "residual_multiplier": 0.5, "embedding_multiplier": 2.0,
    "attention_multiplier": 0.1, "logits_scaling": 3.0, "logit_scale": 0.3, "no_rope_layers": [0, 0, 1, 1],
    "clip_qkv": 0.5, "query_pre_attn_scalar": 3, "qk_layernorm": True, "use_qk_norm": True, "alibi": True,
    "parallel_attn": False, "use_parallel_residual": False, "sliding_window_pattern": 2, "n_inner": 12,
    "per_layer_config": {"0": {"num_attention_heads": 1}}, "use_mrope": True, "is_encoder_decoder": True,
    "scale_attn_by_inverse_layer_idx": True, "num_experts": 4, "num_local_experts": 2, "hidden_act": "relu",
    "num_experts_per_tok": 3, "norm_topk_prob": True, "moe_intermediate_size": 20, "decoder_sparse_step": 2,
    "mlp_only_layers": [0, 2], "n_group": 2, "routed_scaling_factor": 2.0, "shared_expert_intermediate_size": 8,
}  # fmt: skip
NULLS = (1, 12, 0.5, True)  # tried where a field is null


def changes(value):
    """Returns other values of a number or a bool."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value * 2, 0]
    if isinstance(value, float):
        return [value * 1.5 + (value == 0), 0.0]
    return list(NULLS) if value is None else []


def variants(config):
    """Yields (what was changed, config.json) for each changed, added or removed field."""
    for name, value in config.items():
        if name in ("model_type", "transformers_version", "dtype"):
            continue
        for other in changes(value):
            yield f"{name}={other}", config | {name: other}
        yield f"without {name}", {key: entry for key, entry in config.items() if key != name}
        if name.startswith("rope_") and isinstance(value, dict):
            yield from nested(config, name, value)
    for name, value in FOREIGN.items():
        yield f"{name}={value}", config | {name: value}


def nested(config, name, value):
    for inner, entry in value.items():
        for other in changes(entry):
            yield f"{name}.{inner}={other}", config | {name: value | {inner: other}}
        if isinstance(entry, dict):
            for key, number in entry.items():
                for other in changes(number):
                    yield f"{name}.{inner}.{key}={other}", config | {name: value | {inner: entry | {key: other}}}


def check(config, computed):
    """Returns "refused", "matched" or "impossible" (transformers fails too), or how far the logits are off.

    Args:
        config: config.json.
        computed: {model and shapes: our logits} of earlier calls, for the many fields that change neither.
    """
    try:
        model = model_config(to_section(config, "config.json")[1])
    except UserError as error:
        assert "\n" not in str(error)
        return "refused"
    try:
        theirs = torch_model(config)
        expected = torch_logits(theirs)
    except Exception:  # transformers rejects the value, in one of many ways
        return "impossible"
    if not np.isfinite(expected).all():
        return "impossible"
    tensors = tensors_of(theirs)
    key = model, tuple((name, tensor.shape, tensor.sum().item()) for name, tensor in sorted(tensors.items()))
    try:
        if key not in computed:
            computed[key] = our_logits(config, tensors)
    except UserError:
        return "refused"
    difference = float(np.abs(computed[key] - expected).max())
    return "matched" if difference < 1e-4 else f"logits differ by {difference:.3g}"


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_a_changed_field_gives_the_logits_of_transformers_or_is_refused(family):
    config, computed = tiny_config(family), {}
    assert check(config, computed) == "matched"
    results = {what: check(changed, computed) for what, changed in variants(config)}
    wrong = {what: result for what, result in results.items() if result not in ("matched", "refused", "impossible")}
    assert not wrong
    counts = {kind: sum(result == kind for result in results.values()) for kind in ("matched", "refused")}
    assert counts["matched"] > 40 and counts["refused"] > 15, counts


def test_the_default_config_of_a_hybrid_model_is_refused():
    import transformers

    with pytest.raises(UserError, match="Mamba layers are not supported"):
        our_logits(transformers.AutoConfig.for_model("granitemoehybrid").to_dict(), {})
    assert OTHER["granitemoehybrid"]["num_local_experts"] == 0
