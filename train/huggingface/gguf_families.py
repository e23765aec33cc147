"""The families of models in GGUF files: which metadata is a field of config.json, and what converters do to tensors.

What llama.cpp's converters (conversion/*.py) leave out, because llama.cpp derives it otherwise, is derived here too.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from model.config import ModelConfig
from train.huggingface.gguf_file import Gguf

Fields = dict[str, Any]
FULL, SLIDING = "full_attention", "sliding_attention"
_SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
}
_LLAMA = _SIZES | {"attention.layer_norm_rms_epsilon": "rms_norm_eps"}
_GPT2 = {
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
_WINDOW = {"attention.sliding_window": "sliding_window"}
_GEMMA = _LLAMA | _WINDOW | {f"{name}_logit_softcapping": f"{name}_logit_softcapping" for name in ("attn", "final")}
_GRANITE = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
_LAYER_NORM = _SIZES | {"attention.layer_norm_epsilon": "layer_norm_eps"}
_FALCON = {name: field for name, field in _SIZES.items() if name != "attention.head_count_kv"}
_FALCON |= {"feed_forward_length": "ffn_hidden_size", "attention.layer_norm_epsilon": "layer_norm_epsilon"}
_GPT_NEOX = {name: field for name, field in _LAYER_NORM.items() if name != "attention.head_count_kv"}
_GPT_NEOX |= {"rope.freq_base": "rotary_emb_base"}
# Layers of the models whose attention scores are divided by sqrt(embedding / heads), not by sqrt(head_dim).
_SCALED_BY_WIDTH = {"gemma2": 46, "gemma3": 62}


@dataclasses.dataclass(frozen=True)
class Header:
    """What the fields of a family are derived from.

    Attributes:
        gguf: the file.
        name: its architecture.
        values: the metadata under the architecture's name, without this name.
        config: the fields of config.json so far.
    """

    gguf: Gguf
    name: str
    values: Mapping[str, Any]
    config: Mapping[str, Any]

    def has(self, tensor: str) -> bool:
        """Returns whether the first layer has a tensor."""
        return f"blk.0.{tensor}" in self.gguf.tensors


Undo = Callable[[ModelConfig, str, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class GgufFamily:
    """A family of models in GGUF files.

    Attributes:
        model_type: its name in config.json.
        fields: metadata -> field of config.json with the same value.
        derived: fields of config.json that follow from something else.
        undo: undoes what converters do to a tensor, which is given by its Hugging Face name.
        neutral: values with which other metadata has no effect.
        rotated: rotary dimensions may be fewer than those of a head; the field of config.json for their fraction.
        per_type: windowed layers have rotary positions of their own, which are never scaled.
        local_base: base of their rotary positions where the file has none; 0: that of the other layers.
    """

    model_type: str
    fields: Mapping[str, str]
    derived: Callable[[Header], Fields] = lambda header: {}
    undo: Undo = lambda model, name, tensor: tensor
    neutral: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rotated: str = ""
    per_type: bool = False
    local_base: float = 0.0


def _permuted(model: ModelConfig, name: str, tensor: np.ndarray) -> np.ndarray:
    """Returns queries and keys with the halves of each head one after the other; llama.cpp has pairs."""
    if not name.rpartition(".")[0].endswith(("q_proj", "k_proj")):
        return tensor
    heads = model.num_heads if "q_proj" in name else model.num_kv_heads
    pairs = tensor.reshape(heads, -1, 2, *tensor.shape[1:])
    return pairs.swapaxes(1, 2).reshape(tensor.shape)


def _unit_offset(model: ModelConfig, name: str, tensor: np.ndarray) -> np.ndarray:
    """Returns norms that scale by 1 + weight; llama.cpp's scale by the weight."""
    return tensor - 1 if name.endswith("norm.weight") else tensor


def _conv1d(model: ModelConfig, name: str, tensor: np.ndarray) -> np.ndarray:
    return tensor.T if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else tensor


def _grouped(model: ModelConfig, name: str, tensor: np.ndarray) -> np.ndarray:
    """Returns queries, keys and values with those of a kv head next to each other; llama.cpp has all queries first."""
    if "query_key_value" not in name:
        return tensor
    heads, groups, rest = model.num_heads, model.num_kv_heads, tensor.shape[1:]
    parts = tensor.reshape(heads + 2 * groups, model.head_dim, *rest)
    split = (parts[:heads], parts[heads : heads + groups], parts[heads + groups :])
    by_group = [part.reshape(groups, -1, model.head_dim, *rest) for part in split]
    return np.concatenate(by_group, axis=1).reshape(tensor.shape)


def _biases(header: Header) -> Fields:
    return {"attention_bias": header.has("attn_q.bias")}


def _llama(header: Header) -> Fields:
    return _biases(header) | {"mlp_bias": header.has("ffn_up.bias")}


