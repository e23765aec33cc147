"""adapter_config.json of PEFT <-> the scale and the names of a LoRA adapter.

As with config.json, every field is read, or changes nothing, or is refused by name.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from configs.errors import UserError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model"
_LANGUAGE_MODEL = "CAUSAL_LM"
# The values with which a field changes nothing; null is always one of them.
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "task_type": (_LANGUAGE_MODEL,), "bias": ("none",), "use_dora": (False,),
    "lora_bias": (False,), "use_qalora": (False,), "target_parameters": ([],), "layer_replication": ([],),
    "trainable_token_indices": ([], {}), "alora_invocation_tokens": ([],), "use_bdlora": (False, {}),
    "arrow_config": ({},), "kasa_config": ({},), "velora_config": ({},), "monteclora_config": ({},),
    "lora_ga_config": ({},), "corda_config": ({},), "loftq_config": ({},), "megatron_config": ({},),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}  # fmt: skip
_READ = frozenset({"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save"})
_HARMLESS = frozenset(
    """
    auto_mapping base_model_name_or_path revision inference_mode peft_version lora_dropout target_modules
    exclude_modules layers_to_transform layers_pattern fan_in_fan_out megatron_core qalora_group_size runtime_config
    ensure_weight_tying eva_config
    """.split()
)
# Initial values of some kinds change the base model, to which the trained factors then belong.
_HINTS = {
    "init_lora_weights": "; it changed the base model, so convert the adapter first (save_pretrained with "
    "path_initial_model_for_weight_conversion)",
    "task_type": "; only adapters of language models can be imported",
}


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """The fields of an adapter_config.json that its weights depend on.

    Attributes:
        rank: r of the modules that no pattern names.
        alpha: the product of the factors is multiplied by alpha / r.
        rank_stabilized: by alpha / sqrt(r) instead (arXiv:2312.03732).
        ranks: {pattern of modules: r}.
        alphas: {pattern of modules: alpha}.
        saved: names of modules that the adapter contains as a whole.
        base: the name of the model that it was trained on, for people; "": it has none.
    """

    rank: int
    alpha: float
    rank_stabilized: bool = False
    ranks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alphas: Mapping[str, float] = dataclasses.field(default_factory=dict)
    saved: tuple[str, ...] = ()
    base: str = ""

    def rank_of(self, module: str) -> int:
        """Returns the rank of a module's factors."""
        return int(_match(self.ranks, module, self.rank))

    def scale_of(self, module: str) -> float:
        """Returns the factor of the product of a module's factors."""
        rank = self.rank_of(module)
        return _match(self.alphas, module, self.alpha) / (math.sqrt(rank) if self.rank_stabilized else rank)


def _match(patterns: Mapping[str, float], module: str, default: float) -> float:
    """Returns the value of the first pattern that is the end of a module's name."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def parse_config(found: Mapping[str, Any], where: str) -> AdapterConfig:
    """Returns the fields of an adapter_config.json.

    Raises:
        UserError: a field is missing, has the wrong type, or has a value that is not supported; or a field is unknown.
    """
    errors = []
    for name, value in found.items():
        if name in _ONLY:
            if value is not None and value not in _ONLY[name]:
                expected = " or ".join(repr(choice) for choice in _ONLY[name])
                errors.append(f"{name}={value!r:.60} is not supported; expected {expected}{_HINTS.get(name, '')}")
        elif name not in _READ and name not in _HARMLESS and value not in (None, False, [], {}):
            errors.append(f"{name}={value!r:.60} is unknown, so it may change what the adapter computes")
    errors += [f"{name} is missing" for name in ("peft_type", "r", "lora_alpha") if found.get(name) is None]
    if errors:
        raise UserError(f"{where}: {'; '.join(errors)}")
    try:
        config = AdapterConfig(
            int(found["r"]),
            float(found["lora_alpha"]),
            bool(found.get("use_rslora")),
            {key: int(rank) for key, rank in (found.get("rank_pattern") or {}).items()},
            {key: float(alpha) for key, alpha in (found.get("alpha_pattern") or {}).items()},
            tuple(found.get("modules_to_save") or ()),
            str(found.get("base_model_name_or_path") or ""),
        )
        for pattern in (*config.ranks, *config.alphas):
            re.compile(pattern)
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise UserError(f"{where}: a field has the wrong type ({error!r:.80}); expected a config of LoRA") from None
    if min(config.rank, *config.ranks.values(), 1 << 30) < 1:
        raise UserError(
            f"{where}: r={config.rank}, rank_pattern={dict(config.ranks)!r:.80}; expected ranks of at least 1"
        )
    return config


def config_file(config: AdapterConfig, targets: list[str], fan_in_fan_out: bool) -> dict[str, Any]:
    """Returns the contents of an adapter_config.json.

    Args:
        config: the adapter.
        targets: names of the modules that have factors, without the parts that are the same in all of them.
        fan_in_fan_out: the modules' weights are (inputs, outputs).
    """
    alpha = config.alpha
    return {
        "peft_type": "LORA",
        "task_type": _LANGUAGE_MODEL,
        "base_model_name_or_path": config.base,
        "r": config.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "rank_pattern": dict(config.ranks),
        "alpha_pattern": dict(config.alphas),
        "modules_to_save": list(config.saved) or None,
        "bias": "none",
        "fan_in_fan_out": fan_in_fan_out,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
