"""`rootstock COMMAND [--flag=value ...]`: parses flags, runs the command, and reports a `UserError` in one line."""

import atexit
import contextlib
import importlib
import io
import logging
import math
import os
import select
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import config_flags

from configs import reference
from configs.errors import UserError, did_you_mean, end
from data.mixture import MixtureSource
from data.storage.errors import bucket_errors, file_errors
from data.storage.paths import at, check_url, is_url

# Command NAME is the module train/commands/NAME.py, with "_" for "-".
COMMANDS = {
    "prepare": "tokenize text into a token store",
    "store": "list a token store and print its documents",
    "pretrain": "pre-train a language model on a token store or text",
    "finetune": "fine-tune on labeled rows and compare with baselines",
    "learning-curve": "fine-tune with more and more labels and say whether more of them help",
    "import-hf": "import a Hugging Face checkpoint, a GGUF file or a PEFT adapter as a run",
    "export-hf": "export a run as a Hugging Face checkpoint or a PEFT adapter",
    "checkpoint": "list, verify, compare and prune the checkpoints of a run",
    "profile": "print where the time of a run and of its profiled steps went",
    "replay": "re-run one training step bit for bit and rank its documents by loss",
    "merge": "merge a LoRA adapter into its base model",
    "evaluate": "evaluate a model on text, on language-model tasks or on labeled rows",
    "predict": "predict rows without labels with a fine-tuned model",
    "generate": "generate text from prompts",
    "chat": "chat with a model",
    "serve": "serve a model over HTTP: OpenAI's endpoints, predictions of task heads, and a page",
    "config": "print a resolved config and what differs from the defaults",
    "show-batch": "print a training batch: segments, masks and which tokens are in the loss",
    "certify": "check that a config gives the same losses on every mesh",
    "explain-sharding": "print how each parameter of a config is sharded, and by which rule",
    "plan": "estimate memory, time and cost on TPUs or GPUs you do not have",
    "scaling": "fit a scaling law to small runs and print the best model for a compute budget",
    "demo": "pre-train, generate and fine-tune on this machine's Python documentation",
}
# Flags and config fields that hold a path, a glob, several with commas, or a name that is no path (hf:NAME, bpe:N).
PATH_FLAGS = frozenset(
    {"run", "other", "workdir", "init_from", "input", "output", "data", "shots_data", "text", "prompts", "task_files",
     "points", "source", "store", "tokenizer", "base", "compilation_cache", "avoid", "contamination", "score_with"}
)  # fmt: skip
PATH_FIELDS = ("data.path", "data.cache", "task.test_path", "task.name", "tokenizer", "checkpoint.local_path")
_WITHOUT_JAX = frozenset({"prepare", "store", "config"})
_NO_VARIANTS = "get_config() takes 0 positional arguments"  # of Python, for --config=FILE:VARIANT
_ROOT = Path(__file__).resolve().parent.parent
# Copies of config files from buckets; closed when this process ends.
_copies = contextlib.ExitStack()
atexit.register(_copies.close)


