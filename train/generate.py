"""Continues a prompt with a foundation model, or answers it with one that was fine-tuned to write.

rootstock generate --checkpoint=runs/tiny --prompt='Once upon a time' --max_new_tokens=64 --temperature=0.8
rootstock generate --checkpoint=runs/german --prompt='Good morning.' --temperature=0
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from configs.errors import UserError
from data.templates import end_of_turn, render
from model.sampling import generate
from train import run as runs
from train.mesh import single_device_mesh
from train.tasks.contract import load

REQUIRED = ("checkpoint", "prompt")
# Prompts are padded to a multiple, so that a session of many prompts compiles few shapes.
_PROMPT_MULTIPLE = 32


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("checkpoint", None, "Directory of a run whose head writes.", flag_values=values)
    flags.DEFINE_string("prompt", None, "Text to continue, or a message to answer.", flag_values=values)
    flags.DEFINE_integer("max_new_tokens", 64, "Tokens to add at most.", lower_bound=1, flag_values=values)
    flags.DEFINE_float("temperature", 0.8, "0 takes the most likely token.", lower_bound=0.0, flag_values=values)
    flags.DEFINE_integer("top_k", 0, "Sample among the k most likely; 0: all.", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("seed", 0, "Of the samples.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command; prints the prompt and its continuation, or the answer alone."""
    sampling = (values.max_new_tokens, values.temperature, values.top_k, values.seed)
    answers = runs.read_record(Path(values.checkpoint)).stage == "finetune"
    for text in continuations(Path(values.checkpoint), [values.prompt], *sampling):
        print(text if answers else values.prompt + text)


def continuations(
    directory: Path, prompts: list[str], max_new_tokens: int, temperature: float, top_k: int, seed: int
) -> list[str]:
    """Returns the continuation of each prompt; the answer, of a model that was fine-tuned to write one.

    Raises:
        UserError: not a language model's run, or a prompt that does not fit the context.
    """
    record = runs.read_record(directory)
    if record.stage == "finetune" and not load(record.task["name"]).language:
        raise UserError(
            f"--checkpoint={directory} is a {record.task['name']} model; "
            "legal: a pre-training run, or one of generation, chat or preference"
        )
    tokenizer = runs.load_tokenizer(directory / "tokenizer")
    eos_id = tokenizer.eos_id
    if record.stage == "pretrain":
        encoded = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in prompts]
    else:
        template = record.task["template"]
        eos_id = end_of_turn(template, tokenizer)
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        encoded = [render(chat, template, tokenizer, prompt=True).tokens for chat in chats]
    longest = max(map(len, encoded))
    room = record.model.context_length - max_new_tokens
    if record.model.position == "learned" and longest > room:
        raise UserError(
            f"--prompt has {longest} tokens; legal: at most {max(room, 0)}, the model's context of "
            f"{record.model.context_length} less --max_new_tokens={max_new_tokens}"
        )
    width = -(-longest // _PROMPT_MULTIPLE) * _PROMPT_MULTIPLE
    padded = np.full((len(prompts), width), tokenizer.pad_id, np.int32)
    for row, tokens in zip(padded, encoded, strict=True):
        row[width - len(tokens) :] = tokens
    mesh = single_device_mesh()
    params = runs.load_plain(directory, record.model, mesh, ("backbone", "head"))
    tokens_BM = generate(
        record.model,
        params,
        padded,
        np.array([len(tokens) for tokens in encoded], np.int32),
        jax.random.key(seed),
        jnp.float32(temperature),
        max_new_tokens=max_new_tokens,
        top_k=top_k,
        eos_id=eos_id,
    )
    return [tokenizer.decode([int(t) for t in row if t != eos_id]) for row in np.asarray(tokens_BM)]


if __name__ == "__main__":
    import sys

    from train.cli import main

    main(["generate", *sys.argv[1:]])