def _gemma(header: Header) -> Fields:
    config = header.config
    by_width = config["num_hidden_layers"] == _SCALED_BY_WIDTH[header.name]
    scalar = config["hidden_size"] // config["num_attention_heads"] if by_width else config["head_dim"]
    scale = header.values.get("attention.scale")
    return {"query_pre_attn_scalar": round(scale**-2) if scale else scalar}


def _gemma3(header: Header) -> Fields:
    return _gemma(header) | {"layer_types": _layer_types(header, 6)}


def _layer_types(header: Header, default: int) -> list[str]:
    """Returns the types of the layers; without a pattern in the file, the last of each `default` layers is full."""
    pattern, layers = header.values.get("attention.sliding_window_pattern", default), header.config["num_hidden_layers"]
    if not header.config.get("sliding_window"):
        return [FULL] * layers
    flags = pattern if isinstance(pattern, list) else [(i + 1) % pattern != 0 for i in range(layers)]
    return [SLIDING if flag else FULL for flag in flags]


def _olmo(header: Header) -> Fields:
    """Returns the fields of OLMo 2, or of OLMo 3, which has windows."""
    if not header.config.get("sliding_window"):
        return _biases(header)
    return _biases(header) | {"model_type": "olmo3", "layer_types": _layer_types(header, 4)}


def _phi3(header: Header) -> Fields:
    tensors = {name: f"rope_factors_{name}.weight" for name in ("short", "long")}
    window = header.values.get("attention.sliding_window", 0)
    original = header.values.get("rope.scaling.original_context_length", header.config["max_position_embeddings"])
    found: Fields = {"sliding_window": window or None, "original_max_position_embeddings": original}
    if not set(tensors.values()) <= set(header.gguf.tensors):
        return found
    factors = {f"{name}_factor": header.gguf.read(tensor).tolist() for name, tensor in tensors.items()}
    stated = header.values.get("rope.scaling.attn_factor")
    attention = {"attention_factor": stated} if stated else {}
    return found | {"rope_scaling": {"rope_type": "longrope"} | factors | attention}


def _stablelm(header: Header) -> Fields:
    parallel = header.values.get("use_parallel_residual", not header.has("ffn_norm.weight"))
    return {"use_qkv_bias": header.has("attn_q.bias"), "use_parallel_residual": parallel}


def _starcoder2(header: Header) -> Fields:
    return {"use_bias": header.has("attn_q.bias")}


def _gpt_neox(header: Header) -> Fields:
    return {"use_parallel_residual": header.values.get("use_parallel_residual", True)}


def _falcon(header: Header) -> Fields:
    kv_heads = header.values.get("attention.head_count_kv", 1)
    found = {"bias": header.has("attn_qkv.bias"), "multi_query": kv_heads == 1, "num_kv_heads": kv_heads}
    if kv_heads == 1:
        return found | {"new_decoder_architecture": False, "parallel_attn": not header.has("ffn_norm.weight")}
    return found | {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1 + header.has("attn_norm_2.weight")}


# general.architecture -> family.
GGUF_FAMILIES: dict[str, GgufFamily] = {
    "gpt2": GgufFamily("gpt2", _GPT2, lambda header: {"activation_function": "gelu_new"}, _conv1d),
    "llama": GgufFamily("llama", _LLAMA, _llama, _permuted),
    "qwen2": GgufFamily("qwen2", _LLAMA),
    "qwen3": GgufFamily("qwen3", _LLAMA, _biases),
    "gemma2": GgufFamily("gemma2", _GEMMA, _gemma, _unit_offset),
    # Gemma 3's windowed layers have a base of their own.
    "gemma3": GgufFamily("gemma3_text", _GEMMA, _gemma3, _unit_offset, per_type=True, local_base=10000.0),
    "olmo2": GgufFamily("olmo2", _LLAMA | _WINDOW, _olmo),
    "smollm3": GgufFamily("smollm3", _LLAMA, _llama, _permuted),
    "phi3": GgufFamily("phi3", _LLAMA | _WINDOW, _phi3, rotated="partial_rotary_factor"),
    # rope.scaling.finetuned=false stands for no rotary positions there.
    "granite": GgufFamily("granite", _LLAMA | _GRANITE, _llama, _permuted, {"rope.scaling.finetuned": True}),
    "command-r": GgufFamily("cohere", _LAYER_NORM | {"logit_scale": "logit_scale"}, _biases),
    "cohere2": GgufFamily("cohere2", _LAYER_NORM | _WINDOW | {"logit_scale": "logit_scale"}, _biases),
    "stablelm": GgufFamily("stablelm", _LAYER_NORM, _stablelm, rotated="partial_rotary_factor"),
    "starcoder2": GgufFamily(
        "starcoder2", _SIZES | {"attention.layer_norm_epsilon": "norm_epsilon"}, _starcoder2
    ),
    "gptneox": GgufFamily(
        "gpt_neox",
        _GPT_NEOX,
        _gpt_neox,
        _grouped,
        rotated="rotary_pct",
    ),
    "falcon": GgufFamily("falcon", _FALCON, _falcon, _grouped, {"tensor_data_layout": "jploski"}),
}  # fmt: skip
