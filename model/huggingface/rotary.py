"""Rotary positions in config.json, in both spellings of `transformers`.

Up to version 4: `rope_theta` and `rope_scaling`. From version 5: `rope_parameters`, flat or with one entry per type of
layer. `rope_scaling` comes first where a file has both.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

from configs.errors import UserError
from model.config import ModelConfig
from model.huggingface.fields import Section, Values

# {their scaling: (ours, the fields it needs, the fields it may have)}
_SCALINGS: dict[str, tuple[str, frozenset[str], frozenset[str]]] = {
    "default": ("none", frozenset(), frozenset()),
    "linear": ("linear", frozenset({"factor"}), frozenset()),
    "dynamic": ("dynamic", frozenset({"factor"}), frozenset()),
    "llama3": (
        "llama3",
        frozenset({"factor", "low_freq_factor", "high_freq_factor"}),
        frozenset({"original_max_position_embeddings"}),
    ),
    "yarn": (
        "yarn",
        frozenset({"factor"}),
        frozenset(
            {"original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale"}
            | {"mscale_all_dim", "truncate"}
        ),
    ),
    "longrope": (
        "longrope",
        frozenset({"short_factor", "long_factor"}),
        frozenset({"original_max_position_embeddings", "attention_factor", "factor"}),
    ),
}
_ALWAYS = frozenset({"rope_theta", "rope_type", "type", "partial_rotary_factor"})
_FULL, _SLIDING = "full_attention", "sliding_attention"


@dataclasses.dataclass(frozen=True)
class Spelling:
    """How the class of a family reads its rotary positions.

    Attributes:
        theta: the base where the file has none.
        fraction: the rotated fraction of each head where the file has none; None: the family rotates whole heads.
        theta_name: name of the base outside of `rope_parameters`.
        fraction_name: name of the rotated fraction outside of `rope_parameters`.
        unread: names of these two that files contain too, but the class does not read.
        scalings: the scalings that the class accepts.
        synonyms: {older name of a scaling: its name}.
        original: default of `original_max_position_embeddings` outside of `rope_parameters`, which comes first; 0: the
            class has no such field.
    """

    theta: float = 10000.0
    fraction: float | None = None
    theta_name: str = "rope_theta"
    fraction_name: str = "partial_rotary_factor"
    unread: tuple[str, ...] = ()
    scalings: tuple[str, ...] = tuple(_SCALINGS)
    synonyms: Mapping[str, str] = dataclasses.field(default_factory=dict)
    original: int = 0


def rotary(spelling: Spelling) -> Section:
    """Returns the fields of a family whose layers have one kind of rotary positions, or none."""
    s = spelling
    defaults: dict[str, Any] = {s.theta_name: None, "rope_scaling": None, "rope_parameters": None}
    defaults |= dict.fromkeys(s.unread)
    if s.fraction is not None:
        defaults[s.fraction_name] = None
    if s.original:
        defaults["original_max_position_embeddings"] = s.original

    def write(c: ModelConfig) -> dict[str, Any]:
        """Returns the fields of config.json."""
        found: dict[str, Any] = {s.theta_name: c.rope_theta}
        if s.fraction is not None:
            found[s.fraction_name] = c.rope_fraction
        if c.rope_scaling != "none":
            scaling = _write(c)
            if s.original:
                found["original_max_position_embeddings"] = scaling.pop("original_max_position_embeddings", s.original)
            found["rope_scaling"] = scaling
        return found

    return Section(defaults, functools.partial(_read_one, s), write)


def _read_one(s: Spelling, values: Values) -> dict[str, Any]:
    """Returns the `rope_` fields of `config.model` of a family with one kind of rotary positions."""
    name = "rope_scaling" if values["rope_scaling"] else "rope_parameters"
    found = dict(values[name] or {})
    own = values[s.theta_name]
    found.setdefault("rope_theta", s.theta if own is None else own)
    if s.fraction is not None:
        own = values[s.fraction_name]
        found.setdefault("partial_rotary_factor", s.fraction if own is None else own)
    for alias in s.unread:
        if values[alias] not in (None, found[alias]):
            raise UserError(f"{alias}={values[alias]!r} is not read by transformers, which uses {found[alias]!r}")
    if s.original:
        found["original_max_position_embeddings"] = values["original_max_position_embeddings"]
    return _read(found, name, s, values["max_position_embeddings"])


def rotary_per_type(theta: float, local_theta: float, local_name: str = "") -> Section:
    """Returns the fields of a family whose layers with a window have a base of their own and no scaling.

    Args:
        theta: base of the layers without a window where the file has none.
        local_theta: base of the layers with a window where the file has none.
        local_name: name of the latter outside of `rope_parameters`; "": it has none.
    """
    spelling = Spelling(theta)
    defaults: dict[str, Any] = {"rope_theta": None, "rope_scaling": None, "rope_parameters": None}
    defaults |= {local_name: None} if local_name else {}

    def read(values: Values) -> dict[str, Any]:
        """Returns the fields of `config.model`."""
        nested = dict(values["rope_parameters"] or {})
        if unknown := set(nested) - {_FULL, _SLIDING}:
            raise UserError(f"rope_parameters.{min(unknown)} is not supported; expected {_FULL} and {_SLIDING}")
        full = dict(nested.get(_FULL) or {}) | dict(values["rope_scaling"] or {})
        local = dict(nested.get(_SLIDING) or {})
        own = values["rope_theta"]
        if own is not None:
            if not local_name and "rope_theta" not in local and own != local_theta:
                raise UserError(
                    f"rope_theta={own!r}: which layers it is for depends on the version of transformers; "
                    f"expected rope_parameters with {_FULL} and {_SLIDING}"
                )
            full.setdefault("rope_theta", own)
        if local_name and values[local_name] is not None:
            local.setdefault("rope_theta", values[local_name])
        local.setdefault("rope_theta", local_theta)
        context = values["max_position_embeddings"]
        only_base = dataclasses.replace(spelling, scalings=("default",))
        found = _read(local, f"rope_parameters.{_SLIDING}", only_base, context)
        where = "rope_scaling" if values["rope_scaling"] else f"rope_parameters.{_FULL}"
        if full.get("truncate") is not None and not values["rope_scaling"]:
            raise UserError(f"{where}.truncate={full['truncate']!r} is not read by transformers; remove it")
        return _read(full, where, spelling, context) | {"rope_local_theta": found["rope_theta"]}

    def write(c: ModelConfig) -> dict[str, Any]:
        """Returns the fields of config.json."""
        # The older spelling where it is enough, because every version reads it.
        scaling = {} if c.rope_scaling == "none" else {"rope_scaling": _write(c)}
        has_local = "local" in c.rope_layers
        if local_name:
            return {"rope_theta": c.rope_theta} | ({local_name: c.rope_local_theta} if has_local else {}) | scaling
        if c.rope_theta == theta and (c.rope_local_theta == local_theta or not has_local):
            return {"rope_theta": c.rope_theta} | scaling
        full = scaling.get("rope_scaling", {"rope_type": "default"}) | {"rope_theta": c.rope_theta}
        local = {"rope_type": "default", "rope_theta": c.rope_local_theta if has_local else local_theta}
        return {"rope_parameters": {_FULL: full, _SLIDING: local}}

    return Section(defaults, read, write)


def _read(found: Values, name: str, spelling: Spelling, context: int) -> dict[str, Any]:
    """Returns the `rope_` fields of `config.model` from one set of parameters, called `name` in messages."""
    theirs = found.get("rope_type", found.get("type", "default"))
    theirs = spelling.synonyms.get(theirs, theirs) if isinstance(theirs, str) else theirs
    if not isinstance(theirs, str) or theirs not in spelling.scalings:
        raise UserError(f"{name}: rope_type={theirs!r:.40} is not supported; expected {', '.join(spelling.scalings)}")
    ours, needed, optional = _SCALINGS[theirs]
    given = {key: value for key, value in found.items() if value is not None}
    if missing := sorted(needed - set(found)):
        raise UserError(f"{name}.{missing[0]} is missing; expected {', '.join(sorted(needed))}")
    if theirs not in ("llama3", "yarn", "longrope") and spelling.original:
        given.pop("original_max_position_embeddings", None)
    if unknown := set(given) - needed - optional - _ALWAYS:
        first = min(unknown)
        raise UserError(f"{name}.{first}={given[first]!r:.60} is not supported with rope_type={theirs!r}")
    fraction = float(given.get("partial_rotary_factor", 1.0))
    if fraction != 1.0 and spelling.fraction is None:
        raise UserError(f"{name}.partial_rotary_factor={fraction} is not supported; expected 1.0")
    result = {"rope_theta": float(given.get("rope_theta", spelling.theta)), "rope_fraction": fraction}
    original = given.get("original_max_position_embeddings", context)
    return result | {"rope_scaling": ours} | _scaling_fields(ours, given, original, context)


def _scaling_fields(ours: str, given: Values, original: int, context: int) -> dict[str, Any]:
    """Returns the fields of `config.model` that a scaling reads."""
    if ours == "none":
        return {}
    factor = given.get("factor")
    fields: dict[str, Any] = {"rope_scaling_factor": context / original if factor is None else float(factor)}
    if ours == "linear":
        return fields
    fields["rope_original_context"] = context if ours == "dynamic" else original
    if ours == "llama3":
        return fields | {
            "rope_low_frequency_factor": float(given["low_freq_factor"]),
            "rope_high_frequency_factor": float(given["high_freq_factor"]),
        }
    if ours == "longrope":
        fields |= {f"rope_{name}s": tuple(map(float, given[name])) for name in ("short_factor", "long_factor")}
    if ours == "yarn":
        fields |= {
            "rope_beta_fast": float(given.get("beta_fast") or 32),
            "rope_beta_slow": float(given.get("beta_slow") or 1),
            "rope_round_range": bool(given.get("truncate", True)),
        }
    return fields | _attention_factor(given, fields["rope_scaling_factor"]) if ours != "dynamic" else fields


def _attention_factor(given: Values, factor: float) -> dict[str, float]:
    """Returns `rope_attention_factor` where the file says more than the paper's formula."""
    stated, mscale, mscale_all = (given.get(name) for name in ("attention_factor", "mscale", "mscale_all_dim"))
    if stated is not None:
        if not stated > 0:
            raise UserError(f"attention_factor={stated!r} is not supported; expected a number greater than 0")
        return {"rope_attention_factor": float(stated)}
    if mscale and mscale_all and factor > 1.0:
        log = 0.1 * math.log(factor)
        return {"rope_attention_factor": (log * mscale + 1.0) / (log * mscale_all + 1.0)}
    return {"rope_attention_factor": 1.0} if mscale and mscale_all else {}


def _write(c: ModelConfig) -> dict[str, Any]:
    """Returns `rope_scaling`."""
    found: dict[str, Any] = {"rope_type": c.rope_scaling, "factor": c.rope_scaling_factor}
    if c.rope_scaling in ("llama3", "yarn", "longrope"):
        found["original_max_position_embeddings"] = c.rope_original_context
    if c.rope_scaling == "llama3":
        found |= {"low_freq_factor": c.rope_low_frequency_factor, "high_freq_factor": c.rope_high_frequency_factor}
    if c.rope_scaling == "yarn":
        found |= {"beta_fast": c.rope_beta_fast, "beta_slow": c.rope_beta_slow}
        found |= {} if c.rope_round_range else {"truncate": False}
    if c.rope_scaling == "longrope":
        found |= {"short_factor": list(c.rope_short_factors), "long_factor": list(c.rope_long_factors)}
    if c.rope_attention_factor and c.rope_scaling in ("yarn", "longrope"):
        found["attention_factor"] = c.rope_attention_factor
    return found
