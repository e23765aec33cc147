"""The factors of a LoRA adapter in PEFT's layout <-> ours.

PEFT has factors of each of its modules: A (r, inputs) and B (outputs, r). Ours are stacked over the layers: A
(L, inputs..., r) and B (L, r, outputs...). A module whose weight consists of several of our leaves, such as GPT-2's
c_attn, has one A for all of them.
r rank, L layers.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from configs.errors import UserError
from model.huggingface.weights import Row
from train.huggingface.peft_config import AdapterConfig
from train.huggingface.safetensors_files import Weights

PREFIX = "base_model.model."
_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.default)?\.weight$")
A, B = "lora_a", "lora_b"
# Names of modules in a layer of a mixture of experts, besides attention's.
_MIXTURE = re.compile(r"\.layers\.\d+\.(mlp|block_sparse_moe)(\.|$)")
Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter as our runs have it.

    Attributes:
        rank: r of all factors.
        alpha: the product of the factors is multiplied by alpha / r.
        targets: names of our projections that have factors.
        tree: the parameter group "adapter".
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    tree: Tree


def modules_of(rows: list[Row]) -> dict[str, list[Row]]:
    """Returns {module, with {i} for the layer: the rows of its kernel}, for modules that all layers have.

    LoRA is not supported for the MLPs, the routers and the experts of a model with experts.
    """
    modules: dict[str, list[Row]] = {}
    for row in rows:
        if row.inputs and row.stacked and not row.layers:
            modules.setdefault(row.key.removesuffix(".weight"), []).append(row)
    return modules


def factors_of(weights: Weights, where: str) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Returns ({module: {"A" or "B": name of the tensor}}, names of the other tensors) of an adapter's file."""
    factors: dict[str, dict[str, str]] = {}
    others = []
    for name in weights.shapes:
        match = _FACTOR.match(name.removeprefix(PREFIX))
        if match:
            factors.setdefault(match["module"], {})[match["factor"]] = name
        else:
            others.append(name)
    half = next((module for module, names in factors.items() if len(names) < 2), None)
    if half:
        raise UserError(f"{where}: {half} has only one of lora_A and lora_B")
    if not factors:
        raise UserError(f"{where} has no tensors named lora_A and lora_B; expected an adapter of LoRA")
    return factors, others


def read_adapter(
    weights: Weights, config: AdapterConfig, rows: list[Row], shapes: Mapping[str, tuple[int, ...]], where: str
) -> Adapter:
    """Returns an adapter from PEFT's tensors.

    Ranks that differ are padded with zeros, and scales that differ are multiplied into B; modules without factors in
    some layers get zeros there.

    Args:
        weights: the tensors.
        config: the adapter's config.
        rows: the table of the base model's weights.
        shapes: {leaf: shape} of the base model's kernels, stacked over the layers.
        where: names the adapter in errors.

    Raises:
        UserError: a module that the base model does not have, or factors of other shapes.
    """
    factors, _ = factors_of(weights, where)
    modules = modules_of(rows)
    layers = next(iter(shapes.values()))[0]
    placed = {pattern.format(i=i): (pattern, i) for pattern in modules for i in range(layers)}
    unknown = [module for module in factors if module not in placed]
    if unknown and any(row.layers for row in rows) and _MIXTURE.search(unknown[0]):
        raise UserError(
            f"{where} has factors of {unknown[0]}: LoRA is not supported for the MLPs, routers and experts of a "
            f"mixture of experts; expected factors of projections of attention, such as {next(iter(placed))}"
        )
    if unknown:
        raise UserError(
            f"{where} has factors of {unknown[0]}, which is not a projection in a layer of the base model, such as "
            f"{next(iter(placed))}"
        )
    for module, names in factors.items():
        row = modules[placed[module][0]][0]
        _check_shapes(weights, names, row.their_shape(shapes[row.leaf][1:]), config.rank_of(module), row, where)
    rank = max(config.rank_of(module) for module in factors)
    scale = config.scale_of(next(iter(factors)))
    tree: Tree = {}
    for pattern in dict.fromkeys(placed[module][0] for module in factors):
        for row in modules[pattern]:
            shape = shapes[row.leaf]
            inputs, outputs = shape[1 : 1 + row.inputs], shape[1 + row.inputs :]
            a, b = np.zeros((layers, *inputs, rank), np.float32), np.zeros((layers, rank, *outputs), np.float32)
            for i in range(layers):
                module = pattern.format(i=i)
                if module not in factors:
                    continue
                theirs_a, theirs_b = (weights.read(factors[module][letter]).astype(np.float32) for letter in "AB")
                own = len(theirs_a)
                a[i, ..., :own] = theirs_a.T.reshape(*inputs, own)
                ratio = np.float32(config.scale_of(module) / scale)
                b[i, :own] = _outputs(row).to_ours(theirs_b, (own, *outputs)) * ratio
            _put(tree, row.leaf.removesuffix("/kernel"), {A: a, B: b})
    projections = dict.fromkeys(row.leaf.split("/")[-2] for parts in modules.values() for row in parts)
    return Adapter(rank, scale * rank, tuple(name for name in projections if _has(tree, name)), tree)


