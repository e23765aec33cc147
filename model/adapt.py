"""Parameter-efficient fine-tuning: train all parameters, the head, the last layers, or low-rank factors (LoRA).

The parameters that a method adds form their own group, "adapter", with the same paths as the backbone. A frozen group
has no gradient and no optimizer state, and is not saved in the run's checkpoints. LoRA can keep the kernels of the
frozen backbone quantized (QLoRA, arXiv:2305.14314): `init` and `cast` return them so, and `merge` adds the adapter to
the values that they stand for, which are those that it was trained with.
r rank, L layers, I inputs and O outputs of a projection.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from configs.errors import UserError
from model.adaptation import Adaptation
from model.heads import Objective
from model.quantization import dequantize_layers, quantize_layers
from model.sharding import is_partitioned
from model.transformer import Params

_A, _B = "lora_a", "lora_b"


def adapt(objective: Objective, adaptation: Adaptation) -> Objective:
    """Returns the objective that trains only the parameters `adaptation` selects.

    Raises:
        UserError: nothing would be trained, a target matches no projection, or there are fewer layers than requested.
    """
    method = adaptation.method
    if method == "full":
        return objective
    boxed = jax.eval_shape(objective.init, jax.random.key(0))
    if method == "head":
        if not jax.tree.leaves(boxed["head"]):
            raise UserError(
                "config.adapt.method='head' needs a head with its own parameters, but this model's output table is its "
                "embedding; use 'full', 'last' or 'lora'"
            )
        return objective._replace(trained=("head",))
    make_adapter = _last_layers if method == "last" else _factors

    def init(rng: jax.Array) -> Params:
        params = objective.init(rng)
        adapter = make_adapter(params["backbone"], adaptation, jax.random.fold_in(rng, 2))
        return quantized(params, adaptation) | {"adapter": adapter}

    jax.eval_shape(init, jax.random.key(0))

    def applied(params: Params) -> Params:
        if method == "last":
            return merge(params, adaptation)
        factors = jax.tree_util.tree_map_with_path(
            lambda path, x: x * (adaptation.alpha / adaptation.rank) if path[-1].key == _B else x, params["adapter"]
        )
        return {"backbone": _joined(params["backbone"], factors), "head": params["head"]}

    return Objective(
        init=init,
        cast=lambda params: objective.cast(quantized(params, adaptation)),
        loss=lambda params, batch: objective.loss(applied(params), batch),
        predict=lambda params, batch: objective.predict(applied(params), batch),
        trained=("adapter", "head"),
    )


def merge(params: Params, adaptation: Adaptation) -> Params:
    """Returns `{"backbone", "head"}` with the adapter added into the backbone; its predictions are the same.

    The backbone may be quantized, or as its own run saved it; the result is not quantized.
    """
    if "adapter" not in params:
        return params
    backbone = quantized(params, adaptation)["backbone"]
    backbone = backbone | {"layers": dequantize_layers(backbone["layers"])}

    def added(base: Any, adapter: Any) -> Any:  # noqa: ANN401 - a tree or a leaf
        if not isinstance(adapter, dict):
            return base.at[-len(adapter) :].add(adapter.astype(base.dtype))
        if _A in adapter:
            a_LIr, b_LrO = (adapter[name].reshape(shape) for name, shape in _flat(adapter).items())
            product = jnp.einsum("LIr,LrO->LIO", a_LIr, b_LrO, precision="highest").reshape(base["kernel"].shape)
            return base | {"kernel": base["kernel"] + adaptation.alpha / adaptation.rank * product}
        return base | {name: added(base[name], adapter[name]) for name in adapter}

    return {"backbone": added(backbone, params["adapter"]), "head": params["head"]}


def quantized(params: Params, adaptation: Adaptation) -> Params:
    """Returns the groups with the backbone's kernels as `adaptation` keeps them."""
    how = adaptation.base_quantization
    if adaptation.method != "lora" or how == "none" or "backbone" not in params:
        return params
    backbone = params["backbone"]
    return params | {"backbone": backbone | {"layers": quantize_layers(backbone["layers"], how)}}


