"""The weights of each family of transformers: which of their tensors are which of our parameters.

N heads, K kv heads, H head dim, F mlp.
"""

import dataclasses
from collections.abc import Mapping

from model.config import ModelConfig
from model.huggingface.weights import Part, Row

_PRE = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
_POST = {"attention_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm"}
_BOTH = _POST | {"attention_norm": "input_layernorm", "mlp_norm": "pre_feedforward_layernorm"}
_EMBEDDING = Row("embedding/table", "model.embed_tokens.weight")
_GATED = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
_SPARSE = "model.layers.{i}.mlp"
# End of the name of a tensor that only the layout of `fused_experts` has.
FUSED_EXPERTS = ".experts.gate_up_proj"


def llama(c: ModelConfig) -> list[Row]:
    """Returns the rows of Llama, Mistral, Qwen, SmolLM3, Granite and StableLM."""
    return [*_attention(c), *_mlp(c, _GATED), *_norms(c, _PRE)]


def olmo(c: ModelConfig) -> list[Row]:
    """Returns the rows of OLMo 2 and 3, whose norms come after attention and MLP."""
    return [*_attention(c), *_mlp(c, _GATED), *_norms(c, _POST)]


def gemma(c: ModelConfig) -> list[Row]:
    """Returns the rows of Gemma 2 and 3, whose norms come before and after attention and MLP."""
    return [*_attention(c), *_mlp(c, _GATED), *_norms(c, _BOTH)]


def cohere(c: ModelConfig) -> list[Row]:
    """Returns the rows of Cohere, whose rotary positions turn neighboring columns."""
    return [*_attention(c, interleaved=True), *_mlp(c, _GATED), *_norms(c, _PRE)]


def starcoder2(c: ModelConfig) -> list[Row]:
    """Returns the rows of StarCoder 2, whose MLP is not gated."""
    return [*_attention(c), *_mlp(c, {"up": "c_fc", "down": "c_proj"}), *_norms(c, _PRE)]


def phi3(c: ModelConfig) -> list[Row]:
    """Returns the rows of Phi-3, with one tensor for queries, keys and values and one for gate and up."""
    layer = "model.layers.{i}"
    return [
        _EMBEDDING,
        *_qkv(c, f"{layer}.self_attn.qkv_proj", _consecutive(c)),
        *_linear("attention/output", f"{layer}.self_attn.o_proj", inputs=2, bias=c.output_bias),
        *_gate_up(c, f"{layer}.mlp.gate_up_proj"),
        *_linear("mlp/down", f"{layer}.mlp.down_proj", bias=c.mlp_bias),
        *_norms(c, _PRE),
    ]


def granite_hybrid(c: ModelConfig) -> list[Row]:
    """Returns the rows of Granite 4, dense: its MLP is what the mixtures of experts of its family share."""
    mlp = "model.layers.{i}.shared_mlp"
    return [
        *_attention(c),
        *_gate_up(c, f"{mlp}.input_linear"),
        *_linear("mlp/down", f"{mlp}.output_linear", bias=c.mlp_bias),
        *_norms(c, _PRE),
    ]


def mixtral(c: ModelConfig) -> list[Row]:
    """Returns the rows of Mixtral."""
    names = {"gate": "w1", "up": "w3", "down": "w2"}
    return [*_attention(c), *_experts(c, "model.layers.{i}.block_sparse_moe", names), *_norms(c, _PRE)]


def sparse(c: ModelConfig) -> list[Row]:
    """Returns the rows of OLMoE and Qwen3-MoE, which may have an MLP in some layers."""
    return [*_attention(c), *_dense_layers(c), *_experts(c, _SPARSE, _GATED), *_norms(c, _PRE)]


def fused_experts(c: ModelConfig) -> list[Row]:
    """Returns the rows of these three in the other layout of transformers 5: one tensor for all experts of a layer."""
    F, experts = c.expert_width, f"{_SPARSE}.experts"
    matrices = [
        Row("layers/experts/gate/kernel", f"{experts}.gate_up_proj", 1, part=Part(0, F, 2 * F)),
        Row("layers/experts/up/kernel", f"{experts}.gate_up_proj", 1, part=Part(F, 2 * F, 2 * F)),
        Row("layers/experts/down/kernel", f"{experts}.down_proj", 1),
    ]
    return [*_attention(c), *_dense_layers(c), *_of_experts(c, _SPARSE, matrices), *_norms(c, _PRE)]