def write_adapter(
    adapter: Adapter, rows: list[Row], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Returns ({name: tensor} of PEFT, {module: rank} of the modules with another rank than the adapter).

    Leaves that share a module and do not share A become one pair of factors, of the sum of their ranks.

    Args:
        adapter: the adapter.
        rows: the table of the model's weights.
        shapes: {leaf: shape} of the model's kernels, stacked over the layers.
    """
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    for pattern, parts in modules_of(rows).items():
        pairs = [(row, pair) for row in parts if (pair := _pair(adapter.tree, row))]
        if not pairs:
            continue
        first = pairs[0][1][A]
        shared = len(pairs) == len(parts) and all(np.array_equal(first, pair[A]) for _, pair in pairs)
        for i in range(len(first)):
            module = pattern.format(i=i)
            a, b = _module_factors(pairs, i, shapes, shared)
            tensors |= {f"{PREFIX}{module}.lora_A.weight": a, f"{PREFIX}{module}.lora_B.weight": b}
            if len(a) != adapter.rank:
                ranks[module] = len(a)
    return tensors, ranks


def _module_factors(
    pairs: list[tuple[Row, Tree]], i: int, shapes: Mapping[str, tuple[int, ...]], shared: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns PEFT's A and B of a module in layer `i`.

    Args:
        pairs: the rows of the module that have factors, with these.
        i: the layer.
        shapes: see `write_adapter`.
        shared: A is the same for all rows.
    """
    rank = pairs[0][1][B].shape[1]
    row = pairs[0][0]
    weight = row.their_shape(shapes[row.leaf][1:])
    outputs = weight[0] if row.transposed else weight[1]
    flat = [pair[A][i].reshape(-1, rank).T for _, pair in pairs]
    b = np.zeros((outputs, rank * (1 if shared else len(pairs))), np.float32)
    for index, (row, pair) in enumerate(pairs):
        start = 0 if shared else index * rank
        columns = b[:, start : start + rank]
        columns[...] = _outputs(row).to_theirs(pair[B][i], columns)
    return np.ascontiguousarray(flat[0] if shared else np.concatenate(flat)), b


def _pair(tree: Tree, row: Row) -> Tree:
    """Returns the factors of a row's kernel, or an empty tree if it has none."""
    for name in row.leaf.removesuffix("/kernel").split("/"):
        tree = tree.get(name, {})
    return tree


def _check_shapes(
    weights: Weights, names: Mapping[str, str], weight: tuple[int, ...], rank: int, row: Row, where: str
) -> None:
    """Raises UserError unless the factors have this rank and the inputs and outputs of the module's weight."""
    outputs, inputs = weight if row.transposed else weight[::-1]
    for letter, expected in (("A", (rank, inputs)), ("B", (outputs, rank))):
        found = weights.shapes[names[letter]]
        if found != expected:
            raise UserError(
                f"{where}: {names[letter]} has shape {list(found)}, expected {list(expected)} for r={rank} and "
                f"{inputs} inputs and {outputs} outputs; is --base the model that it was trained on?"
            )


def _outputs(row: Row) -> Row:
    """Returns the row that reads B: a matrix (outputs, r), whatever the layout of the module's weight."""
    return dataclasses.replace(row, inputs=1, transposed=True)


def _put(tree: Tree, path: str, pair: Tree) -> None:
    *parents, last = path.split("/")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[last] = pair


def _has(tree: Tree, name: str) -> bool:
    return any(key == name or (isinstance(part, dict) and _has(part, name)) for key, part in tree.items())
