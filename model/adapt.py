"""Which parameters train: all, the head, the last layers, or low-rank factors beside the backbone's matrices (LoRA).

What is added to a backbone is a group of parameters of its own, "adapter", which mirrors the backbone's paths. A group
that does not train has no gradient, no optimizer state and no place in the run's checkpoints.
r rank, L layers.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from configs.errors import UserError
from model.heads import Objective
from model.transformer import Params

_A, _B = "lora_a", "lora_b"


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """`config.adapt`.

    Attributes:
        method: "full", "head", "last" or "lora".
        last_layers: "last": how many layers train.
        rank: "lora": r.
        alpha: "lora": the product of the factors is multiplied by alpha / r.
        targets: "lora": names of the projections that get factors.
    """

    method: Literal["full", "head", "last", "lora"]
    last_layers: int
    rank: int
    alpha: float
    targets: tuple[str, ...]


def adapt(objective: Objective, adaptation: Adaptation) -> Objective:
    """Returns the objective of which only what `adaptation` names trains.

    Raises:
        UserError: nothing would train, a target that no projection is named, or more layers than there are.
    """
    method = adaptation.method
    if method == "full":
        return objective
    boxed = jax.eval_shape(objective.init, jax.random.key(0))
    if method == "head":
        if not jax.tree.leaves(boxed["head"]):
            raise UserError(
                "config.adapt.method is 'head', but this model's output table is its embedding; legal: full, last, lora"
            )
        return objective._replace(trained=("head",))
    make_adapter = _last_layers if method == "last" else _factors
    jax.eval_shape(lambda: make_adapter(boxed["backbone"], adaptation, jax.random.key(0)))

    def init(rng: jax.Array) -> Params:
        params = objective.init(rng)
        return params | {"adapter": make_adapter(params["backbone"], adaptation, jax.random.fold_in(rng, 2))}

    def applied(params: Params) -> Params:
        if method == "last":
            return merge(params, adaptation)
        factors = jax.tree_util.tree_map_with_path(
            lambda path, x: x * (adaptation.alpha / adaptation.rank) if path[-1].key == _B else x, params["adapter"]
        )
        return {"backbone": _joined(params["backbone"], factors), "head": params["head"]}

    return Objective(
        init=init,
        cast=objective.cast,
        loss=lambda params, batch: objective.loss(applied(params), batch),
        predict=lambda params, batch: objective.predict(applied(params), batch),
        trained=("adapter", "head"),
    )


def merge(params: Params, adaptation: Adaptation) -> Params:
    """Returns `{"backbone", "head"}` with the adapter added into the backbone; equal to what was trained."""
    if "adapter" not in params:
        return params

    def added(base: Any, adapter: Any) -> Any:  # noqa: ANN401 - a tree or a leaf
        if not isinstance(adapter, dict):
            return base.at[-len(adapter) :].add(adapter.astype(base.dtype))
        if _A in adapter:
            a_LIr, b_LrO = (adapter[name].reshape(shape) for name, shape in _flat(adapter).items())
            product = jnp.einsum("LIr,LrO->LIO", a_LIr, b_LrO, precision="highest").reshape(base["kernel"].shape)
            return base | {"kernel": base["kernel"] + adaptation.alpha / adaptation.rank * product}
        return base | {name: added(base[name], adapter[name]) for name in adapter}

    return {"backbone": added(params["backbone"], params["adapter"]), "head": params["head"]}


def _flat(factors: dict[str, jax.Array]) -> dict[str, tuple[int, int, int]]:
    """Returns the shapes of the factors as matrices: all input and all output axes as one each."""
    layers, rank = factors[_B].shape[:2]
    return {_A: (layers, -1, rank), _B: (layers, rank, -1)}


def _joined(base: Params, adapter: Params) -> Params:
    """Returns the base with the adapter's leaves beside its own."""
    return base | {
        name: _joined(base.get(name, {}), part) if isinstance(part, dict) else part for name, part in adapter.items()
    }


def _is_box(leaf: object) -> bool:
    return isinstance(leaf, nn.Partitioned)


def _last_layers(backbone: Params, adaptation: Adaptation, rng: jax.Array) -> Params:
    """Returns differences to the last layers, which start at zero; weight decay pulls them back to the foundation."""
    count = adaptation.last_layers

    def difference(box: nn.Partitioned) -> nn.Partitioned:
        if not 1 <= count <= len(box.value):
            raise UserError(f"config.adapt.last_layers is {count}; legal: 1 to {len(box.value)}")
        return box.replace_boxed(jnp.zeros((count, *box.value.shape[1:]), box.value.dtype))

    return {"layers": jax.tree.map(difference, backbone["layers"], is_leaf=_is_box)}


def _factors(backbone: Params, adaptation: Adaptation, rng: jax.Array) -> Params:
    """Returns A (Gaussian) and B (zero) of each target (LoRA: arXiv:2106.09685, section 4.1).

    Raises:
        UserError: a target that matches no projection.
    """
    found: set[str] = set()
    if adaptation.rank < 1:
        raise UserError(f"config.adapt.rank is {adaptation.rank}; legal: at least 1")

    def walk(tree: Params, name: str, rng: jax.Array) -> Params:
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
    unknown = [name for name in adaptation.targets if name not in found]
    if unknown or not adaptation.targets:
        raise UserError(
            f"config.adapt.targets: {unknown[0]!r} matches no parameter; legal: {', '.join(sorted(found))}"
            if unknown
            else f"config.adapt.targets is empty; legal: some of {', '.join(sorted(found))}"
        )
    return adapter


def _pair(kernel: nn.Partitioned, rank: int, rng: jax.Array) -> Params:
    names, shape = kernel.names[1:], kernel.value.shape
    # A projection reads the residual stream by its first axis, or writes it by its last.
    inputs = 1 if names[0] == "embed" else len(names) - 1
    a_shape = (*shape[: 1 + inputs], rank)
    a = jax.random.normal(rng, a_shape, jnp.float32) / math.sqrt(math.prod(shape[1 : 1 + inputs]))
    b = jnp.zeros((shape[0], rank, *shape[1 + inputs :]), jnp.float32)
    make: Callable[..., nn.Partitioned] = type(kernel)
    return {
        _A: make(a, ("layers", *names[:inputs], "rank")),
        _B: make(b, ("layers", "rank", *names[inputs:])),
    }