def _flat(factors: dict[str, jax.Array]) -> dict[str, tuple[int, int, int]]:
    """Returns the shapes of the factors as matrices, with all input axes and all output axes flattened."""
    layers, rank = factors[_B].shape[:2]
    return {_A: (layers, -1, rank), _B: (layers, rank, -1)}


def _joined(base: Params, adapter: Params) -> Params:
    """Returns the base tree with the adapter's leaves inserted."""
    return base | {
        name: _joined(base.get(name, {}), part) if isinstance(part, dict) else part for name, part in adapter.items()
    }


def _last_layers(backbone: Params, adaptation: Adaptation, rng: jax.Array) -> Params:
    """Returns differences to the last layers, initialized to zero; weight decay pulls towards the pre-trained model."""
    count = adaptation.last_layers
    if len({len(box.value) for box in jax.tree.leaves(backbone["layers"], is_leaf=is_partitioned)}) > 1:
        raise UserError(
            "config.adapt.method='last' is not supported where only some layers have experts; expected 'full', 'head' "
            "or 'lora'"
        )

    def difference(box: nn.Partitioned) -> nn.Partitioned:
        if not 1 <= count <= len(box.value):
            raise UserError(f"config.adapt.last_layers={count} must be from 1 to {len(box.value)}")
        return box.replace_boxed(jnp.zeros((count, *box.value.shape[1:]), box.value.dtype))

    return {"layers": jax.tree.map(difference, backbone["layers"], is_leaf=is_partitioned)}


def _factors(backbone: Params, adaptation: Adaptation, rng: jax.Array) -> Params:
    """Returns A (Gaussian) and B (zero) of each target (LoRA: arXiv:2106.09685, section 4.1).

    Raises:
        UserError: a target matches no projection, or the matrices of experts.
    """
    found: set[str] = set()
    of_experts: set[str] = set()
    if adaptation.rank < 1:
        raise UserError(f"config.adapt.rank={adaptation.rank} must be at least 1")

    def walk(tree: Params, name: str, rng: jax.Array) -> Params:
        """Returns the factors of the targets in `tree`, the module called `name`."""
        if "kernel" in tree and "experts" in tree["kernel"].names:
            of_experts.add(name)
            return {}
        if "kernel" in tree:
            found.add(name)
            return _pair(tree["kernel"], adaptation.rank, rng) if name in adaptation.targets else {}
        parts = {
            key: walk(part, key, jax.random.fold_in(rng, index))
            for index, (key, part) in enumerate(sorted(tree.items()))
            if isinstance(part, dict)
        }
        return {key: part for key, part in parts.items() if part}

    adapter = walk({"layers": backbone["layers"]}, "", rng)
    found -= of_experts
    refused = [name for name in adaptation.targets if name in of_experts]
    if refused:
        raise UserError(
            f"config.adapt.targets contains {refused[0]!r}, a matrix of the model's experts, for which LoRA is not "
            f"supported; expected some of {', '.join(sorted(found))}"
        )
    unknown = [name for name in adaptation.targets if name not in found]
    if unknown or not adaptation.targets:
        raise UserError(
            f"config.adapt.targets contains {unknown[0]!r}, which is not a projection; "
            f"expected some of {', '.join(sorted(found))}"
            if unknown
            else f"config.adapt.targets is empty; expected some of {', '.join(sorted(found))}"
        )
    return adapter


def _pair(kernel: nn.Partitioned, rank: int, rng: jax.Array) -> Params:
    """Returns the boxed factors A and B of one projection's kernel, stacked over the layers."""
    names, shape = kernel.names[1:], kernel.value.shape
    # A projection's first axis reads the residual stream, or its last axis writes to it.
    inputs = 1 if names[0] == "embed" else len(names) - 1
    a_shape = (*shape[: 1 + inputs], rank)
    a = jax.random.normal(rng, a_shape, jnp.float32) / math.sqrt(math.prod(shape[1 : 1 + inputs]))
    b = jnp.zeros((shape[0], rank, *shape[1 + inputs :]), jnp.float32)
    make: Callable[..., nn.Partitioned] = type(kernel)
    return {
        _A: make(a, ("layers", *names[:inputs], "rank")),
        _B: make(b, ("layers", "rank", *names[inputs:])),
    }
