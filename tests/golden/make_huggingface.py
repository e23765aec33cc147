"""Writes tests/golden/huggingface/: tiny random models made by transformers, with their logits.

Needs torch and transformers (pip install torch transformers), which are not dependencies of the project.

    python tests/golden/make_huggingface.py tests/golden/huggingface gpt2 llama3 qwen2 gemma2 olmo2
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
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
GEMMA2 = {"head_dim": 12, "sliding_window": 6, "query_pre_attn_scalar": 10, "attn_logit_softcapping": 20.0}
GPT2 = {"vocab_size": 272, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}


def configs():
    """Returns {name: config} of every architecture, with the options in which its models differ."""
    t = transformers
    return {
        "gpt2": t.GPT2Config(**GPT2, **IDS),
        "llama2": t.LlamaConfig(**SHAPE, **IDS, tie_word_embeddings=False),
        "llama3": t.LlamaConfig(**SHAPE, **IDS, tie_word_embeddings=True, head_dim=12, rope_parameters=LLAMA3),
        "smollm2": t.LlamaConfig(**SHAPE | {"num_attention_heads": 1}, **IDS, tie_word_embeddings=True),
        "mistral": t.MistralConfig(**SHAPE, **IDS, sliding_window=6),
        "qwen2": t.Qwen2Config(**SHAPE, **IDS),
        "qwen3": t.Qwen3Config(**SHAPE, **IDS, head_dim=12, tie_word_embeddings=True),
        "gemma2": t.Gemma2Config(**SHAPE, **IDS, **GEMMA2, final_logit_softcapping=10.0),
        "olmo2": t.Olmo2Config(**SHAPE, **IDS),
    }


def make(directory: Path, name: str) -> None:
    """Writes one model, right-padded token ids, and their logits."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(configs()[name], attn_implementation="eager").float().eval()
    ids = torch.randint(3, 259, (3, 20))
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    mask[2, 5:] = 0
    with torch.no_grad():
        # Move weights away from their initial zeros and ones.
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        logits = model(ids, attention_mask=mask).logits.numpy()
    model.save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)
    np.savez_compressed(
        directory / "expected.npz", ids=ids.numpy(), mask=mask.numpy(), logits=logits.astype(np.float32)
    )


if __name__ == "__main__":
    for wanted in sys.argv[2:]:
        make(Path(sys.argv[1]) / wanted, wanted)
