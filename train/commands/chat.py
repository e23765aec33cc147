"""Talks with a model on a terminal, in its own template; what it writes appears as it is written.

/reset forgets what was said, /exit (or Ctrl-D) ends.

  rootstock chat --checkpoint=runs/assistant
"""

import contextlib
import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax
from absl import flags

from data.templates import NAMES, render
from data.tokenizer import load_tokenizer
from train.commands.sampling_flags import define_sampling_flags, sampling_of
from train.console import say
from train.generation.decode import stream_text, truncate_at_stop
from train.generation.language_model import GenerationOptions, LanguageModel
from train.run.language_model import open_language_model
from train.run.record import read_record

REQUIRED = ("checkpoint",)


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("checkpoint", None, "Directory of a run whose head writes.", flag_values=values)
    text = "How turns become tokens; empty: the run's own, else the tokenizer's, else plain."
    flags.DEFINE_enum("template", "", ["", *NAMES], text, flag_values=values)
    flags.DEFINE_string("system", "", "System message.", flag_values=values)
    define_sampling_flags(values, temperature=0.7)


def run(values: flags.FlagValues) -> None:
    """Runs the command: reads a message a line from stdin, writes the answers to stdout."""
    directory = Path(values.checkpoint)
    options = GenerationOptions(values.max_new_tokens, sampling_of(values), values.seed, tuple(values.stop))
    template = values.template or _template(directory)
    language_model = open_language_model(directory, template, cache_dtype=values.cache_dtype)
    with jax.set_mesh(language_model.mesh):
        say(f"chat: template {language_model.template}; /reset forgets, /exit ends")
        for part in talk(language_model, _lines(), values.system, options):
            print(part, end="", flush=True)


def _template(directory: Path) -> str:
    """Returns the template of a run that has none of its own."""
    if read_record(directory).stage == "finetune":
        return ""
    return "tokenizer" if load_tokenizer(directory / "tokenizer").chat_template else "plain"


def _lines() -> Iterator[str]:
    with contextlib.suppress(EOFError):
        while True:
            yield input("> " if sys.stdin.isatty() else "")


def talk(language_model: LanguageModel, lines: Iterable[str], system: str, options: GenerationOptions) -> Iterator[str]:
    """Yields the answers to what is said, in parts as they are written, each with a line feed after it.

    A conversation that has grown beyond the model's context loses its oldest turns.
    """
    start = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    for number, line in enumerate(lines):
        if line.strip() == "/exit":
            return
        if line.strip() in ("", "/reset"):
            messages = list(start) if line.strip() else messages
            continue
        messages.append({"role": "user", "content": line})
        max_prompt_len = max(language_model.model.context_length - options.max_new_tokens, 1)
        tokens = render(messages, language_model.template, language_model.tokenizer, max_prompt_len, prompt=True).tokens
        answer = ""
        turn = dataclasses.replace(options, seed=options.seed + number)
        for part in _up_to(stream_text(language_model, tokens, turn), options.stop):
            answer += part
            yield part
        yield "\n"
        messages.append({"role": "assistant", "content": answer})


def _up_to(parts: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """Yields a text in parts up to the earliest of `stop`; what may be the beginning of one waits for more."""
    text, shown = "", 0
    longest = max(map(len, stop), default=1)
    for part in parts:
        text += part
        kept, ended = truncate_at_stop(text, stop)
        sure = len(kept) if ended else max(len(text) - longest + 1, shown)
        yield text[shown:sure]
        shown = sure
        if ended:
            return
    yield text[shown:]
