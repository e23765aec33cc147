"""The fields of Falcon's config.json that depend on each other: its older models and the new decoder architecture."""

from typing import Any

from configs.errors import UserError
from model.config import ModelConfig
from model.huggingface.fields import Section, Values


def _read(values: Values) -> dict[str, Any]:
    grouped, parallel = values["new_decoder_architecture"], values["parallel_attn"]
    norms, heads = values["num_ln_in_parallel_attn"], values["num_kv_heads"]
    if values["alibi"]:
        raise UserError("alibi=True is not supported; expected rotary positions")
    if grouped and not parallel:
        raise UserError("parallel_attn=False is not supported with new_decoder_architecture=True")
    if norms not in ((None, 1, 2) if grouped else (None, 1)):
        raise UserError(
            f"num_ln_in_parallel_attn={norms!r:.40} is not supported with new_decoder_architecture={grouped}"
        )
    if not grouped and not values["multi_query"] and heads not in (None, values["num_attention_heads"]):
        raise UserError(f"num_kv_heads={heads!r:.40} is not supported with multi_query=False")
    kv_heads = heads if grouped else 1 if values["multi_query"] else values["num_attention_heads"]
    kinds = {True: "two_norms" if grouped and norms != 1 else "one_norm", False: "none"}
    return {"num_kv_heads": kv_heads or 0, "parallel": kinds[parallel]}


def _write(c: ModelConfig) -> dict[str, Any]:
    grouped = c.parallel == "two_norms" or 1 < c.num_kv_heads < c.num_heads
    return {
        "new_decoder_architecture": grouped,
        "num_ln_in_parallel_attn": {"two_norms": 2, "one_norm": 1}.get(c.parallel) if grouped else None,
        "num_kv_heads": c.num_kv_heads if grouped else None,
        "multi_query": c.num_kv_heads == 1,
        "parallel_attn": c.parallel != "none",
        "alibi": False,
    }


# Attention heads, and whether attention and MLP run in parallel and share a norm.
FALCON = Section(
    {
        "new_decoder_architecture": False, "num_ln_in_parallel_attn": None, "num_kv_heads": None, "multi_query": True,
        "parallel_attn": True, "alibi": False,
    },
    _read,
    _write,
)  # fmt: skip
