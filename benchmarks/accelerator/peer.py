"""The same train step and decoding in transformers and torch; run by `--peer_python`, without this project's packages.

python peer.py FUNCTION JSON_ARGUMENTS prints one JSON object.
"""

import json
import statistics
import sys
import time

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def build(shape, dtype):
    """Returns a random Llama of the shape, and its config's length."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["embed_dim"],
        intermediate_size=shape["mlp_dim"],
        num_hidden_layers=shape["num_layers"],
        num_attention_heads=shape["num_heads"],
        num_key_value_heads=shape["num_kv_heads"],
        head_dim=shape["head_dim"],
        max_position_embeddings=shape["context_length"],
        tie_word_embeddings=shape["tie_embeddings"],
        attn_implementation="sdpa",
    )
    with torch.device(DEVICE):
        return LlamaForCausalLM(config).to(dtype)


def wait():
    """Waits for the device."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def train(shape, rows, length, steps, compiled):
    """Float32 weights, bfloat16 autocast, fused AdamW, clipping at norm 1; checkpointing only if it does not fit."""
    for checkpointing in (False, True):
        try:
            return timed_steps(shape, rows, length, steps, compiled, checkpointing)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    return {"error": "out of memory with gradient checkpointing"}


def timed_steps(shape, rows, length, steps, compiled, checkpointing):
    """Returns the figures of one setting."""
    model = build(shape, torch.float32)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    forward = torch.compile(model) if compiled else model
    tokens = torch.randint(0, shape["vocab_size"], (rows, length), device=DEVICE)
    times, start = [], time.perf_counter()
    compile_seconds = 0.0
    for _ in range(steps + 3):
        start = time.perf_counter()
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = forward(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        value = loss.item()
        wait()
        times.append(time.perf_counter() - start)
        compile_seconds = compile_seconds or times[0]
    seconds = statistics.median(times[3:])
    return {
        "rows": rows,
        "length": length,
        "compiled": compiled,
        "checkpointing": checkpointing,
        "parameters": sum(p.numel() for p in model.parameters()),
        "first_step_seconds": compile_seconds,
        "step_seconds": [min(times[3:]), seconds, max(times[3:])],
        "tokens_per_second": rows * length / seconds,
        "peak_bytes": torch.cuda.max_memory_allocated() if DEVICE == "cuda" else None,
        "loss": value,
    }


def decode(shape, prompt, new, rows):
    """Greedy `generate` in bfloat16."""
    model = build(shape, torch.bfloat16).eval()
    tokens = torch.randint(0, shape["vocab_size"], (rows, prompt), device=DEVICE)
    options = {"min_new_tokens": new, "max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    with torch.inference_mode():
        model.generate(tokens, **options)
        wait()
        start = time.perf_counter()
        model.generate(tokens, **options)
        wait()
        seconds = time.perf_counter() - start
    return {"rows": rows, "prompt": prompt, "new": new, "tokens_per_second": rows * new / seconds}


def main():
    """Runs one function with JSON arguments."""
    arguments = json.loads(sys.argv[2])
    found = {"train": train, "decode": decode}[sys.argv[1]](**arguments)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps(found | {"versions": versions}))


if __name__ == "__main__":
    main()
