"""Training tokens per second of a small OLMoE beside that of transformers, float32 on the same cores, turn by turn.

    python -m venv HF && HF/bin/pip install torch==2.13.0 transformers
    python -m benchmarks.olmoe --peer_python=HF/bin/python

Both train by AdamW with clipping at norm 1 on random tokens, without a balance loss. transformers computes experts by a
loop over them ("eager") or by grouped products ("grouped_mm"); the ratio is to the faster of the two. Its third way,
"batched_mm", copies an expert's matrices for each token's choice, 6 GB per layer here, and is left out. CPU seconds are
those of all threads: where other programs use the cores, they vary less than the time.
"""

import argparse
import json
import statistics
import subprocess
import sys
from typing import Any

from ml_collections import ConfigDict

from benchmarks.own_steps import own_steps
from configs import default, models

IMPLEMENTATIONS = ("eager", "grouped_mm")
# Reads the name of an implementation per line and answers with the seconds and CPU seconds of `steps` steps and the
# last loss, or with the error if torch cannot run it here.
PEER = """
import json, sys, time
import torch, transformers

shape = json.loads(sys.argv[1])
config = transformers.OlmoeConfig(
    vocab_size=shape["vocab"], hidden_size=shape["embed"], intermediate_size=shape["expert"],
    num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"], num_experts=shape["experts"],
    num_experts_per_tok=shape["chosen"], max_position_embeddings=shape["length"], bos_token_id=1, eos_token_id=2,
    pad_token_id=0, use_cache=False,
)
torch.manual_seed(0)
model = transformers.AutoModelForCausalLM.from_config(config).float().train()
optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
tokens = torch.randint(0, shape["vocab"], (shape["batch"], shape["length"]))
count = sum(p.numel() for p in model.parameters())
version = f"transformers {transformers.__version__}, torch {torch.__version__}"
print(json.dumps({"version": version, "parameters": count}), flush=True)
for line in sys.stdin:
    try:
        model.set_experts_implementation(line.strip())
        start, used = time.perf_counter(), time.process_time()
        for _ in range(shape["steps"]):
            loss = model(input_ids=tokens, labels=tokens).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        answer = [time.perf_counter() - start, time.process_time() - used, loss.item()]
    except Exception as error:
        optimizer.zero_grad()
        answer = f"{type(error).__name__}: {error}"[:200]
    print(json.dumps(answer), flush=True)
"""


def config_of(shape: dict[str, int]) -> ConfigDict:
    """Returns the config of the model that the other program trains."""
    config = default.get_config()
    config.batch_size, config.sequence_length, config.optimizer.warmup_steps = shape["batch"], shape["length"], 0
    config.model.update(models.architecture("olmoe_1b_7b"))
    config.model.update(
        {
            "compute_dtype": "float32",
            "vocab_size": shape["vocab"],
            "embed_dim": shape["embed"],
            "num_layers": shape["layers"],
            "num_heads": shape["heads"],
            "num_kv_heads": shape["heads"],
            "head_dim": shape["embed"] // shape["heads"],
            "mlp_dim": shape["expert"],
            "num_experts": shape["experts"],
            "experts_per_token": shape["chosen"],
            "context_length": shape["length"],
            "scan_layers": False,
        }
    )
    return config


def main() -> None:
    """Prints the median of each side, and the ratio to the fastest of the other side's ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer_python", required=True, help="a Python with torch and transformers")
    parser.add_argument("--rounds", type=int, default=5)
    sizes = {
        "batch": 8, "length": 256, "embed": 256, "expert": 128, "experts": 64, "chosen": 8, "layers": 4, "heads": 4,
        "vocab": 8192, "steps": 2,
    }  # fmt: skip
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    arguments = parser.parse_args()
    shape = {name: getattr(arguments, name) for name in sizes}
    command = [arguments.peer_python, "-c", PEER, json.dumps(shape)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as peer:
        assert peer.stdin is not None and peer.stdout is not None
        about = peer.stdout.readline()
        if not about:
            sys.exit(f"--peer_python={arguments.peer_python} cannot build OlmoeForCausalLM")

        def peer_round(name: str) -> Any:
            peer.stdin.write(f"{name}\n")
            peer.stdin.flush()
            answer = peer.stdout.readline()
            return json.loads(answer) if answer else sys.exit(f"transformers, {name}: the process ended")

        own = own_steps(config_of(shape), shape["steps"])
        ours, theirs = next(own), json.loads(about)
        next(own)
        warm = {name: peer_round(name) for name in IMPLEMENTATIONS}
        names = [name for name, answer in warm.items() if not isinstance(answer, str)]
        for name in warm.keys() - set(names):
            print(f"transformers, {name}: does not run here ({warm[name]})")
        rounds = [(next(own), {name: peer_round(name) for name in names}) for _ in range(arguments.rounds)]
        peer.stdin.close()
    report(shape, ours, theirs, names, rounds)


def report(
    shape: dict[str, int], ours: dict[str, Any], theirs: dict[str, Any], names: list[str], rounds: list[Any]
) -> None:
    """Prints both sides."""
    tokens = shape["batch"] * shape["length"] * shape["steps"]
    sides = {"rootstock": [mine for mine, _ in rounds]}
    sides |= {f"transformers, {name}": [other[name] for _, other in rounds] for name in names}
    seconds = {side: statistics.median(values[0] for values in measured) for side, measured in sides.items()}
    used = {side: statistics.median(values[1] for values in measured) for side, measured in sides.items()}
    for side, measured in sides.items():
        print(
            f"{side}: {tokens / seconds[side]:,.0f} tokens/s, {used[side] / shape['steps']:.2f} CPU seconds per step, "
            f"loss {measured[-1][2]:.3f}"
        )
    best = min(sides.keys() - {"rootstock"}, key=seconds.__getitem__)
    ratios = sorted(b[0] / a[0] for a, b in zip(sides["rootstock"], sides[best], strict=True))
    print(
        f"{best}: ratio {seconds[best] / seconds['rootstock']:.2f} (rounds {ratios[0]:.2f} to {ratios[-1]:.2f}), "
        f"of CPU seconds {used[best] / used['rootstock']:.2f}"
    )
    print(f"jax {ours['jax']}: {ours['parameters']:,} parameters")
    print(f"{theirs['version']}: {theirs['parameters']:,} parameters")


if __name__ == "__main__":
    main()
