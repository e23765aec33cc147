"""Hugging Face weights <-> our parameters: one table per architecture, used for import and export alike.

A row of a table maps one of our leaves, stacked over the layers, to the Hugging Face tensors ("theirs") that it
consists of.
L layers, D embed, N heads, K kv heads, H head dim, F mlp, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from configs.errors import UserError
from model.config import ModelConfig

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """One of our leaves and the tensors that it consists of.

    Attributes:
        leaf: our path, without the group, e.g. "layers/attention/query/kernel".
        key: their tensor name; {i} is the layer.
        inputs: number of leading axes of the kernel (after L) that are inputs; 0: not a kernel, the tensor is the
            flattened leaf.
        transposed: their tensor is (outputs, inputs), as in a Linear; False: (inputs, outputs), as in GPT-2's Conv1D.
        part: (index, count) of this leaf's equal part of their last axis, where several leaves share a tensor.
    """

    leaf: str
    key: str
    inputs: int = 0
    transposed: bool = True
    part: tuple[int, int] = (0, 1)

    @property
    def stacked(self) -> bool:
        """Whether there is one tensor per layer."""
        return "{i}" in self.key

    @property
    def last(self) -> bool:
        """Whether this row completes its tensor."""
        return self.part[0] == self.part[1] - 1

    def keys(self, num_layers: int) -> list[str]:
        """Returns the names of their tensors, in the order of the layers."""
        return [self.key.format(i=i) for i in range(num_layers)] if self.stacked else [self.key]

    def to_ours(self, theirs: np.ndarray, shape: Shape) -> np.ndarray:
        """Returns one layer of our leaf, in this shape, from their tensor."""
        index, count = self.part
        size = theirs.shape[-1] // count
        piece = theirs[..., index * size : (index + 1) * size] if count > 1 else theirs
        return (piece.T if self.inputs and self.transposed else piece).reshape(shape)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        """Returns their tensor, or this row's part of it, from one layer of our leaf."""
        if not self.inputs:
            return ours if self.leaf.endswith("table") or self.leaf.endswith("positions") else ours.reshape(-1)
        matrix = ours.reshape(int(np.prod(ours.shape[: self.inputs])), -1)
        return matrix.T if self.transposed else matrix

    def their_shape(self, shape: Shape) -> Shape:
        """Returns the shape of their tensor, from the shape of one layer of our leaf."""
        if not self.inputs:
            flat = shape if self.leaf.endswith(("table", "positions")) else (int(np.prod(shape)),)
            return (*flat[:-1], flat[-1] * self.part[1])
        inputs, outputs = int(np.prod(shape[: self.inputs])), int(np.prod(shape[self.inputs :]))
        return (outputs, inputs) if self.transposed else (inputs, outputs * self.part[1])


def _linear(leaf: str, key: str, inputs: int = 1, bias: bool = False) -> list[Row]:
    rows = [Row(f"layers/{leaf}/kernel", f"{key}.weight", inputs)]
    return [*rows, Row(f"layers/{leaf}/bias", f"{key}.bias")] if bias else rows


def _llama_like(norms: Mapping[str, str], c: ModelConfig) -> list[Row]:
    """Returns the table of Llama and architectures like it; `norms` maps our norms to theirs."""
    attention, mlp = "model.layers.{i}.self_attn", "model.layers.{i}.mlp"
    rows = [Row("embedding/table", "model.embed_tokens.weight"), Row("final_norm/scale", "model.norm.weight")]
    for name, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        rows += _linear(f"attention/{name}", f"{attention}.{theirs}", bias=c.qkv_bias)
    rows += _linear("attention/output", f"{attention}.o_proj", inputs=2, bias=c.output_bias)
    for name in ("gate", "up", "down"):
        rows += _linear(f"mlp/{name}", f"{mlp}.{name}_proj", bias=c.mlp_bias)
    if c.qk_norm:
        for name, theirs in (("query_norm", "q_norm"), ("key_norm", "k_norm")):
            rows.append(Row(f"layers/attention/{name}/scale", f"{attention}.{theirs}.weight"))
    return rows + [Row(f"layers/{ours}/scale", f"model.layers.{{i}}.{theirs}.weight") for ours, theirs in norms.items()]


