"""Config fields that would change nothing: a value that was set is either used or refused, never ignored.

Most fields always act. Some act only together with another field (`CONDITIONS`), some only in one stage or task, which
the caller names.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from configs import reference

Config = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Condition:
    """Fields that act only under a condition on the config.

    Attributes:
        fields: names, e.g. "adapt.rank".
        acts: whether they act, given the config.
        needs: what makes them act, for the message.
    """

    fields: tuple[str, ...]
    acts: Callable[[Config], bool]
    needs: str


def _for_scaling(fields: tuple[str, ...], *kinds: str) -> Condition:
    """Returns the condition of fields of `config.model` that only these kinds of `rope_scaling` read."""
    needs = f"config.model.rope_scaling={' or '.join(map(repr, kinds))}"
    return Condition(tuple(f"model.{name}" for name in fields), lambda c: c["model"]["rope_scaling"] in kinds, needs)


CONDITIONS = (
    Condition(
        ("model.rope_theta", "model.rope_scaling", "model.rope_fraction", "model.rope_layers"),
        lambda c: c["model"]["position"] == "rope",
        "config.model.position='rope'",
    ),
    _for_scaling(("rope_scaling_factor",), "linear", "dynamic", "llama3", "yarn", "longrope"),
    _for_scaling(("rope_original_context",), "dynamic", "llama3", "yarn", "longrope"),
    _for_scaling(("rope_low_frequency_factor", "rope_high_frequency_factor"), "llama3"),
    _for_scaling(("rope_beta_fast", "rope_beta_slow", "rope_round_range"), "yarn"),
    _for_scaling(("rope_attention_factor",), "yarn", "longrope"),
    _for_scaling(("rope_short_factors", "rope_long_factors"), "longrope"),
    Condition(
        ("model.rope_local_theta",),
        lambda c: "local" in c["model"]["rope_layers"],
        "'local' in config.model.rope_layers",
    ),
    Condition(
        (
            *("model.experts_per_token", "model.expert_dim", "model.shared_expert_dim", "model.dense_layers"),
            *("model.expert_every", "model.router", "model.router_renormalize", "model.router_bias"),
            *("loss.router_z_loss", "loss.balance_loss"),
        ),
        lambda c: c["model"]["num_experts"] > 0,
        "config.model.num_experts",
    ),
    Condition(("optimizer.router_bias_rate",), lambda c: c["model"]["router_bias"], "config.model.router_bias=True"),
    Condition(("model.norm_bias",), lambda c: c["model"]["norm"] == "layernorm", "config.model.norm='layernorm'"),
    Condition(("model.qk_norm_joint",), lambda c: c["model"]["qk_norm"], "config.model.qk_norm=True"),
    Condition(("task.ensemble",), lambda c: c["task"]["alternatives"], "config.task.alternatives=True"),
    Condition(
        ("task.out_of_scope", "task.ensemble"), lambda c: not c["task"]["multi_label"], "config.task.multi_label=False"
    ),
    Condition(("adapt.last_layers",), lambda c: c["adapt"]["method"] == "last", "config.adapt.method='last'"),
    Condition(
        ("adapt.rank", "adapt.alpha", "adapt.targets", "adapt.base_quantization"),
        lambda c: c["adapt"]["method"] == "lora",
        "config.adapt.method='lora'",
    ),
    Condition(
        ("optimizer.muon_learning_rate", "optimizer.muon_iterations"),
        lambda c: c["optimizer"]["name"] == "muon",
        "config.optimizer.name='muon'",
    ),
    Condition(
        ("optimizer.name", "optimizer.weight_decay", "optimizer.layer_decay"),
        lambda c: c["adapt"]["method"] != "head",
        "a config.adapt.method that trains layers, not the 'head' alone",
    ),
    Condition(
        ("optimizer.decay_fraction",),
        lambda c: c["optimizer"]["schedule"] == "wsd",
        "config.optimizer.schedule='wsd'",
    ),
    Condition(
        ("optimizer.final_fraction",),
        lambda c: c["optimizer"]["schedule"] != "constant",
        "a config.optimizer.schedule that decays",
    ),
    Condition(
        ("checkpoint.local_every",), lambda c: bool(c["checkpoint"]["local_path"]), "config.checkpoint.local_path"
    ),
    Condition(("data.mixture_schedule",), lambda c: bool(c["data"]["mixture"]), "config.data.mixture"),
    Condition(
        ("logging.project",), lambda c: c["logging"]["tracker"] != "none", "config.logging.tracker='wandb' or 'trackio'"
    ),
    Condition(
        ("evaluation.metric",),
        lambda c: c["evaluation"]["patience"] > 0 or c["checkpoint"]["best"],
        "config.evaluation.patience or config.checkpoint.best",
    ),
)


def inactive_fields(config: Config, unused: Mapping[str, str]) -> list[str]:
    """Returns one message per field that differs from its default although its value would change nothing.

    Args:
        config: a complete config.
        unused: {field, or section: why it does not act in this stage and task}, e.g. {"adapt": "in pre-training"}.
    """
    messages = []
    for field in reference.fields():
        value = config[field.section][field.name.rpartition(".")[2]] if field.section else config[field.name]
        if _plain(value) == _plain(field.default):
            continue
        remedy = f"expected {field.default!r}, the default"
        why = unused.get(field.name, unused.get(field.section) if field.section else None)
        if why is not None:
            messages.append(f"config.{field.name}={value!r} has no effect {why}; {remedy}")
        messages += [
            f"config.{field.name}={value!r} has no effect without {condition.needs}; {remedy}"
            for condition in CONDITIONS
            if why is None and field.name in condition.fields and not condition.acts(config)
        ]
    return messages


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
