"""Writes tests/golden/huggingface/: tiny random models made by transformers, with their logits.

Needs torch and transformers (pip install torch transformers), which are not dependencies of the project.

    python tests/golden/make_huggingface.py tests/golden/huggingface gpt2 llama3 qwen2 gemma2 olmo2
    python tests/golden/make_huggingface.py tests/golden/huggingface gemma3 olmo3 smollm3 phi3_longrope granite ...
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers

SHAPE = {
    "vocab_size": 272,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
COLUMNS = 48  # stored logits of each token
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WIDE = SHAPE | {"hidden_size": 32}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.4], "long_factor": [1.5, 2.0, 3.0, 4.0],
}  # fmt: skip
GEMMA2 = {"head_dim": 12, "sliding_window": 6, "query_pre_attn_scalar": 10, "attn_logit_softcapping": 20.0}
GEMMA3 = {"head_dim": 12, "sliding_window": 6, "query_pre_attn_scalar": 10, "num_hidden_layers": 7}
GPT2 = {"vocab_size": 272, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
FALCON = {
    "vocab_size": 272, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 64, "ffn_hidden_size": 24,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
MULTIPLIERS = {
    "embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.3, "logits_scaling": 6.0,
}  # fmt: skip


def configs():
    """Returns {name: config} of every architecture, with the options in which its models differ."""
    t = transformers
    return {
        "gpt2": t.GPT2Config(**GPT2, **IDS),
        "llama2": t.LlamaConfig(**SHAPE, **IDS, tie_word_embeddings=False),
        "llama3": t.LlamaConfig(**SHAPE, **IDS, tie_word_embeddings=True, head_dim=12, rope_parameters=LLAMA3),
        "llama_bias": t.LlamaConfig(**SHAPE, **IDS, attention_bias=True, mlp_bias=True),
        "llama_linear": t.LlamaConfig(**SHAPE, **IDS, rope_parameters={"rope_type": "linear", "factor": 4.0}),
        "llama_dynamic": t.LlamaConfig(
            **SHAPE | {"max_position_embeddings": 8}, **IDS, rope_parameters={"rope_type": "dynamic", "factor": 4.0}
        ),
        "smollm2": t.LlamaConfig(**SHAPE | {"num_attention_heads": 1}, **IDS, tie_word_embeddings=True),
        "mistral": t.MistralConfig(**SHAPE, **IDS, sliding_window=6),
        "mistral_full": t.MistralConfig(**SHAPE, **IDS, sliding_window=None),
        "qwen2": t.Qwen2Config(**SHAPE, **IDS),
        "qwen2_yarn": t.Qwen2Config(
            **SHAPE | {"num_hidden_layers": 3},
            **IDS,
            rope_parameters=YARN,
            use_sliding_window=True,
            sliding_window=6,
            max_window_layers=2,
        ),
        "qwen3": t.Qwen3Config(**SHAPE, **IDS, head_dim=12, tie_word_embeddings=True),
        "qwen3_yarn": t.Qwen3Config(
            **SHAPE, **IDS, head_dim=12, rope_parameters=YARN | {"beta_fast": 4.0, "truncate": False}
        ),
        "gemma2": t.Gemma2Config(**SHAPE, **IDS, **GEMMA2, final_logit_softcapping=10.0),
        "gemma3": t.Gemma3TextConfig(
            **SHAPE | GEMMA3,
            **IDS,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        ),
        "olmo2": t.Olmo2Config(**SHAPE, **IDS),
        "olmo3": t.Olmo3Config(
            **SHAPE | {"num_hidden_layers": 4}, **IDS, sliding_window=6, rope_scaling=YARN | {"attention_factor": 1.2}
        ),
        "smollm3": t.SmolLM3Config(**SHAPE | {"num_hidden_layers": 4}, **IDS),
        "phi3": t.Phi3Config(**SHAPE, **IDS, sliding_window=6),
        "phi3_longrope": t.Phi3Config(
            **WIDE | {"num_key_value_heads": 2},
            **IDS,
            original_max_position_embeddings=8,
            partial_rotary_factor=0.5,
            rope_scaling=LONGROPE,
        ),
        "granite": t.GraniteConfig(**SHAPE, **IDS, **MULTIPLIERS, tie_word_embeddings=True),
        "granite4": t.GraniteMoeHybridConfig(
            **SHAPE,
            **IDS,
            **MULTIPLIERS,
            shared_intermediate_size=24,
            num_local_experts=0,
            layer_types=["full_attention"] * 2,
            position_embedding_type="rope",
            mamba_n_heads=4,
        ),
        "cohere": t.CohereConfig(**SHAPE, **IDS),
        "cohere2": t.Cohere2Config(**SHAPE | {"num_hidden_layers": 4}, **IDS, sliding_window=6),
        "stablelm": t.StableLmConfig(**WIDE, **IDS, use_qkv_bias=True),
        "stablelm_parallel": t.StableLmConfig(**WIDE, **IDS, use_parallel_residual=True),
        "gpt_neox": t.GPTNeoXConfig(
            **{name: size for name, size in WIDE.items() if name != "num_key_value_heads"}, **IDS
        ),
        "starcoder2": t.Starcoder2Config(**SHAPE, **IDS, sliding_window=6),
        "falcon": t.FalconConfig(**FALCON, **IDS),
        "falcon_grouped": t.FalconConfig(
            **FALCON | {"num_attention_heads": 4}, **IDS, new_decoder_architecture=True, num_kv_heads=2, bias=True
        ),
        "falcon_sequential": t.FalconConfig(**FALCON, **IDS, parallel_attn=False, multi_query=False),
        "mixtral": t.MixtralConfig(**SHAPE, **IDS, num_local_experts=4),
        "mixtral_window": t.MixtralConfig(
            **SHAPE, **IDS, num_local_experts=6, num_experts_per_tok=3, head_dim=12, sliding_window=6
        ),
        "olmoe": t.OlmoeConfig(**SHAPE, **IDS, **EXPERTS),
        "olmoe_renormalized": t.OlmoeConfig(**SHAPE, **IDS, **EXPERTS, norm_topk_prob=True, attention_bias=True),
        "qwen3_moe": t.Qwen3MoeConfig(
            **SHAPE | {"num_hidden_layers": 3},
            **IDS,
            **EXPERTS,
            moe_intermediate_size=12,
            head_dim=12,
            norm_topk_prob=True,
            mlp_only_layers=[0],
        ),
        "qwen3_moe_dense_layers": t.Qwen3MoeConfig(
            **SHAPE | {"num_hidden_layers": 4},
            **IDS,
            **EXPERTS,
            moe_intermediate_size=12,
            decoder_sparse_step=2,
            use_sliding_window=True,
            sliding_window=6,
        ),
    }


def make(directory: Path, name: str) -> None:
    """Writes one model, right-padded token ids, and their logits, those of each row alone."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(configs()[name], attn_implementation="eager").float().eval()
    ids = torch.randint(3, 259, (3, 20))
    lengths = (20, 15, 5)
    mask = (torch.arange(20) < torch.tensor(lengths)[:, None]).long()
    with torch.no_grad():
        # Move weights away from their initial zeros and ones.
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    logits = torch.zeros(3, 20, model.config.vocab_size)
    # The frequencies of some rotary positions depend on the longest row of a batch, and dynamic ones are remembered.
    for row, length in sorted(enumerate(lengths), key=lambda pair: pair[1]):
        with torch.no_grad():
            logits[row, :length] = model(ids[row : row + 1, :length]).logits[0]
    model.save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)
    np.savez_compressed(
        directory / "expected.npz", ids=ids.numpy(), mask=mask.numpy(), logits=logits.numpy()[..., :COLUMNS]
    )


if __name__ == "__main__":
    for wanted in sys.argv[2:]:
        make(Path(sys.argv[1]) / wanted, wanted)
