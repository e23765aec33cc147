"""The program of the comparison for transformers, PEFT and nanoGPT; `--peer_python` runs it without this project.

python torch_program.py JSON trains `steps` steps per line of the input.
"""

import json
import sys

import torch


def llama(work):
    """Returns (a random Llama of transformers, with LoRA factors if there is a rank; the versions)."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=work["vocab"],
        hidden_size=work["embed"],
        intermediate_size=work["mlp"],
        num_hidden_layers=work["layers"],
        num_attention_heads=work["heads"],
        num_key_value_heads=work["kv_heads"],
        max_position_embeddings=work["length"],
        tie_word_embeddings=True,
        use_cache=False,
    )
    model = transformers.LlamaForCausalLM(config)
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    if work["rank"]:
        import peft

        lora = peft.LoraConfig(r=work["rank"], lora_alpha=2 * work["rank"], target_modules=["q_proj", "v_proj"])
        model = peft.get_peft_model(model, lora)
        versions += f", peft {peft.__version__}"

    def loss_of(forward, tokens):
        labels = tokens.clone()
        # transformers ignores the label -100; label i is predicted at position i - 1.
        labels[:, : tokens.shape[1] - (work["answer"] or tokens.shape[1])] = -100
        return forward(input_ids=tokens, labels=labels).loss

    return model, versions, loss_of


def nanogpt(work):
    """Returns nanoGPT's own model with the same width, layers and heads, as `llama` does."""
    sys.path.insert(0, work["options"]["nanogpt"])
    import model as nanogpt_model

    config = nanogpt_model.GPTConfig(
        block_size=work["length"],
        vocab_size=work["vocab"],
        n_layer=work["layers"],
        n_head=work["heads"],
        n_embd=work["embed"],
        dropout=0.0,
        bias=False,
    )
    return nanogpt_model.GPT(config), f"torch {torch.__version__}", lambda forward, tokens: forward(tokens, tokens)[1]


def main():
    """AdamW (fused) with clipping at norm 1, as nanoGPT and transformers' own examples train."""
    work = json.loads(sys.argv[1])
    torch.manual_seed(0)
    answers, sys.stdout = sys.stdout, sys.stderr
    model, versions, loss_of = (nanogpt if "nanogpt" in work["options"] else llama)(work)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    forward = torch.compile(model) if work["options"].get("compiled") else model
    tokens = torch.randint(0, work["vocab"], (work["rows"], work["length"]))
    count = sum(p.numel() for p in model.parameters())
    print(json.dumps({"version": versions, "parameters": count}), file=answers, flush=True)
    for _ in sys.stdin:
        for _ in range(work["steps"]):
            with torch.autocast("cpu", torch.bfloat16, enabled=work["dtype"] == "bfloat16"):
                loss = loss_of(forward, tokens)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        print(json.dumps({"loss": loss.item()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
