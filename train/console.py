"""Console output: messages and progress bars on stderr, tables on stdout."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from data.sources import unread_files

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SHOWN_FILES = 10
_WIDTH = 200  # columns; the widest table fits


class _Console(Console):
    """A console whose reader may go away."""

    def on_broken_pipe(self) -> None:
        """Raises BrokenPipeError; rich would exit without a line."""
        raise BrokenPipeError


def _plain_console(stderr: bool) -> Console:
    """Returns a console that prints text as it is: `[brackets]` and `:names:` in a path are not markup or emoji."""
    return _Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)


# stdout is for results only (tables, JSON, text), so that commands can be piped.
console = _plain_console(stderr=True)


def say(text: str) -> None:
    """Prints a line to stderr verbatim."""
    console.print(text)


def warn(text: str) -> None:
    """Prints a warning to stderr."""
    console.print(f"warning: {text}", style="yellow")


def results_console() -> Console:
    """Returns a console for tables and text on stdout; lines wider than the terminal wrap instead of being cut."""
    out = _plain_console(stderr=False)
    out.width = max(out.width, _WIDTH)
    return out


def visible(text: str) -> str:
    """Returns a text on one line without control characters; line feeds and tabs become visible marks."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text.replace("\n", "⏎").replace("\t", "⇥"))


def say_skipped(title: str, skipped: Mapping[str, int]) -> None:
    """Warns how many invalid rows of each kind were skipped."""
    if skipped:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(skipped.items()))
        warn(f"{title}: {sum(skipped.values()):,} bad rows are skipped: {kinds}")


def say_unknown(title: str, manifest: Mapping[str, Any]) -> None:
    """Warns how many tokens of a store stand for text that its tokenizer cannot represent."""
    if unknown := manifest.get("unknown_tokens", 0):
        warn(f"{title}: {unknown:,} tokens are of characters that the tokenizer lacks; their text is lost")


def say_unread(title: str, pattern: str) -> None:
    """Warns which files in the directories of an input are not read because their suffix is unknown."""
    if unread := unread_files(pattern):
        names = ", ".join(path.name for path in unread[:_SHOWN_FILES])
        more = f" and {len(unread) - _SHOWN_FILES:,} more" if len(unread) > _SHOWN_FILES else ""
        warn(f"{title}: files with an unknown suffix are not read: {names}{more}")


class Bar(Protocol):
    """Moves a progress bar to `done` and sets the text beside it."""

    def __call__(self, done: int, text: str = "") -> None:
        """Moves the bar."""


@contextlib.contextmanager
def progress(title: str, total: int | None) -> Iterator[Bar]:
    """Yields a function that moves a bar with an ETA; without a terminal, prints a line per tenth instead."""
    if not console.is_terminal:
        yield _plain(title, total)
        return
    columns = (
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, text="")
        yield lambda done, text="": bar.update(task, completed=done, text=text)


@contextlib.contextmanager
def step_progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """Yields progress(stage, done, total), which opens a new bar for each new stage."""
    with contextlib.ExitStack() as stack:
        bars: dict[str, Bar] = {}

        def move(stage: str, done: int, total: int | None) -> None:
            if stage not in bars:
                stack.close()
                bars[stage] = stack.enter_context(progress(stage, total))
            bars[stage](done)

        yield move


def _plain(title: str, total: int | None) -> Bar:
    tenth = -1

    def move(done: int, text: str = "") -> None:
        nonlocal tenth
        reached = done * 10 // total if total else 0
        if reached > tenth:
            tenth = reached
            say(f"{title} {done}{f'/{total}' if total else ''} {text}".rstrip())

    return move
