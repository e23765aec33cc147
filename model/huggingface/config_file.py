"""Hugging Face's config.json <-> `config.model`."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from configs import default, models
from configs.errors import UserError
from model.config import EXECUTION_FIELDS, ModelConfig, model_config
from model.huggingface.experts import refuse_mixture
from model.huggingface.families import ARCHITECTURES, FAMILIES, Family
from model.huggingface.fields import checked

# Fields of `config.model` that do not change the function of given weights, or that `ModelConfig.kinds` contains.
_NOT_COMPARED = (
    "output_init", "sliding_window", "position", "query_scale", "dense_layers", "expert_every", *EXECUTION_FIELDS,
)  # fmt: skip


def to_section(config: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """Returns (architecture, `config.model`) of a config.json.

    Raises:
        UserError: an unknown architecture, a missing field, or a choice that `ModelConfig` does not support.
    """
    architecture = config.get("model_type")
    if not isinstance(architecture, str) or architecture not in FAMILIES:
        refuse_mixture(config, where)
        raise UserError(
            f"{where}: model_type={architecture!r} is not supported; expected one of {', '.join(ARCHITECTURES)}"
        )
    family = FAMILIES[architecture]
    try:
        return architecture, _section(architecture, family, config)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"{where}: a field has the wrong type ({error!r:.80}); expected a config.json of {architecture}"
        ) from None


def _section(architecture: str, family: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    values = checked(architecture, config, family.defaults, family.only, family.harmless)
    section = default.model().to_dict() | models.architecture(family.published) | _positions() | family.fixed
    for name, field in family.fields.items():
        section |= field.to_ours(name, values[name])
    for part in family.sections:
        section |= part.read(values)
    section["num_kv_heads"] = section["num_kv_heads"] or section["num_heads"]
    section["head_dim"] = section["head_dim"] or section["embed_dim"] // section["num_heads"]
    section["mlp_dim"] = section["mlp_dim"] or 4 * section["embed_dim"]
    if "local" not in section["rope_layers"]:
        section["rope_local_theta"] = _positions()["rope_local_theta"]
    return section


def _positions() -> dict[str, Any]:
    """Returns the fields of rotary positions and windows with their defaults."""
    return {n: v for n, v in default.model().to_dict().items() if n.startswith("rope_") or n == "sliding_window"}


def to_config(architecture: str, c: ModelConfig, dtype: str) -> dict[str, Any]:
    """Returns the config.json of a model, without its class and the ids of special tokens."""
    family, c = FAMILIES[architecture], _written_out(c)
    found: dict[str, Any] = {"model_type": architecture, "torch_dtype": dtype}
    found |= {name: field.to_theirs(c) for name, field in family.fields.items()}
    for part in family.sections:
        found |= part.write(c)
    return found


def architecture_of(config: ModelConfig, preferred: str = "") -> str:
    """Returns the Hugging Face architecture that computes the same function as `config`.

    Args:
        config: the model.
        preferred: an architecture that comes first if it does; the others follow in the order of `FAMILIES`.

    Raises:
        UserError: no architecture does.
    """
    names = [name for name in ARCHITECTURES if (FAMILIES[name].fused is not None) == (config.num_experts > 0)]
    closest: tuple[int, str, list[str]] = (99, "", [])
    for name in [preferred, *names] if preferred in names else names:
        wrong = _lost(name, config)
        if not wrong:
            return name
        closest = min(closest, (len(wrong), name, wrong))
    raise UserError(
        f"no Hugging Face architecture can express this model; the closest, {closest[1]}, does not support "
        f"{', '.join(closest[2])}; expected a model of {', '.join(names)}"
    )


def _lost(architecture: str, config: ModelConfig) -> list[str]:
    """Returns "field=value" of `config` for each field that its config.json in this architecture does not keep."""
    config = _written_out(config)
    try:
        _, section = to_section(to_config(architecture, config, "float32"), architecture)
        read = _written_out(model_config(section))
    except UserError as error:
        return [str(error).removeprefix(f"{architecture}: ")]
    lost = [
        f"{field.name}={getattr(config, field.name)!r}"
        for field in dataclasses.fields(ModelConfig)
        if field.name not in _NOT_COMPARED
        and not field.name.startswith("rope_")
        and not _equal(getattr(config, field.name), getattr(read, field.name))
    ]
    if not _equal(config.query_scale, read.query_scale):
        lost.append(f"query_scale={config.query_scale}")
    if [kind.experts for kind in config.kinds] != [kind.experts for kind in read.kinds]:
        lost.append(f"dense_layers={config.dense_layers} with expert_every={config.expert_every}")
    if (config.position == "learned") != (read.position == "learned"):
        lost.append(f"position={config.position!r}")
    if config.windows != read.windows:
        lost.append(f"sliding_window={config.sliding_window}")
    if [kind.rotary for kind in config.kinds] != [kind.rotary for kind in read.kinds]:
        names = (name for name in vars(config) if name.startswith("rope_") and name != "rope_layers")
        fields = [name for name in names if not _equal(getattr(config, name), getattr(read, name))]
        lost += [f"{name}={getattr(config, name)!r:.60}" for name in fields or ["rope_layers"]]
    return lost


def _equal(ours: object, theirs: object) -> bool:
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=1e-6)
    return ours == theirs


def _written_out(c: ModelConfig) -> ModelConfig:
    """Returns the same function with what 0 stands for written out, and one of several ways to write a router."""
    changes: dict[str, Any] = {"query_scale": c.query_scale or c.head_dim**-0.5}
    if c.num_experts:
        changes["expert_dim"] = c.expert_width
        if c.expert_layers == c.num_layers:
            changes["mlp_dim"] = c.expert_width  # no layer has an MLP
        if c.router == "softmax_top":
            changes |= {"router": "softmax", "router_renormalize": True}
    return dataclasses.replace(c, **changes)
