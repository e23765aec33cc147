"""Training tokens per second beside Levanter's Llama model, float32 on the same cores, turn by turn.

    python3.12 -m venv LEVANTER
    LEVANTER/bin/pip install --pre PATH_TO_LEVANTER gitpython chex 'jax==0.7.2'
    python -m benchmarks.levanter --levanter_python=LEVANTER/bin/python

Levanter runs on the JAX version that its snapshot supports, Rootstock on its own. Both train a Llama-type model
(SwiGLU, RMSNorm, rotary positions, tied embeddings, no rematerialization) by AdamW with clipping at norm 1 on random
tokens.
"""

import argparse
import json
import statistics
import subprocess
import sys

from ml_collections import ConfigDict

from benchmarks.own_steps import own_steps
from configs import default

# Reads a line per round and answers with the seconds of `steps` steps; the first round warms up.
PEER = """
import json, sys, time
import equinox as eqx, haliax as hax, jax, jax.numpy as jnp, optax
from levanter.models.llama import LlamaConfig
from levanter.models.lm_model import LmExample, compute_next_token_loss

shape = json.loads(sys.argv[1])
config = LlamaConfig(
    seq_len=shape["length"], hidden_dim=shape["embed"], intermediate_dim=shape["mlp"], num_layers=shape["layers"],
    num_heads=shape["heads"], num_kv_heads=shape["heads"], tie_word_embeddings=True, gradient_checkpointing=False,
)
Vocab, Batch, Pos = hax.Axis("vocab", shape["vocab"]), hax.Axis("batch", shape["batch"]), config.Pos
model = config.build(Vocab, key=jax.random.PRNGKey(0))
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, b2=0.95, weight_decay=0.1))
state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

@eqx.filter_jit(donate="all-except-first")
def step(tokens, model, state):
    def loss(model):
        example = hax.vmap(LmExample.causal, Batch)(hax.named(tokens, (Batch, Pos)))
        return compute_next_token_loss(model, example).scalar()
    value, grads = eqx.filter_value_and_grad(loss)(model)
    updates, state = optimizer.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
    return eqx.apply_updates(model, updates), state, value

tokens = jax.random.randint(jax.random.PRNGKey(1), (shape["batch"], shape["length"]), 0, shape["vocab"])
count = sum(x.size for x in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array)))
print(json.dumps({"jax": jax.__version__, "parameters": count}), flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    for _ in range(shape["steps"]):
        model, state, value = step(tokens, model, state)
    value.block_until_ready()
    print(json.dumps([time.perf_counter() - start, float(value)]), flush=True)
"""


def config_of(shape: dict[str, int]) -> ConfigDict:
    """Returns the config of the model that the other program trains."""
    config = default.get_config()
    config.batch_size, config.sequence_length, config.optimizer.warmup_steps = shape["batch"], shape["length"], 0
    config.model.update(
        {
            "compute_dtype": "float32",
            "vocab_size": shape["vocab"],
            "embed_dim": shape["embed"],
            "num_layers": shape["layers"],
            "num_heads": shape["heads"],
            "num_kv_heads": shape["heads"],
            "mlp_dim": shape["mlp"],
            "qk_norm": False,
        }
    )
    return config


def main() -> None:
    """Prints the medians of both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levanter_python", required=True, help="a Python with Levanter")
    parser.add_argument("--rounds", type=int, default=7)
    sizes = {"batch": 8, "length": 256, "embed": 256, "mlp": 704, "layers": 8, "heads": 4, "vocab": 8192, "steps": 4}
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    arguments = parser.parse_args()
    shape = {name: getattr(arguments, name) for name in sizes}
    command = [arguments.levanter_python, "-c", PEER, json.dumps(shape)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
        assert peer.stdin is not None and peer.stdout is not None
        about = peer.stdout.readline()
        if not about:
            sys.exit(
                f"--levanter_python={arguments.levanter_python} cannot build Levanter's model; see the error above"
            )
        theirs = json.loads(about)

        def peer_round() -> list[float]:
            peer.stdin.write("\n")
            peer.stdin.flush()
            return json.loads(peer.stdout.readline())

        own = own_steps(config_of(shape), shape["steps"])
        ours = next(own)
        next(own), peer_round()
        rounds = [(next(own), peer_round()) for _ in range(arguments.rounds)]
        peer.stdin.close()
    tokens = shape["batch"] * shape["length"] * shape["steps"]
    speeds = [tokens / statistics.median(answer[0] for answer in side) for side in zip(*rounds, strict=True)]
    ratios = sorted(theirs[0] / ours[0] for ours, theirs in rounds)
    for name, about, speed, (*_, loss) in zip(
        ("rootstock", "levanter"), (ours, theirs), speeds, rounds[-1], strict=True
    ):
        print(f"{name}: {speed:,.0f} tokens/s, {about['parameters']:,} parameters, jax {about['jax']}, loss {loss:.3f}")
    print(f"ratio {speeds[0] / speeds[1]:.2f} (rounds {ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
