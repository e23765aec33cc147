"""Weights and configs of Hugging Face's format: one table an architecture, read in both directions.

A row of a table says which tensors of theirs a leaf of ours is made of. Ours are stacked over the layers.
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
    """One leaf of ours and the tensors it is made of.

    Attributes:
        leaf: our path, without the group, e.g. "layers/attention/query/kernel".
        key: their name; {i} is the layer.
        inputs: how many of a kernel's leading axes (after L) are read; 0: no kernel, the tensor is the leaf flattened.
        transposed: theirs is (outputs, inputs), as of a Linear; False: (inputs, outputs), as of GPT-2's Conv1D.
        part: (which, of how many) equal parts of their last axis, where several leaves are one tensor.
    """

    leaf: str
    key: str
    inputs: int = 0
    transposed: bool = True
    part: tuple[int, int] = (0, 1)

    @property
    def stacked(self) -> bool:
        """Whether there is one tensor a layer."""
        return "{i}" in self.key

    @property
    def last(self) -> bool:
        """Whether no other leaf adds to its tensor after this one."""
        return self.part[0] == self.part[1] - 1

    def keys(self, num_layers: int) -> list[str]:
        """Returns their names, in the order of the layers."""
        return [self.key.format(i=i) for i in range(num_layers)] if self.stacked else [self.key]

    def to_ours(self, theirs: np.ndarray, shape: Shape) -> np.ndarray:
        """Returns a layer of our leaf, of this shape, from their tensor."""
        which, count = self.part
        size = theirs.shape[-1] // count
        piece = theirs[..., which * size : (which + 1) * size] if count > 1 else theirs
        return (piece.T if self.inputs and self.transposed else piece).reshape(shape)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        """Returns their tensor, or this row's part of it, from a layer of our leaf."""
        if not self.inputs:
            return ours if self.leaf.endswith("table") or self.leaf.endswith("positions") else ours.reshape(-1)
        matrix = ours.reshape(int(np.prod(ours.shape[: self.inputs])), -1)
        return matrix.T if self.transposed else matrix

    def their_shape(self, shape: Shape) -> Shape:
        """Returns the shape of their tensor, from that of a layer of our leaf."""
        if not self.inputs:
            flat = shape if self.leaf.endswith(("table", "positions")) else (int(np.prod(shape)),)
            return (*flat[:-1], flat[-1] * self.part[1])
        inputs, outputs = int(np.prod(shape[: self.inputs])), int(np.prod(shape[self.inputs :]))
        return (outputs, inputs) if self.transposed else (inputs, outputs * self.part[1])


def _linear(leaf: str, key: str, inputs: int = 1, bias: bool = False) -> list[Row]:
    rows = [Row(f"layers/{leaf}/kernel", f"{key}.weight", inputs)]
    return [*rows, Row(f"layers/{leaf}/bias", f"{key}.bias")] if bias else rows


def _llama_like(norms: Mapping[str, str], c: ModelConfig) -> list[Row]:
    """Returns the table of Llama and of what is built like it; `norms`: our norm -> theirs."""
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
# What older files hold beside the weights: buffers that follow from the config.
IGNORED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")


def table(architecture: str, config: ModelConfig) -> list[Row]:
    """Returns the rows of a language model's weights, its output table included where that is one of its own."""
    rows = _TABLES[architecture](config)
    return rows if config.tie_embeddings else [*rows, Row("table", "lm_head.weight")]


def group_of(row: Row) -> str:
    """Returns "head" for the output table and "backbone" for all else."""
    return "head" if row.leaf == "table" else "backbone"


def leaves(params: Mapping[str, Any], rows: list[Row]) -> Iterator[tuple[Row, Any]]:
    """Yields each row with our leaf (an array or its shape)."""
    for row in rows:
        leaf: Any = params[group_of(row)]
        for name in row.leaf.split("/"):
            leaf = leaf[name]
        yield row, leaf


def expected_shapes(params: Mapping[str, Any], rows: list[Row]) -> dict[str, Shape]:
    """Returns {their name: its shape} of a model whose abstract parameters are `params`."""
    shapes: dict[str, Shape] = {}
    for row, leaf in leaves(params, rows):
        shape = leaf.shape[1:] if row.stacked else leaf.shape
        shapes |= dict.fromkeys(row.keys(leaf.shape[0]), row.their_shape(shape))
    return shapes


def compare_shapes(found: Mapping[str, Shape], expected: Mapping[str, Shape], where: str) -> None:
    """Raises UserError listing tensors that are missing, surplus or of another shape."""
    faults = [f"missing: {name}" for name in expected if name not in found]
    faults += [f"surplus: {name}" for name in found if name not in expected]
    faults += [
        f"{name} is {list(found[name])}, the config says {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    if faults:
        shown = "; ".join(faults[:8]) + (f"; and {len(faults) - 8} more" if len(faults) > 8 else "")
        raise UserError(f"{where} does not hold the weights of its config.json: {shown}")