def gpt2(c: ModelConfig) -> list[Row]:
    """Returns the rows of GPT-2, whose matrices are (inputs, outputs)."""
    layer = "transformer.h.{i}"
    return [
        Row("embedding/table", "transformer.wte.weight"),
        Row("embedding/positions", "transformer.wpe.weight"),
        *_qkv(c, f"{layer}.attn.c_attn", _consecutive(c), transposed=False),
        *_linear("attention/output", f"{layer}.attn.c_proj", 2, c.output_bias, transposed=False),
        *_linear("mlp/up", f"{layer}.mlp.c_fc", 1, c.mlp_bias, transposed=False),
        *_linear("mlp/down", f"{layer}.mlp.c_proj", 1, c.mlp_bias, transposed=False),
        *_norm(c, "layers/attention_norm", f"{layer}.ln_1"),
        *_norm(c, "layers/mlp_norm", f"{layer}.ln_2"),
        *_norm(c, "final_norm", "transformer.ln_f"),
    ]


def gpt_neox(c: ModelConfig) -> list[Row]:
    """Returns the rows of GPT-NeoX and Pythia, with the query, key and value of each head next to each other."""
    layer, H = "gpt_neox.layers.{i}", c.head_dim
    thirds = {name: Part(i * H, (i + 1) * H, 3 * H, c.num_heads) for i, name in enumerate(("query", "key", "value"))}
    return [
        Row("embedding/table", "gpt_neox.embed_in.weight"),
        *_qkv(c, f"{layer}.attention.query_key_value", thirds),
        *_linear("attention/output", f"{layer}.attention.dense", 2, c.output_bias),
        *_linear("mlp/up", f"{layer}.mlp.dense_h_to_4h", 1, c.mlp_bias),
        *_linear("mlp/down", f"{layer}.mlp.dense_4h_to_h", 1, c.mlp_bias),
        *_norm(c, "layers/attention_norm", f"{layer}.input_layernorm"),
        *_norm(c, "layers/mlp_norm", f"{layer}.post_attention_layernorm"),
        *_norm(c, "final_norm", "gpt_neox.final_layer_norm"),
    ]


def falcon(c: ModelConfig) -> list[Row]:
    """Returns the rows of Falcon: each kv head follows the query heads that read it."""
    layer, K, H = "transformer.h.{i}", c.num_kv_heads, c.head_dim
    queries = c.num_heads // K * H
    parts = {
        "query": Part(0, queries, queries + 2 * H, K),
        "key": Part(queries, queries + H, queries + 2 * H, K),
        "value": Part(queries + H, queries + 2 * H, queries + 2 * H, K),
    }
    first, second = (
        ("ln_attn", "ln_mlp") if c.parallel == "two_norms" else ("input_layernorm", "post_attention_layernorm")
    )
    return [
        Row("embedding/table", "transformer.word_embeddings.weight"),
        *_qkv(c, f"{layer}.self_attention.query_key_value", parts),
        *_linear("attention/output", f"{layer}.self_attention.dense", 2, c.output_bias),
        *_linear("mlp/up", f"{layer}.mlp.dense_h_to_4h", 1, c.mlp_bias),
        *_linear("mlp/down", f"{layer}.mlp.dense_4h_to_h", 1, c.mlp_bias),
        *_norm(c, "layers/attention_norm", f"{layer}.{first}"),
        *(_norm(c, "layers/mlp_norm", f"{layer}.{second}") if c.parallel != "one_norm" else []),
        *_norm(c, "final_norm", "transformer.ln_f"),
    ]


def _attention(c: ModelConfig, interleaved: bool = False) -> list[Row]:
    """Returns the embedding and the attention of Llama and models like it."""
    attention = "model.layers.{i}.self_attn"
    rows = [_EMBEDDING]
    for name, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        swapped = interleaved and name != "value"
        rows += _linear(f"attention/{name}", f"{attention}.{theirs}", bias=c.qkv_bias, interleaved=swapped)
    rows += _linear("attention/output", f"{attention}.o_proj", inputs=2, bias=c.output_bias)
    if c.qk_norm:
        for name, theirs in (("query_norm", "q_norm"), ("key_norm", "k_norm")):
            rows.append(Row(f"layers/attention/{name}/scale", f"{attention}.{theirs}.weight"))
    return rows


