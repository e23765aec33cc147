"""Chats with a model in a terminal, in its chat template; the answer is streamed.

/reset clears the conversation, /exit (or Ctrl-D) quits.

  rootstock chat --run=runs/assistant
"""

import contextlib
import sys
from collections.abc import Iterator

from absl import flags

from configs.errors import UserError
from data.storage.paths import at
from data.templates import NAMES
from train.commands.sampling_flags import define_sampling_flags, options_of
from train.console import say

REQUIRED = ("run",)
RENAMED_FLAGS = {"checkpoint": "run"}


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("run", None, "Directory of a run with a language-model head.", flag_values=values)
    text = "Chat template; empty: that of the run, else the tokenizer's, else plain_chat."
    flags.DEFINE_enum("template", "", ["", *NAMES], text, flag_values=values)
    flags.DEFINE_string("system", "", "System message.", flag_values=values)
    define_sampling_flags(values, temperature=0.7)


def run(values: flags.FlagValues) -> None:
    """Runs the command: reads one message per line from stdin, writes the answers to stdout."""
    import jax

    from train.generation.talk import talk
    from train.run.language_model import chat_template_of, open_language_model
    from train.run.record import open_run

    directory = at(values.run)
    opened = open_run(directory)
    options = options_of(values, opened.record.generation, opened.model.context_length)
    template = values.template or chat_template_of(opened) or "plain_chat"
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
