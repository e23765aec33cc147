"""Chats with a model in a terminal, in its chat template; the answer is streamed.

/reset clears the conversation, /exit (or Ctrl-D) quits.

  rootstock chat --run=runs/assistant
"""

import contextlib
import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax
from absl import flags

from data.templates import NAMES, render
from model.sampling import Sampling
from train.commands.sampling_flags import define_sampling_flags, sampling_of
from train.console import say
from train.generation.decode import before
from train.generation.language_model import Writer
from train.run.language_model import open_writer
from train.run.record import open_run

REQUIRED = ("run",)
RENAMED_FLAGS = {"checkpoint": "run"}


@dataclasses.dataclass(frozen=True)
class Answering:
    """How answers are generated."""

    max_new_tokens: int
    sampling: Sampling
    seed: int
    stop: tuple[str, ...]


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("run", None, "Directory of a run with a language-model head.", flag_values=values)
    text = "Chat template; empty: that of the run, else the tokenizer's, else plain."
    flags.DEFINE_enum("template", "", ["", *NAMES], text, flag_values=values)
    flags.DEFINE_string("system", "", "System message.", flag_values=values)
    define_sampling_flags(values, temperature=0.7)


def run(values: flags.FlagValues) -> None:
    """Runs the command: reads one message per line from stdin, writes the answers to stdout."""
    directory = Path(values.run)
    answering = Answering(values.max_new_tokens, sampling_of(values), values.seed, tuple(values.stop))
    writer = open_writer(directory, values.template or _template(directory), cache_dtype=values.cache_dtype)
    with jax.set_mesh(writer.mesh):
        say(f"chat: template {writer.template}; /reset clears the conversation, /exit quits")
        for part in talk(writer, _lines(), values.system, answering):
            print(part, end="", flush=True)


def _template(directory: Path) -> str:
    """Returns the template for a run that does not define one."""
    run = open_run(directory)
    if run.record.stage == "finetune":
        return ""
    return "tokenizer" if run.tokenizer().chat_template else "plain"


def _lines() -> Iterator[str]:
    with contextlib.suppress(EOFError):
        while True:
            yield input("> " if sys.stdin.isatty() else "")


def talk(writer: Writer, lines: Iterable[str], system: str, answering: Answering) -> Iterator[str]:
    """Yields the answers to `lines` in parts, as they are generated, with a line feed after each answer.

    The oldest turns are dropped when the conversation exceeds the model's context.
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
        room = writer.model.context_length - answering.max_new_tokens
        tokens = render(messages, writer.template, writer.tokenizer, max(room, 1), prompt=True).tokens
        answer = ""
        for part in _up_to(
            writer.stream(tokens, answering.max_new_tokens, answering.sampling, answering.seed + number), answering.stop
        ):
            answer += part
            yield part
        yield "\n"
        messages.append({"role": "assistant", "content": answer})


def _up_to(parts: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """Yields a text in parts up to the earliest of `stop`; holds back what may be the beginning of a stop text."""
    text, shown = "", 0
    longest = max(map(len, stop), default=1)
    for part in parts:
        text += part
        kept, ended = before(text, stop)
        sure = len(kept) if ended else max(len(text) - longest + 1, shown)
        yield text[shown:sure]
        shown = sure
        if ended:
            return
    yield text[shown:]