def _mlp(c: ModelConfig, names: Mapping[str, str]) -> list[Row]:
    """Returns the MLP of Llama and models like it; `names` maps our projections to theirs."""
    mlp = "model.layers.{i}.mlp"
    return [row for ours, name in names.items() for row in _linear(f"mlp/{ours}", f"{mlp}.{name}", bias=c.mlp_bias)]


def _dense_layers(c: ModelConfig) -> list[Row]:
    """Returns the MLPs of the layers without experts."""
    layers = tuple(i for i, kind in enumerate(c.kinds) if not kind.experts)
    return [dataclasses.replace(row, layers=layers) for row in _mlp(c, _GATED)] if layers else []


def _experts(c: ModelConfig, key: str, names: Mapping[str, str]) -> list[Row]:
    """Returns routers and experts with a tensor for each matrix; `names` maps our projections to theirs."""
    experts = f"{key}.experts.{{e}}"
    matrices = [Row(f"layers/experts/{ours}/kernel", f"{experts}.{theirs}.weight", 1) for ours, theirs in names.items()]
    return _of_experts(c, key, matrices)


def _of_experts(c: ModelConfig, key: str, matrices: list[Row]) -> list[Row]:
    """Returns the router and these matrices, in the layers that have experts."""
    layers = tuple(i for i, kind in enumerate(c.kinds) if kind.experts)
    router = Row("layers/experts/router/weight", f"{key}.gate.weight", 1, layers=layers)
    return [router, *(dataclasses.replace(row, layers=layers, experts=c.num_experts) for row in matrices)]


def _norms(c: ModelConfig, names: Mapping[str, str]) -> list[Row]:
    """Returns the norms of each layer that the model has, and the final one."""
    names = {ours: theirs for ours, theirs in names.items() if not (ours == "mlp_norm" and c.parallel == "one_norm")}
    rows = [row for ours, theirs in names.items() for row in _norm(c, f"layers/{ours}", f"model.layers.{{i}}.{theirs}")]
    return [*rows, *_norm(c, "final_norm", "model.norm")]


def _norm(c: ModelConfig, leaf: str, key: str) -> list[Row]:
    bias = [Row(f"{leaf}/bias", f"{key}.bias")] if c.norm == "layernorm" and c.norm_bias else []
    return [Row(f"{leaf}/scale", f"{key}.weight"), *bias]


def _linear(
    leaf: str, key: str, inputs: int = 1, bias: bool = False, *, transposed: bool = True, interleaved: bool = False
) -> list[Row]:
    rows = [Row(f"layers/{leaf}/kernel", f"{key}.weight", inputs, transposed, interleaved=interleaved)]
    return [*rows, Row(f"layers/{leaf}/bias", f"{key}.bias", interleaved=interleaved)] if bias else rows


def _consecutive(c: ModelConfig) -> dict[str, Part]:
    """Returns the parts of a tensor with all queries, then all keys, then all values."""
    N, K, size = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim, (c.num_heads + 2 * c.num_kv_heads) * c.head_dim
    return {"query": Part(0, N, size), "key": Part(N, N + K, size), "value": Part(N + K, size, size)}


def _qkv(c: ModelConfig, key: str, parts: Mapping[str, Part], *, transposed: bool = True) -> list[Row]:
    rows = [
        Row(f"layers/attention/{name}/kernel", f"{key}.weight", 1, transposed, part) for name, part in parts.items()
    ]
    if c.qkv_bias:
        rows += [Row(f"layers/attention/{name}/bias", f"{key}.bias", part=part) for name, part in parts.items()]
    return rows


def _gate_up(c: ModelConfig, key: str) -> list[Row]:
    """Returns the rows of a tensor with all gates, then all ups."""
    F = c.mlp_dim
    return [
        Row("layers/mlp/gate/kernel", f"{key}.weight", 1, True, Part(0, F, 2 * F)),
        Row("layers/mlp/up/kernel", f"{key}.weight", 1, True, Part(F, 2 * F, 2 * F)),
    ]