def _gpt2(c: ModelConfig) -> list[Row]:
    layer = "transformer.h.{i}"
    rows = [
        Row("embedding/table", "transformer.wte.weight"),
        Row("embedding/positions", "transformer.wpe.weight"),
        Row("final_norm/scale", "transformer.ln_f.weight"),
        Row("final_norm/bias", "transformer.ln_f.bias"),
    ]
    for part, name in enumerate(("query", "key", "value")):
        leaf, key = f"layers/attention/{name}", f"{layer}.attn.c_attn"
        rows.append(Row(f"{leaf}/kernel", f"{key}.weight", 1, False, (part, 3)))
        rows.append(Row(f"{leaf}/bias", f"{key}.bias", part=(part, 3)))
    for leaf, key, inputs in (
        ("attention/output", "attn.c_proj", 2),
        ("mlp/up", "mlp.c_fc", 1),
        ("mlp/down", "mlp.c_proj", 1),
    ):
        rows.append(Row(f"layers/{leaf}/kernel", f"{layer}.{key}.weight", inputs, False))
        rows.append(Row(f"layers/{leaf}/bias", f"{layer}.{key}.bias"))
    for leaf, key in (("attention_norm", "ln_1"), ("mlp_norm", "ln_2")):
        rows += [
            Row(f"layers/{leaf}/{kind}", f"{layer}.{key}.{theirs}")
            for kind, theirs in (("scale", "weight"), ("bias", "bias"))
        ]
    return rows


_PRE = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
_POST = {"attention_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm"}
_BOTH = _POST | {"attention_norm": "input_layernorm", "mlp_norm": "pre_feedforward_layernorm"}
_TABLES: dict[str, Callable[[ModelConfig], list[Row]]] = {
    "gpt2": _gpt2,
    "llama": lambda c: _llama_like(_PRE, c),
    "mistral": lambda c: _llama_like(_PRE, c),
    "qwen2": lambda c: _llama_like(_PRE, c),
    "qwen3": lambda c: _llama_like(_PRE, c),
    "gemma2": lambda c: _llama_like(_BOTH, c),
    "olmo2": lambda c: _llama_like(_POST, c),
}
ARCHITECTURES = tuple(_TABLES)
# Buffers in older files that are not weights; they follow from the config.
IGNORED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")


def table(architecture: str, config: ModelConfig) -> list[Row]:
    """Returns the rows of a language model's weights, with its output table unless that is tied to the embedding."""
    rows = _TABLES[architecture](config)
    return rows if config.tie_embeddings else [*rows, Row("table", "lm_head.weight")]


def group_of(row: Row) -> str:
    """Returns the parameter group of a row: "head" for the output table, else "backbone"."""
    return "head" if row.leaf == "table" else "backbone"


def leaves(params: Mapping[str, Any], rows: list[Row]) -> Iterator[tuple[Row, Any]]:
    """Yields each row with its leaf (an array or a shape)."""
    for row in rows:
        leaf: Any = params[group_of(row)]
        for name in row.leaf.split("/"):
            leaf = leaf[name]
        yield row, leaf


def expected_shapes(params: Mapping[str, Any], rows: list[Row]) -> dict[str, Shape]:
    """Returns {tensor name: shape} of the files of a model with these (abstract) parameters."""
    shapes: dict[str, Shape] = {}
    for row, leaf in leaves(params, rows):
        shape = leaf.shape[1:] if row.stacked else leaf.shape
        shapes |= dict.fromkeys(row.keys(leaf.shape[0]), row.their_shape(shape))
    return shapes


def compare_shapes(found: Mapping[str, Shape], expected: Mapping[str, Shape], where: str) -> None:
    """Raises UserError listing tensors that are missing, unexpected or of a different shape."""
    errors = [f"missing: {name}" for name in expected if name not in found]
    errors += [f"unexpected: {name}" for name in found if name not in expected]
    errors += [
        f"{name} has shape {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    if errors:
        shown = "; ".join(errors[:8]) + (f"; and {len(errors) - 8} more" if len(errors) > 8 else "")
        raise UserError(f"{where} does not contain the weights that its config.json describes: {shown}")
