"""Continues prompts with a foundation model, or answers them with one that was fine-tuned to write.

rootstock generate --checkpoint=runs/tiny --prompt='Once upon a time' --max_new_tokens=64 --temperature=0.8
rootstock generate --checkpoint=runs/german --prompts=sentences.txt --output=german.jsonl --temperature=0
"""

import json
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags

from configs.errors import UserError
from data.sources import read_rows
from model.sampling import Sampling
from train.writer import Writer, open_writer

REQUIRED = ("checkpoint",)


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("checkpoint", None, "Directory of a run whose head writes.", flag_values=values)
    flags.DEFINE_string("prompt", "", "Text to continue, or a message to answer.", flag_values=values)
    flags.DEFINE_string("prompts", "", "File: a prompt a line, or JSONL with a column 'prompt'.", flag_values=values)
    flags.DEFINE_string("output", "", "With --prompts: JSONL to write; empty: print it.", flag_values=values)
    define_sampling_flags(values, temperature=0.8)


def define_sampling_flags(values: flags.FlagValues, temperature: float) -> None:
    """Adds the flags of how a text is written."""
    flags.DEFINE_integer("max_new_tokens", 64, "Tokens to add at most.", lower_bound=1, flag_values=values)
    flags.DEFINE_float("temperature", temperature, "0 takes the most likely token.", flag_values=values)
    flags.DEFINE_integer("top_k", 0, "Draw among the k most likely; 0: all.", flag_values=values)
    flags.DEFINE_float("top_p", 1.0, "Draw among the fewest that have this probability.", flag_values=values)
    flags.DEFINE_float("min_p", 0.0, "Draw among those this part as likely as the first.", flag_values=values)
    flags.DEFINE_float("repetition_penalty", 1.0, "Above 1: less of what was said.", flag_values=values)
    flags.DEFINE_multi_string("stop", [], "Text that ends a continuation; may be given again.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "Of the samples.", flag_values=values)
    text = (
        "Keys and values that are kept: as they are computed (auto), in half, or in a quarter of it; empty: the run's."
    )
    flags.DEFINE_enum("cache_dtype", "", ["", "auto", "bfloat16", "int8"], text, flag_values=values)


def sampling_of(values: flags.FlagValues) -> Sampling:
    """Returns what the flags say.

    Raises:
        UserError: a value out of range.
    """
    return Sampling(values.temperature, values.top_k, values.top_p, values.min_p, values.repetition_penalty)


def run(values: flags.FlagValues) -> None:
    """Runs the command; prints the prompt and its continuation, or the answer alone, or a JSON object a prompt."""
    if bool(values.prompt) == bool(values.prompts):
        raise UserError("--prompt is missing; legal: --prompt=TEXT or --prompts=FILE, one of them")
    sampling = sampling_of(values)
    prompts = [values.prompt] if values.prompt else _read(values.prompts)
    writer = open_writer(Path(values.checkpoint), cache_dtype=values.cache_dtype)
    with jax.set_mesh(writer.mesh):
        texts = continuations(writer, prompts, values.max_new_tokens, sampling, values.seed, values.stop)
    if values.prompt:
        print(texts[0] if writer.template else values.prompt + texts[0])
        return
    pairs = zip(prompts, texts, strict=True)
    lines = [json.dumps({"prompt": prompt, "completion": text}, ensure_ascii=False) + "\n" for prompt, text in pairs]
    if values.output:
        Path(values.output).write_text("".join(lines), encoding="utf-8")
    else:
        print("".join(lines), end="")


def _read(path: str) -> list[str]:
    """Returns the prompts of a file.

    Raises:
        UserError: there is none, or a row without a "prompt".
    """
    if path.endswith(".txt"):
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--prompts={path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
        prompts = [line for line in lines if line.strip()]
    else:
        prompts = []
        for number, row in enumerate(read_rows(path), 1):
            if not isinstance(row.get("prompt"), str) or not row["prompt"]:
                raise UserError(f"{path}: row {number}: no 'prompt'; columns found: {', '.join(map(str, row))}")
            prompts.append(str(row["prompt"]))
    if not prompts:
        raise UserError(f"--prompts={path} holds no prompt; legal: one a line")
    return prompts


def continuations(
    writer: Writer, prompts: list[str], max_new_tokens: int, sampling: Sampling, seed: int, stop: Sequence[str] = ()
) -> list[str]:
    """Returns the continuation of each prompt; the answer, of a model that was fine-tuned to write one.

    Raises:
        UserError: a prompt that does not fit the context.
    """
    encoded = [writer.encode([{"role": "user", "content": prompt}], max_new_tokens) for prompt in prompts]
    return writer.write(encoded, max_new_tokens, sampling, seed, stop)


if __name__ == "__main__":
    import sys

    from train.cli import main

    main(["generate", *sys.argv[1:]])
