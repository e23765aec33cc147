"""Chats with a model in a terminal, in its chat template; the answer is streamed.

/reset clears the conversation, /exit (or Ctrl-D) quits.

  rootstock chat --run=runs/assistant
"""

import contextlib
import dataclasses
import sys
from collections.abc import Iterable, Iterator

import jax
from absl import flags

from configs.errors import UserError
from data.storage.paths import at
from data.templates import NAMES, render
from train.commands.sampling_flags import define_sampling_flags, options_of
from train.console import say
from train.generation.decode import stream_text
from train.generation.language_model import GenerationOptions, LanguageModel
from train.run.language_model import chat_template_of, open_language_model
from train.run.record import open_run

REQUIRED = ("run",)
RENAMED_FLAGS = {"checkpoint": "run"}


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("run", None, "Directory of a run with a language-model head.", flag_values=values)
    text = "Chat template; empty: that of the run, else the tokenizer's, else plain."
    flags.DEFINE_enum("template", "", ["", *NAMES], text, flag_values=values)
    flags.DEFINE_string("system", "", "System message.", flag_values=values)
    define_sampling_flags(values, temperature=0.7)


def run(values: flags.FlagValues) -> None:
    """Runs the command: reads one message per line from stdin, writes the answers to stdout."""
    directory = at(values.run)
    opened = open_run(directory)
    options = options_of(values, opened.record.generation)
    template = values.template or chat_template_of(opened) or "plain"
    language_model = open_language_model(directory, template, cache_dtype=values.cache_dtype)
    with jax.set_mesh(language_model.mesh):
        say(f"chat: template {language_model.template}; /reset clears the conversation, /exit quits")
        for part in talk(language_model, _lines(), values.system, options):
            print(part, end="", flush=True)


def _lines() -> Iterator[str]:
    with contextlib.suppress(EOFError):
        while True:
            try:
                line = input("> " if sys.stdin.isatty() else "")
            except UnicodeDecodeError as error:
                raise UserError(f"stdin is not valid UTF-8: {error}; expected UTF-8 text") from None
            yield line


def talk(language_model: LanguageModel, lines: Iterable[str], system: str, options: GenerationOptions) -> Iterator[str]:
    """Yields the answers to `lines` in parts, as they are generated, with a line feed after each answer.

    The oldest turns are dropped when the conversation exceeds the model's context.
    """
    start = [{"role": "system", "content": language_model.cleaned(system)}] if system else []
    messages = list(start)
    for number, line in enumerate(lines):
        if line.strip() == "/exit":
            return
        if line.strip() in ("", "/reset"):
            messages = list(start) if line.strip() else messages
            continue
        messages.append({"role": "user", "content": language_model.cleaned(line)})
        max_prompt_len = max(language_model.model.context_length - options.max_new_tokens, 1)
        tokens = render(messages, language_model.template, language_model.tokenizer, max_prompt_len, prompt=True).tokens
        answer = ""
        turn = dataclasses.replace(options, seed=options.seed + number)
        for part in stream_text(language_model, tokens, turn):
            # The space before an answer can be a part of its first token.
            part = part if answer else part.lstrip(" ")
            answer += part
            yield part
        yield "\n"
        messages.append({"role": "assistant", "content": answer})
