"""Mixtures of experts in the config.json of each family, and the families whose routers are not supported."""

from collections.abc import Mapping
from typing import Any

from configs.errors import UserError
from model.config import ModelConfig
from model.huggingface.fields import Section, Values

# Names of the number of experts in the files of any family.
_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts")
_SPELLINGS = ("num_experts", "num_local_experts")
_GATED_SHARED = "a sigmoid gate multiplies the output of the shared expert"
_BIASED = "sigmoid scores with a bias that only chooses experts"
_GROUPED = f"{_BIASED}, in groups"
# {model_type: what its router, experts or layers do that ours do not}
_OTHERS: Mapping[str, str] = {
    "afmoe": _BIASED,
    "dbrx": "the weights of a token's experts are divided by their norm",
    "deepseek_v2": "experts are chosen in groups, and attention is latent",
    "deepseek_v3": f"{_GROUPED}, and attention is latent",
    "deepseek_v32": f"{_GROUPED}, and attention is latent",
    "dots1": _GROUPED,
    "ernie4_5_moe": "softmax scores with a bias that only chooses experts",
    "exaone_moe": _GROUPED,
    "glm4_moe": _GROUPED,
    "glm4_moe_lite": f"{_GROUPED}, and attention is latent",
    "gpt_oss": "router and experts have biases, the activation is clamped, and attention has sinks",
    "granitemoe": "its tensors of experts are laid out in another way",
    "granitemoeshared": "its tensors of experts are laid out in another way",
    "hunyuan_v1_moe": "queries and keys are normalized after they are rotated",
    "jamba": "it has Mamba layers",
    "jetmoe": "attention has experts too",
    "lfm2_moe": f"{_BIASED}, and it has convolutional layers",
    "llama4_text": "the router's sigmoid multiplies the inputs of the experts",
    "minimax": "it has layers with linear attention",
    "minimax_m2": _BIASED,
    "phimoe": "its router is SparseMixer",
    "qwen2_moe": _GATED_SHARED,
    "qwen3_5_moe_text": f"{_GATED_SHARED}, and it has layers with linear attention",
    "qwen3_next": f"{_GATED_SHARED}, and it has layers with linear attention",
    "solar_open": _GROUPED,
}


def refuse_mixture(config: Values, where: str) -> None:
    """Raises UserError if a model of a family that is not supported is a mixture of experts, and says what differs.

    Args:
        config: the contents of its config.json.
        where: names the file in the error.
    """
    name = config.get("model_type")
    counts = (f"{field}={config[field]!r:.40}" for field in _COUNTS if config.get(field))
    reason = _OTHERS.get(name, "") if isinstance(name, str) else ""
    reason = reason or next(counts, "")
    if reason:
        raise UserError(
            f"{where}: model_type={name!r:.60} is a mixture of experts that is not supported ({reason}); expected "
            "one of mixtral, olmoe, qwen3_moe, or a model without experts"
        )


def mixture(count: str, experts: int, chosen: int) -> Section:
    """Returns the fields of a family with experts in every layer.

    Args:
        count: name of the number of experts that is written; the other name of `transformers` is read too.
        experts: default of this number.
        chosen: default of the number of experts per token.
    """

    def read(values: Values) -> dict[str, Any]:
        """Returns the fields of `config.model`."""
        found = {name: values[name] for name in _SPELLINGS if values[name] is not None} or {count: experts}
        name, number = next(iter(found.items()))
        if len(set(found.values())) > 1:
            raise UserError(f"{' and '.join(f'{n}={v!r:.40}' for n, v in found.items())} differ; expected one of them")
        if not _is_count(number):
            raise UserError(f"{name}={number!r:.40} is not supported in a mixture of experts; expected at least 1")
        if not _is_count(values["num_experts_per_tok"]) or values["num_experts_per_tok"] > number:
            raise UserError(
                f"num_experts_per_tok={values['num_experts_per_tok']!r:.40}; expected from 1 to {name} ({number})"
            )
        return {"num_experts": number, "experts_per_token": values["num_experts_per_tok"]}

    def write(c: ModelConfig) -> dict[str, Any]:
        return {count: c.num_experts, "num_experts_per_tok": c.experts_per_token}

    return Section(dict.fromkeys(_SPELLINGS) | {"num_experts_per_tok": chosen}, read, write)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _read_layers(values: Values) -> dict[str, Any]:
    step, dense, layers = values["decoder_sparse_step"], values["mlp_only_layers"] or [], values["num_hidden_layers"]
    where = f"mlp_only_layers={dense!r:.60} with decoder_sparse_step={step!r:.40}"
    if not _is_count(step):
        raise UserError(f"decoder_sparse_step={step!r:.40}; expected at least 1")
    pattern = [i not in dense and (i + 1) % step == 0 for i in range(layers)]
    if not any(pattern):
        raise UserError(f"{where} leaves no layer with experts; expected at least one of {layers}")
    first = pattern.index(True)
    for every in range(1, first + 2):
        skipped = first + 1 - every
        if pattern == [i >= skipped and (i - skipped + 1) % every == 0 for i in range(layers)]:
            return {"dense_layers": skipped, "expert_every": every}
    raise UserError(f"{where} is not supported; expected experts in every n-th layer after the first k")


def _write_layers(c: ModelConfig) -> dict[str, Any]:
    dense = [i for i, kind in enumerate(c.kinds) if not kind.experts]
    step = c.expert_every if not c.dense_layers else 1
    return {"decoder_sparse_step": step, "mlp_only_layers": [i for i in dense if (i + 1) % step == 0]}


# Experts in every n-th layer, except in those that are listed.
LAYERS = Section({"decoder_sparse_step": 1, "mlp_only_layers": None}, _read_layers, _write_layers)