def main(argv: list[str] | None = None) -> None:
    """Runs `rootstock` and exits.

    0: success; 1: invalid input; 2: invalid command line; 75: SIGTERM, saved: run it again; 130: Ctrl-C; 141: stdout
    was closed.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _escape_what_a_terminal_cannot_show()
    _check_utf8(arguments)
    try:
        try:
            _run(arguments)
        finally:
            # What is left in the buffer would be written after the last chance to report an error.
            sys.stdout.flush()
    except BrokenPipeError:
        # The pipe of a worker process is something else.
        if not _stdout_is_closed():
            raise
        end("stdout was closed before everything was printed", 141)


def _run(arguments: list[str]) -> None:
    """Runs `rootstock ARGUMENTS`."""
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(_overview())
        sys.exit(0 if arguments else 2)
    name = arguments[0]
    if name not in COMMANDS:
        end(f"unknown command {name!r}{did_you_mean(name, COMMANDS)}; commands: {', '.join(COMMANDS)}", 2)
    command = importlib.import_module(f"train.commands.{name.replace('-', '_')}")
    values = parse(name, command, arguments[1:])
    # Grain's worker processes read absl's global flags.
    flags.FLAGS(["rootstock"])
    logging.getLogger("absl").setLevel(logging.ERROR)
    if callable(signal.getsignal(signal.SIGINT)):
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if name not in _WITHOUT_JAX:
            from train.compilation_cache import use

            use(values.compilation_cache)
        if getattr(command, "MULTI_PROCESS", False):
            from train.distributed.processes import run_together

            run_together(lambda: _run_command(command, values), preemptible=getattr(command, "PREEMPTIBLE", False))
        else:
            _run_command(command, values)
    except UserError as error:
        end(str(error), getattr(error, "exit_code", 1))
    except KeyboardInterrupt:
        end("interrupted; run the same command again", 130)


def _run_command(command: ModuleType, values: flags.FlagValues) -> None:
    with file_errors(), bucket_errors():
        command.run(values)


def define_flags(name: str, command: ModuleType) -> flags.FlagValues:
    """Returns the flags of a command, its own and those of every command that uses JAX."""
    values = flags.FlagValues()
    command.define_flags(values)
    if name not in _WITHOUT_JAX:
        from train.compilation_cache import define_flag

        define_flag(values)
    return values


def parse(name: str, command: ModuleType, arguments: list[str]) -> flags.FlagValues:
    """Returns the parsed flags of a command; prints help and exits for --help, or exits with one line of error."""
    values = define_flags(name, command)
    arguments = _with_positionals(command, arguments)
    has_config = "config" in (*getattr(command, "REQUIRED", ()), *getattr(command, "OPTIONAL", ()))
    if has_config:
        arguments = [_locate_config(argument) for argument in arguments]
        _define_config(values, arguments)
    if "--help" in arguments or "-h" in arguments:
        print(_help(name, command, values))
        sys.exit(0)
    try:
        if has_config:
            _check_fields(arguments)
        rest = values(["rootstock", *arguments])[1:]
        if rest:
            raise UserError(f"unexpected argument {rest[0]!r}; flags are written --name=value")
        _check_numbers(values)
        _expand_paths(values)
        _check_needs(command, values)
        for flag in getattr(command, "REQUIRED", ()):
            if not values[flag].value:
                raise UserError(f"--{flag} is missing; see rootstock {name} --help")
    # A config file is the user's Python and can raise anything; report it in one line.
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        if _NO_VARIANTS in text:
            # absl's text is "flag --config=FILE:VARIANT: Error ...".
            flag = text.partition(": Error")[0].removeprefix("flag ")
            text = f"{flag}: this config has no variants; expected nothing after its name"
        end(text, 2)
    return values


def expand(paths: str) -> str:
    """Returns a path, or paths separated by commas, with `~` and `~USER` at their beginning expanded."""
    return ",".join(os.path.expanduser(path) for path in paths.split(","))


def _expand_paths(values: flags.FlagValues) -> None:
    """Expands `~` in every flag and config field that holds a path: shells do not expand it after `--name=`.

    Raises:
        UserError: a URL that is not of a bucket; a path made of it would be a local directory.
    """
    for name in sorted(PATH_FLAGS & set(values)):
        given = values[name].value
        if isinstance(given, list):
            # Each is PATH or NAME=PATH, and a PATH may contain "=".
            parts = [part.rpartition("=") for part in given]
            values[name].value = [f"{expand(before)}{equals}{expand(path)}" for before, equals, path in parts]
            for _, _, path in parts:
                _check_urls(f"--{name}=", path)
        elif given:
            values[name].value = expand(str(given))
            _check_urls(f"--{name}=", str(values[name].value))
    config = values["config"].value if "config" in values else None
    if config is None:
        return
    for name in PATH_FIELDS:
        section, _, field = name.rpartition(".")
        owner = config[section] if section else config
        # A wrong type is reported with the other errors of the config.
        if isinstance(owner[field], str):
            owner[field] = expand(owner[field])
            _check_urls(f"config.{name}=", owner[field])
    config.data.mixture = _expand_mixture(config.data.mixture)


def _expand_mixture(mixture: Any) -> Any:  # noqa: ANN401 - the user's, checked with the other errors of the config
    """Returns `config.data.mixture` with `~` in its paths expanded; see `_expand_paths`."""

    def expanded(source: Any) -> Any:  # noqa: ANN401
        if not isinstance(source, tuple) or len(source) != len(MixtureSource._fields) or not isinstance(source[1], str):
            return source
        _check_urls(f"config.data.mixture: source {source[0]!r}: ", source[1])
        return (source[0], expand(source[1]), *source[2:])

    return tuple(map(expanded, mixture)) if isinstance(mixture, tuple) else mixture


def _check_urls(option: str, paths: str) -> None:
    """Raises UserError, which begins with `option`, for a URL that is not of a bucket."""
    for path in paths.split(","):
        try:
            check_url(path.strip())
        except UserError as error:
            raise UserError(f"{option}{error}") from None


def _check_numbers(values: flags.FlagValues) -> None:
    """Raises UserError for infinity, NaN or a number of more than 64 bits; the fields of a config have own bounds."""
    for name in (name for name in values if not name.startswith("config")):
        found = values[name].value
        if isinstance(found, float) and not math.isfinite(found):
            raise UserError(f"--{name}={found}; expected a finite number")
        if isinstance(found, int) and not -(1 << 63) <= found < 1 << 63:
            raise UserError(f"--{name}={found}; expected a whole number of at most 64 bits")


def _check_needs(command: ModuleType, values: flags.FlagValues) -> None:
    """Raises UserError for a flag that has no effect without another one (the command's `FLAG_NEEDS`)."""
    for name, needed in getattr(command, "FLAG_NEEDS", {}).items():
        other, _, value = needed.partition("=")
        found = values[other].value
        if values[name].value != values[name].default and not (found == value if value else found):
            raise UserError(f"--{name} has no effect without --{needed}")


def _check_utf8(arguments: list[str]) -> None:
    """Exits with one line of error for an argument that is not UTF-8, which nothing could print, encode or store."""
    for argument in arguments:
        if any(0xD800 <= ord(character) < 0xE000 for character in argument):
            shown = argument.encode("utf-8", "backslashreplace").decode()
            end(f"{shown}: is not valid UTF-8; expected UTF-8 text", 2)


def _escape_what_a_terminal_cannot_show() -> None:
    """Makes stdout and stderr print an escape for a character that the terminal's encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        # Tests replace the streams.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _stdout_is_closed() -> bool:
    """Returns whether stdout is a pipe that nobody reads any more."""
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):
        return False
    poll = select.poll()
    poll.register(number, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _with_positionals(command: ModuleType, arguments: list[str]) -> list[str]:
    """Returns the arguments with positional ones as flags; exits with one line of error for a flag's former name."""
    renamed = getattr(command, "RENAMED_FLAGS", {})
    for argument in arguments:
        flag = argument.lstrip("-").partition("=")[0]
        if argument.startswith("-") and flag in renamed:
            end(f"--{flag} was renamed to --{renamed[flag]}", 2)
    flags_of = dict(enumerate(getattr(command, "POSITIONAL", ())))
    return [
        f"--{flags_of[place]}={argument}" if place in flags_of and not argument.startswith("-") else argument
        for place, argument in enumerate(arguments)
    ]


def _define_config(values: flags.FlagValues, arguments: list[str]) -> None:
    text = "Config file; --config.FIELD=VALUE sets a field (listed below)."
    argv = ["rootstock", *arguments]
    config_flags.DEFINE_config_file("config", None, text, flag_values=values, sys_argv=argv)


def _check_fields(arguments: list[str]) -> None:
    """Raises UserError for an unknown `--config.FIELD`; absl's own error does not name the field."""
    file = [argument for argument in arguments if argument.startswith("--config=")]
    values = flags.FlagValues()
    _define_config(values, file)
    values(["rootstock", *file])
    known = _field_names(values.config.to_dict()) if file else []
    for argument in arguments:
        field = argument.removeprefix("--").partition("=")[0]
        if file and field.startswith("config.") and field.partition("[")[0] not in known:
            raise UserError(f"{field} is unknown{did_you_mean(field, known)}")


def _field_names(tree: dict[str, Any], prefix: str = "config") -> list[str]:
    nested = [_field_names(v, f"{prefix}.{k}") if isinstance(v, dict) else [f"{prefix}.{k}"] for k, v in tree.items()]
    return [name for names in nested for name in names]


def _locate_config(argument: str) -> str:
    """Returns `--config=configs/...` with an existing path: in the working directory, or else in the installation."""
    flag, _, path = argument.partition("=")
    if flag not in ("--config", "-config") or not path:
        return argument
    path = os.path.expanduser(path)
    if is_url(path):
        return f"{flag}={_download(path)}"
    file = path.partition(":")[0]
    if not os.path.isfile(file) and os.path.isfile(_ROOT / file):
        return f"{flag}={_ROOT / path}"
    if not os.path.isfile(file):
        shipped = sorted(str(p.relative_to(_ROOT)) for p in (_ROOT / "configs").glob("*/*.py") if p.stem != "__init__")
        end(f"--config={file}: no such file{did_you_mean(file, shipped)}; shipped: {', '.join(shipped)}", 2)
    return f"{flag}={path}"


def _download(url: str) -> str:
    """Returns the path of a copy of a config file in a bucket, which exists until this process ends."""
    import tempfile

    from data.storage.files import copy_file

    try:
        with bucket_errors():
            source = at(url)
            copy = Path(_copies.enter_context(tempfile.TemporaryDirectory())) / source.parent.name / source.name
            copy_file(source, copy)
    except UserError as error:
        end(f"--config={url}: {error}", 2)
    return str(copy)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(["usage: rootstock COMMAND [--flag=value ...]", "", *lines, "", "rootstock COMMAND --help"])


def _help(name: str, command: ModuleType, values: flags.FlagValues) -> str:
    required = getattr(command, "REQUIRED", ())
    lines = []
    for flag in sorted(
        (values[flag] for flag in values if "." not in flag), key=lambda flag: flag.name not in required
    ):
        note = "required" if flag.name in required else f"default {flag.default!r}" if flag.default else ""
        lines.append(f"  --{flag.name}  {flag.help}{f' ({note})' if note else ''}")
    lines += _config_help(getattr(command, "CONFIG_FIELDS", ()))
    return "\n".join([f"rootstock {name}: {(command.__doc__ or '').strip()}", "", "flags:", *lines])


def _config_help(names: Sequence[str]) -> list[str]:
    """Returns the config fields in `names` or in a section in `names`, with default and meaning; "": no section."""
    from train.settings import RESUMABLE_FIELDS

    lines: list[str] = []
    previous = None
    for field in reference.fields():
        if field.section in names or field.name in names:
            if field.section != previous:
                title = f"config.{field.section}: {reference.titles()[field.section]}" if field.section else "config:"
                lines += ["", title]
            previous = field.section
            mark = " (may change when the run resumes)" if field.name in RESUMABLE_FIELDS else ""
            lines.append(f"  --config.{field.name}={field.default!r}  {field.meaning}{mark}")
    return lines
